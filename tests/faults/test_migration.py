"""A VM that is migrated within its host: two processes of one VM."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Attack
from vpmu_agent.vms.names import Vms

QEMU = "qemu-system-x86_64"
UUID = "8e5e3e56-d4ec-44f5-9363-e3699359ca9b"
TIMEOUT_S = 20.0


class Qemu:
    """A QEMU without KVM, whose guest is its firmware."""

    def __init__(self, monitor: Path, *arguments: str) -> None:
        machine = ("-machine", "pc,accel=tcg", "-m", "16", "-display", "none", "-nodefaults")
        self.command = [QEMU, *machine, "-name", "guest=web01,debug-threads=on", "-uuid", UUID, *arguments]
        qmp = f"unix:{monitor},server=on,wait=off"
        self.process = subprocess.Popen([*self.command, "-qmp", qmp], stdin=subprocess.DEVNULL)
        self.tgid = self.process.pid
        self._monitor = socket.socket(socket.AF_UNIX)
        wait_for(lambda: self._connected(monitor))
        self._lines = self._monitor.makefile()
        self._lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, execute: str, **arguments: str) -> Any:
        """Return the answer to a command."""
        self._monitor.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode())
        while "return" not in (answer := json.loads(self._lines.readline())):
            assert "error" not in answer, answer
        return answer["return"]

    def end(self) -> None:
        self._monitor.close()
        self.process.kill()
        self.process.wait()

    def _connected(self, monitor: Path) -> bool:
        try:
            self._monitor.connect(str(monitor))
        except OSError:
            return False
        return True


def wait_for(is_done: Any) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not is_done():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@contextmanager
def migrated(folder: Path) -> Iterator[tuple[Vms, Qemu, Qemu]]:
    """A VM after its migration, with the source paused; its names were asked for before."""
    folder.mkdir()
    vms = Vms()
    source = Qemu(folder / "source")
    target = Qemu(folder / "target", "-incoming", f"unix:{folder / 'stream'}")
    try:
        assert [vms.name(each.tgid) for each in (source, target)] == ["web01", f"web01-{target.tgid}"]
        source.ask("migrate", uri=f"unix:{folder / 'stream'}")
        wait_for(lambda: source.ask("query-status")["status"] == "postmigrate")
        wait_for(lambda: target.ask("query-status")["status"] == "running")
        yield vms, source, target
    finally:
        source.end()
        target.end()


def test_processes_of_few_vms_come_and_go(attack: Attack) -> None:
    """Processes of the same few VMs, with one UUID or another, come and go in any order"""
    rng = random.Random(23)
    vms = Vms()
    living: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for step in range(400):
            with attack.once(f"step {step}"):
                if len(living) < 2 or (len(living) < 6 and rng.random() < 0.5):
                    uuid = rng.choice(["", UUID, UUID.replace("8", "9")])
                    arguments = ["-name", "web01", *(["-uuid", uuid] if uuid else [])]
                    child = subprocess.Popen(["sh", "-c", "read line", *arguments], stdin=subprocess.PIPE)
                    wait_for(
                        lambda child=child: b"read line" in Path(f"/proc/{child.pid}/cmdline").read_bytes()
                    )
                    living[child.pid] = child
                else:
                    child = living.pop(rng.choice([*living]))
                    child.communicate()
                    if rng.random() < 0.5:
                        vms.forget(child.pid)
                for tgid in rng.sample([*living], k=rng.randint(0, len(living))):
                    if rng.random() < 0.3:
                        vms.met(tgid, ["sh"])
                    vms.name(tgid)
                # Twice: the first time some get the name of one that is gone.
                names = [[vms.name(tgid) for tgid in living] for _ in range(2)][1]
                assert len(set(names)) == len(names), names
                assert all(name.startswith(("web01", "pid-")) for name in names), names
    finally:
        for child in living.values():
            child.communicate()


@pytest.mark.skipif(not shutil.which(QEMU), reason=f"{QEMU} is not installed")
def test_migration_within_a_host(attack: Attack, tmp_path: Path) -> None:
    """A VM is migrated within its host, and its source stays for a while or goes"""
    for i in range(3):
        with attack.once(f"{i}: an idle guest"), migrated(tmp_path / f"idle{i}") as (vms, source, target):
            source.end()
            assert vms.name(target.tgid) == "web01"
            assert vms.about(target.tgid).uuid == UUID
        with attack.once(f"{i}: a busy guest"), migrated(tmp_path / f"busy{i}") as (vms, source, target):
            vms.met(target.tgid, target.command)
            assert vms.name(target.tgid) == "web01"
            assert vms.name(source.tgid) == f"web01-{source.tgid}"
            source.end()
            assert vms.name(target.tgid) == "web01"
