"""The one line that matters of what bcc, clang and the verifier print, in real outputs of several of them."""

from __future__ import annotations

import errno
import os
import re

import pytest

from tests.support.places import DATA
from vpmu_agent.kernel.errors import ProbeError
from vpmu_agent.loader.reason import (
    COMPILER_TODO,
    VERIFIER_TODO,
    compiler_refused,
    kernel_refused,
    last_words,
)

REFUSALS = DATA / "refusals"

VERIFIER = {
    "argument": "R2 type=scalar expected=fp, pkt, pkt_meta, map_key, map_value, mem, ringbuf_mem, buf, "
    "trusted_ptr_",
    "fexit_fnptr_6_1": "func 'perf_event_create_kernel_counter' arg3 type FUNC_PROTO is not a struct; "
    "invalid bpf_context access off=24 size=8",
    "fexit_rodata_6_1": "R1 invalid mem access 'scalar'",
    "helper": "program of this type cannot use helper bpf_xdp_adjust_head#44",
    "loop": "infinite loop detected at insn 7",
    "loop_6_1": "infinite loop detected at insn 7",
    "null": "R0 invalid mem access 'map_value_or_null'",
    "outside": "invalid access to map value, value_size=128 off=248 size=8; R7 max value is outside of the "
    "allowed memory range",
    "outside_6_1": "invalid access to map value, value_size=128 off=248 size=8; R7 max value is outside of "
    "the allowed memory range",
    "reference": "Unreleased reference id=2 alloc_insn=4; BPF_EXIT instruction in main prog would lead to "
    "reference leak",
    "rodata_llvm19": "R2 invalid mem access 'scalar'",
    "rodata_llvm21": "R3 invalid mem access 'scalar'",
    "stack": "invalid read from stack R10 off=-520 size=1",
    "too_large": "too large, or too complex, for this kernel (14 instructions)",
    "unbounded": "math between map_value pointer and register with unbounded min value is not allowed",
    "uninitialised": "R8 !read_ok",
    "uninitialised_6_1": "R8 !read_ok",
    "unknown_helper": "invalid func unknown#9999",
}
COMPILER = {
    "no_header": "/virtual/main.c:1:10: fatal error: 'linux/nothere.h' file not found",
    "undeclared": "/virtual/main.c:1:41: error: use of undeclared identifier 'nonesuch'",
    "warning": "/virtual/main.c:1:73: error: incomplete definition of type 'struct q'",
}


def refusal(name: str) -> tuple[str, str]:
    """What bcc raised, and what was printed."""
    _origin, raised, printed = (REFUSALS / f"{name}.txt").read_text().split("\n", 2)
    return raised, printed


def verifiers(name: str) -> ProbeError:
    """What is said of a program that the verifier refused."""
    raised, printed = refusal(name)
    match = re.fullmatch(r"Failed to load BPF program b'(\w+)': (.*)", raised)
    assert match is not None
    code = next(code for code in errno.errorcode if os.strerror(code) == match[2])
    header, _, log = printed.partition("\n")
    assert header.startswith("bpf: ")  # bcc's own line before the log
    return kernel_refused(match[1], code, log, instructions=14)


def test_every_refusal_is_here() -> None:
    assert {path.stem for path in REFUSALS.glob("*.txt")} == {*VERIFIER, *COMPILER}


def program(name: str) -> str:
    """Whose excerpt this is."""
    if name.startswith("rodata"):
        return "vpmu_create_return"
    if name.startswith("fexit"):
        return f"kretfunc__perf_event_{'create_kernel_counter' if 'fnptr' in name else 'enable'}"
    return "vpmu_t"


@pytest.mark.parametrize("name", VERIFIER)
def test_what_the_verifier_objects_to(name: str) -> None:
    error = verifiers(name)
    assert error.found == f"the verifier refuses {program(name)}: {VERIFIER[name]}"
    assert error.todo == VERIFIER_TODO


@pytest.mark.parametrize("name", COMPILER)
def test_what_the_compiler_objects_to(name: str) -> None:
    raised, printed = refusal(name)
    error = compiler_refused(Exception(raised), printed)
    assert error.found == f"the compiler refuses the program: {COMPILER[name]}"
    assert error.todo == COMPILER_TODO


@pytest.mark.parametrize(
    ("raised", "printed", "found"),
    [
        (
            "Failed to compile BPF module <text>",
            "could not open bpf map: calls, error: Operation not permitted\n",
            "Failed to compile BPF module <text> (could not open bpf map: calls, error: Operation not "
            "permitted)",
        ),
        (
            "Failed to compile BPF module <text>",
            "LLVM ERROR: out of memory\n",
            "the compiler refuses the program: LLVM ERROR: out of memory",
        ),
        ("Failed to compile BPF module <text>", "", "Failed to compile BPF module <text>"),
    ],
)
def test_other_refusals(raised: str, printed: str, found: str) -> None:
    assert compiler_refused(Exception(raised), printed).found == found


def test_a_kernel_that_gives_no_reason() -> None:
    error = kernel_refused("vpmu_x", errno.EPERM, "", instructions=2)
    assert error.found == "the kernel refuses to load vpmu_x: Operation not permitted"
    assert error.todo == ""


def test_an_output_of_no_known_form_is_not_told_at_length() -> None:
    assert last_words("\n".join(f"line {number}" for number in range(9))) == "line 6; line 7; line 8"
    assert last_words("processed 5 insns (limit 1000000)\n") == ""


@pytest.mark.parametrize("written", ["0xffffffffc0a51230", "ffffffffc0a51230", "18446744072645054000"])
def test_no_kernel_address_is_told(written: str) -> None:
    # A program has one in it; whoever may read the log or the page need not have the right to know it.
    error = kernel_refused(
        "vpmu_create", errno.EACCES, f"12: (b7) r1 = 1\nno map at {written}\n", instructions=9
    )
    assert error.found == "the verifier refuses vpmu_create: no map at (an address)"
