"""The probes' program: compiled without kernel headers, taken by this kernel's verifier."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest

from tests.bpf import verifier
from tests.bpf.conftest import Lookalike
from vpmu_agent.kernel import btf, libbpf
from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.loader.attach import Kind, make_maps
from vpmu_agent.loader.image import with_placeholders
from vpmu_agent.loader.main import compiled
from vpmu_agent.loader.program import program_source
from vpmu_agent.probes import handover, loader_command
from vpmu_agent.probes.layout import SIZES, Layout

# Calls of bpf_ktime_get_ns() and bpf_probe_read_kernel(), as struct bpf_insn has them.
LOOK_AT_CLOCK, READ_KERNEL = (struct.pack("=BBhi", 0x85, 0, 0, number) for number in (5, 113))
HEADER = Path(__file__).parents[2] / "bpf" / "vpmu.h"


@pytest.mark.parametrize("durations", [True, False], ids=["durations", "no_durations"])
@pytest.mark.parametrize("user_memory", [False, True], ids=["kernel_memory", "user_memory"])
@pytest.mark.parametrize("kernel", ["stock", "grouped"])
def test_every_program_passes_the_verifier(
    kernel: str, user_memory: bool, durations: bool, request: pytest.FixtureRequest
) -> None:
    lookalike: Lookalike = request.getfixturevalue(kernel)
    known, addresses = with_placeholders(lookalike.constants)
    source = program_source(known, user_memory=user_memory, durations=durations)
    loading = make_maps(compiled(source), addresses)
    assert set(loading.image.programs) == set(verifier.programs(durations=durations))
    loaded = [loading.load(name, Kind.PROBE) for name in loading.image.programs]
    handover.close([*loaded, *loading.maps.values()])


def test_a_usual_call_ends_before_what_is_seldom_needed_begins(stock: Lookalike) -> None:
    """It ends with a look at the clock; all other calls begin with a read of their event."""
    known, _ = with_placeholders(stock.constants)
    programs = compiled(program_source(known)).programs
    for call in ("enable", "pause", "release", "read", "period"):
        code = programs[f"vpmu_{call}_entry"]
        assert code.index(LOOK_AT_CLOCK) < code.index(READ_KERNEL)


@pytest.mark.parametrize("durations", [True, False])
def test_the_loader_answers_on_its_command(durations: bool) -> None:
    """With probes, or with the reason why this kernel has none."""
    ours, theirs = handover.channel()
    with ours, theirs:
        number = theirs.fileno()
        command = [*loader_command("kprobe", durations=durations), str(number)]
        assert command[-2] == ("kprobe" if durations else "--no-durations")
        subprocess.run(command, pass_fds=[number], check=True)
        theirs.close()
        try:
            handed = handover.receive(ours)
        except KernelError as error:
            assert "without sending anything" not in error.found  # noqa: PT017 - probes are as good
        else:
            assert len(handed.programs) == len(verifier.programs(durations=durations))
            handover.close(handed.descriptors())


# A process of its own, for it hides every header that the machine may have.
COMPILE = """
import json, sys
from vpmu_agent.loader.program import compile_source, program_source
compile_source(program_source(json.loads(sys.argv[1])))
print("compiled")
"""


def test_no_header_of_the_machine_is_needed(stock: Lookalike) -> None:
    folders = [each for each in ("/usr/include", "/usr/src", "/lib/modules") if Path(each).is_dir()]
    hide = " && ".join(f"mount -t tmpfs none {folder}" for folder in folders)
    script = f'{hide} && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", COMPILE]
    done = subprocess.run(
        [*command, json.dumps(stock.constants)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("compiled\n", "")


@pytest.mark.parametrize("name", re.findall(r"^struct (\w+) {", HEADER.read_text(), re.MULTILINE))
def test_python_and_c_agree_on_every_struct(name: str, tmp_path: Path) -> None:
    layout = Layout(name)
    prints = "".join(f'printf("%zu ", offsetof(struct {name}, {field}));' for field in layout.fields)
    sizes = "".join(f"#define {size} {value}\n" for size, value in SIZES.items())
    source = tmp_path / "layout.c"
    source.write_text(
        f"{sizes}#include <linux/types.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        f'#include "{HEADER}"\nint main(void) {{ {prints} printf("%zu\\n", sizeof(struct {name})); }}\n'
    )
    subprocess.run(["gcc", "-o", tmp_path / "layout", source], check=True)
    told = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout.split()
    numbers = layout.struct.unpack(bytes(layout.size))
    formats = [
        fmt for count, fmt in re.findall(r"(\d+)(\w)", layout.struct.format) for _ in range(int(count))
    ]
    starts = [0, *accumulate(struct.calcsize(f"={fmt}") for fmt in formats)]
    assert len(numbers) == len(formats)
    assert told == [*(str(starts[at.start]) for at in layout.fields.values()), str(layout.size)]


def test_missed_runs_are_read_from_where_the_kernel_has_them(stock: Lookalike) -> None:
    member = btf.vmlinux().member("bpf_prog_info", "recursion_misses")
    assert (member.offset, member.size) == (libbpf.RECURSION_MISSES, 8)
    with stock.probes() as probes:
        assert probes.lost()["not_run"] == 0
    with pytest.raises(KernelError, match="cannot ask the kernel"):
        libbpf.recursion_misses(-1)
