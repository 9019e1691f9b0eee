"""Which bcc is taken, and what is said where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from operator import itemgetter
from pathlib import Path

import pytest

from tests.support.fake_bcc import LIBBCC, plant_bcc
from tests.support.places import ROOT
from vpmu_agent.loader.program import compiler

# It needs what it does not declare.
PYPIS = {"__init__.py": "import no_such_module\n"}
BCC = "__version__ = '0.26.0'\nclass BPF:\n    def ring_buffer_poll(self): ...\n"


def version(folder: Path) -> subprocess.CompletedProcess[str]:
    """What a Python says that finds no bcc but the one in this folder."""
    code = "from vpmu_agent.loader.program import bcc_version; print(bcc_version())"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'agent'}:{folder}"}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, f"cannot load bcc: {sys.executable} finds no module of that name; install it"),
        (PYPIS, "is not the BPF Compiler Collection, but PyPI's bcc or another; pip uninstall bcc"),
        (
            {"__init__.py": "import bcc.libbcc\n", "libbcc.py": "raise OSError('libbcc.so.0: gone')\n"},
            "cannot load bcc: libbcc.so.0: gone; reinstall it",
        ),
        (
            {
                "__init__.py": "import bcc.libbcc\n",
                "libbcc.py": "import ctypes\nctypes.CDLL(None).bpf_no_such_function\n",
            },
            "undefined symbol: bpf_no_such_function; reinstall it and the libraries that it needs",
        ),
        (
            {"__init__.py": "__version__ = '0.8'\nclass BPF: ...\n", "libbcc.py": LIBBCC},
            "bcc 0.8 is too old: it has no ring buffers",
        ),
    ],
    ids=["none", "PyPI's", "without its library", "of another library", "old"],
)
def test_a_bcc_that_will_not_do(tmp_path: Path, files: dict[str, str], says: str) -> None:
    plant_bcc(tmp_path, files)
    assert says in version(tmp_path).stderr


@pytest.mark.parametrize(
    ("library", "says"),
    [
        ("libLLVM-14.so.1", "LLVM 14"),
        ("libLLVM-17.so", "LLVM 17"),
        ("libLLVM.so.19.1", "LLVM 19.1"),
        ("libclang-cpp.so.18.1", "clang 18.1"),
        ("libbcc.so.0.30.0", "a built-in compiler"),
    ],
)
def test_the_compiler_is_known_by_its_library(library: str, says: str) -> None:
    """Their names on Debian 12, Arch and Debian 13, and Fedora's clang; some link LLVM into libbcc."""
    maps = f"7f991be00000-7f991c000000 r--p 00000000 fe:00 1234    /usr/lib/x86_64-linux-gnu/{library}\n"
    assert compiler(maps) == says


def test_a_bcc_that_will_do(tmp_path: Path) -> None:
    plant_bcc(tmp_path, {"__init__.py": BCC, "libbcc.py": LIBBCC})
    assert version(tmp_path).stdout == "0.26.0\n"


@pytest.mark.parametrize(
    "command", [["trace"], ["run", "--listen", "127.0.0.1:0"], ["doctor"]], ids=itemgetter(0)
)
def test_commands_that_need_bcc_say_once_where_to_get_it(tmp_path: Path, command: list[str]) -> None:
    plant_bcc(tmp_path, PYPIS)
    done = subprocess.run(
        [sys.executable, "-m", "vpmu_agent", *command],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = " ".join((done.stdout if command == ["doctor"] else done.stderr).split())
    assert done.returncode == 3
    assert said.count("apt install python3-bpfcc") == 1
