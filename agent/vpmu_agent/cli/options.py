"""The options that several commands have."""

from __future__ import annotations

from collections.abc import Callable

import click

from vpmu_agent.model.call import CallName


def _known_pmcs(_ctx: click.Context, _param: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    if names:
        from vpmu_agent.trace.call_json import PMC_NAMES

        for name in names:
            if name not in PMC_NAMES:
                raise click.BadParameter(
                    f"{name!r} is not a counter: write gp0, gp1, …, fixed0, fixed1, … or lbr"
                )
    return names


def filters(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that pick calls; the command gets them as `vm`, `vcpu`, `pmc` and `call`."""
    return vm(vcpu(pmc(call(command))))


vm = click.option("--vm", multiple=True, metavar="NAME", help="Only this VM. Repeatable, as all filters are.")
vcpu = click.option("--vcpu", multiple=True, type=click.IntRange(min=0), metavar="N", help="Only this vCPU.")
pmc = click.option(
    "--pmc", multiple=True, callback=_known_pmcs, metavar="PMC", help="Only this counter: gp0, fixed1."
)
call = click.option(
    "--call",
    multiple=True,
    type=click.Choice([str(name) for name in CallName]),
    metavar="|".join(CallName),
    help="Print only these calls; the others are still checked, counted and recorded.",
)
output = click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Human-readable text, or JSON Lines.",
)
quiet = click.option("--quiet", "-q", is_flag=True, help="Print only the summary.")
attach = click.option(
    "--attach",
    type=click.Choice(["auto", "fexit", "kprobe"]),
    default="auto",
    show_default=True,
    help="How to attach the probes; auto uses fexit, or kprobes on kernels that preempt themselves.",
)
duration = click.option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop after this time; without it, on Ctrl-C or SIGTERM.",
)
