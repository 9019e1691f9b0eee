"""What the running kernel offers to the probes: types (BTF), addresses (kallsyms), and what it takes."""
