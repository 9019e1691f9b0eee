"""The doctor where bcc, the compiler or the verifier really refuse: broken on purpose, in a namespace."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bpf.conftest import ROOT
from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.kernel.layout import read_layout

LIBRARIES = re.compile(r"(/\S+/lib(?:bcc|LLVM[-.]?\S*)\.so\S*)")


@pytest.fixture(scope="module", autouse=True)
def _kvm() -> None:
    """The program is compiled for the KVM that is there."""
    try:
        read_layout()
    except KernelError as error:
        pytest.skip(f"the program cannot be tried here: {error}")


def doctor(*broken: str) -> dict[str, dict[str, str]]:
    """Its findings by check, once these commands of a shell have broken something that only it sees."""
    command = " && ".join([*broken, f"exec {shlex.quote(sys.executable)} -m vpmu_agent doctor --output json"])
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    *findings, summary = map(json.loads, done.stdout.splitlines())
    found = {finding["check"]: finding for finding in findings}
    failed = [name for name in ("bcc", "program") if found[name]["status"] == "fail"]
    assert bool(failed) <= (not summary["can_trace"])
    for name in failed:
        assert f"{name}: {found[name]['found']}" in summary["reasons"]
        assert done.returncode == 3
    return found


def library(name: str) -> str:
    """Where this machine has the library that `import bcc` loads."""
    code = "import bcc; print(open('/proc/self/maps').read())"
    maps = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, text=True, check=True).stdout
    return next(str(path) for path in LIBRARIES.findall(maps) if f"/{name}" in path)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A copy of the BPF program and its headers, to be broken."""
    return shutil.copytree(ROOT / "bpf", tmp_path / "bpf")


def instead(ours: Path) -> str:
    return f"mount --bind {shlex.quote(str(ours))} {shlex.quote(str(ROOT / 'bpf'))}"


def test_nothing_is_broken() -> None:
    found = doctor()
    assert re.fullmatch(r"[\d.]+ and (LLVM|clang) [\d.]+", found["bcc"]["found"])
    assert found["program"]["found"].startswith(
        ("compiled, attached by", "compiled and accepted by the verifier")
    )


@pytest.mark.parametrize("name", ["libbcc", "libLLVM"])
def test_a_library_that_is_damaged(name: str) -> None:
    found = doctor(f"mount --bind /dev/null {library(name)}")
    assert found["bcc"]["status"] == "fail"
    assert re.match(rf"cannot load bcc: \S*{name}\S*: ", found["bcc"]["found"])
    assert "apt install --reinstall python3-bpfcc libbpfcc" in found["bcc"]["todo"]
    assert found["program"]["found"] == "cannot be tried without bcc"


def test_a_header_that_is_missing(ours: Path) -> None:
    (ours / "headers" / "include" / "linux" / "types.h").unlink()
    program = doctor(instead(ours))["program"]
    assert "the compiler refuses the program: " in program["found"]
    assert "fatal error: 'linux/types.h' file not found" in program["found"]
    assert "reinstall vpmu-agent" in program["todo"]


def break_entry(ours: Path, statement: str) -> None:
    """Has the program at the entry of create do something that no verifier takes."""
    source = ours / "vpmu.bpf.c"
    head, tail = source.read_text().split("PROBE_ENTRY(create)\n{\n")
    source.write_text(f"{head}PROBE_ENTRY(create)\n{{\n\t{{ {statement} }}\n{tail}")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ('u64 x; asm volatile("%0 = r5" : "=r"(x));', "R5 !read_ok"),
        ('u64 x; asm volatile("%0 = *(u8 *)(r10 - 520)" : "=r"(x));', "invalid read from stack R10 off=-520"),
        ('u64 x = 0; asm volatile("%0 = *(u64 *)(%0 + 0)" : "+r"(x));', "invalid mem access 'scalar'"),
        ("((int (*)(void))9999)();", "invalid func unknown#9999"),
        ("for (;;) bpf_get_prandom_u32();", "infinite loop detected"),
    ],
)
def test_a_program_that_the_verifier_refuses(ours: Path, statement: str, reason: str) -> None:
    break_entry(ours, statement)
    program = doctor(instead(ours))["program"]
    said = re.sub(r"'inv'", "'scalar'", program["found"])  # as Linux before 5.18 calls it
    assert re.match(r"bcc [\d.]+ and (LLVM|clang) [\d.]+: ", said)
    assert re.search(r"the verifier refuses vpmu_create_entry: ", said)
    assert reason in said
    assert "processed" not in said
    assert "report this" in program["todo"]
