"""What the lab keeps of the agent's compiled programs, from one VM to the next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab import programs
from tests.lab.errors import LabError
from tests.lab.hosts import HOSTS, Target
from tests.lab.kernel import Kernel
from vpmu_agent.loader.cache import FOLDER


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    host = next(iter(HOSTS.values()))
    return Target(host, "stock", Path("/userland"), Kernel(Path("/kernel/boot/vmlinuz"), "6.1.0"))


def left(results: Path, *numbers: int) -> Path:
    """Results in which a VM has left programs, each a second younger than the one before."""
    folder = results / "programs"
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        file = folder / f"{number:02}.bpf"
        file.write_text(str(number))
        os.utime(file, (number, number))
    return results


def there(target: Target, layer: Path) -> list[str]:
    programs.put(target, layer)
    folder = layer / FOLDER.relative_to("/")
    assert folder.stat().st_mode & 0o777 == 0o755
    return sorted(file.name for file in folder.iterdir())


def test_what_one_vm_leaves_is_there_in_the_next(target: Target, tmp_path: Path) -> None:
    assert there(target, tmp_path / "first") == []
    programs.take(target, left(tmp_path / "results", 1, 2))
    assert there(target, tmp_path / "second") == ["01.bpf", "02.bpf"]
    newest = tmp_path / "second" / FOLDER.relative_to("/") / "02.bpf"
    assert (newest.read_text(), newest.stat().st_mtime) == ("2", 2)


def test_a_vm_that_leaves_nothing_takes_nothing_away(target: Target, tmp_path: Path) -> None:
    programs.take(target, left(tmp_path / "results", 1))
    programs.take(target, tmp_path / "nothing")
    assert there(target, tmp_path / "next") == ["01.bpf"]


def test_they_are_compiled_once_and_again_when_some_were_dropped(target: Target, tmp_path: Path) -> None:
    runs = []

    def run() -> int:
        runs.append(1)
        programs.take(target, left(tmp_path / f"run{len(runs)}", 1))
        return 0

    programs.compile_once(target, run)
    programs.compile_once(target, run)
    assert len(runs) == 1
    programs.take(target, left(tmp_path / "others", *range(2, 18)))
    assert there(target, tmp_path / "next") == [f"{number:02}.bpf" for number in range(2, 18)]
    programs.compile_once(target, run)
    assert len(runs) == 2


def test_a_failed_compilation_is_told_and_tried_again(target: Target) -> None:
    for _ in range(2):
        with pytest.raises(LabError, match=r"ended with status 3 in QEMU"):
            programs.compile_once(target, lambda: 3)
