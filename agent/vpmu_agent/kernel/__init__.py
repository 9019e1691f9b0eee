"""What the running kernel offers the probes: types (BTF), addresses (kallsyms), what it accepts."""
