"""The look-alike program, built, probed and run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.twins import task_offsets
from tests.support.commands import daemon_of, read_until
from vpmu_agent.model.call import Call
from vpmu_agent.model.rules import Kind
from vpmu_agent.model.verdict import Observation
from vpmu_agent.probes import Probes, adopt, handover
from vpmu_agent.vms.names import Vms

SOURCE = Path(__file__).with_name("lookalike.c")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    """What the probes saw of one run of the look-alike, and what it says it did."""

    said: list[Observation]
    lost: dict[str, int]
    told: Counter[str]

    @property
    def calls(self) -> list[Call]:
        return [call for call, _ in self.said]

    def kinds(self) -> Counter[Kind]:
        return Counter(verdict.kind for _, verdict in self.said)

    def seen(self) -> Counter[str]:
        return Counter(call.name for call in self.calls)


@dataclass(frozen=True)
class Lookalike:
    """The built program, and the constants that make the probes fit it."""

    path: Path
    constants: dict[str, int]

    def plan(self, **more: Any) -> str:
        """What tests.bpf.loader takes."""
        return json.dumps({"path": str(self.path), "constants": self.constants, **more})

    @contextmanager
    def probes(
        self, *, stream: bool = True, census: bool = False, vms: Vms | None = None, **options: Any
    ) -> Iterator[Probes]:
        """Live probes, handed over by a loader that is gone by then."""
        ours, theirs = handover.channel()
        with ours, theirs:
            number = theirs.fileno()
            plan = self.plan(options=options, census=census)
            command = [sys.executable, "-m", "tests.bpf.loader", plan, str(number)]
            subprocess.run(command, pass_fds=[number], check=True, cwd=ROOT)
            with adopt(ours, vms=vms or Vms(), stream=stream) as probes:
                yield probes

    def run(
        self,
        probes: Probes,
        *,
        name: str = "",
        read_while_running: bool = True,
        stop: bool = True,
        **plan: int,
    ) -> Run:
        words = [f"{key}={value}" for key, value in plan.items()]
        if name:
            words += ["-name", f"guest={name}"]
        process = subprocess.Popen(
            [self.path, "run", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        print(file=process.stdin, flush=True)
        calls: list[Observation] = []
        while process.poll() is None:
            if read_while_running:
                calls += probes.poll(0.05)
        calls += probes.stop() if stop else probes.poll(0)
        assert process.returncode == 0
        return Run(calls, probes.lost(), Counter(json.loads(process.stdout.read())))


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Lookalike]:
    def build_once(grouped: bool) -> Lookalike:
        path = tmp_path_factory.mktemp("lookalike") / "lookalike"
        flags = ["-DGROUPED"] if grouped else []
        # Not position-independent: its handler's address is then a constant, as in a kernel.
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-no-pie", "-pthread", *flags]
        subprocess.run([*command, "-o", path, SOURCE], check=True)
        layout = subprocess.run([path, "layout"], check=True, capture_output=True, text=True).stdout
        return Lookalike(path, json.loads(layout) | task_offsets())

    return build_once


@pytest.fixture(scope="session")
def stock(build: Callable[[bool], Lookalike]) -> Lookalike:
    return build(False)


@pytest.fixture(scope="session")
def grouped(build: Callable[[bool], Lookalike]) -> Lookalike:
    return build(True)


@dataclass(frozen=True)
class Running:
    """The agent, attached to the look-alike."""

    process: subprocess.Popen[bytes]
    address: str
    kvm: Path

    @property
    def daemon(self) -> int:
        return daemon_of(self.process)

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def wait_for(self, sample: str) -> str:
        deadline = time.monotonic() + 10
        while sample not in (text := self.metrics()):
            assert time.monotonic() < deadline, f"{sample} is not in\n{text}"
            time.sleep(0.05)
        return text


Start = Callable[..., AbstractContextManager[Running]]


@pytest.fixture
def start(stock: Lookalike) -> Start:
    @contextmanager
    def start(*arguments: str, **plan: object) -> Iterator[Running]:
        # Not pytest's folder, which every session makes its own user's again: the daemon is nobody.
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            kvm = Path(folder) / "kvm"
            kvm.write_text("1")
            environment = {
                "LOADER_PLAN": stock.plan(**plan),
                "KVM_INSTANCE": str(kvm),
                "PYTHONPATH": str(ROOT),
            }
            with subprocess.Popen(
                [sys.executable, "-m", "tests.bpf.host", "run", "--listen", "127.0.0.1:0", *arguments],
                stderr=subprocess.PIPE,
                env=os.environ | environment,
                cwd=ROOT,
            ) as process:
                try:
                    address = read_until(process.stderr, b"serving http://").decode().split("/")[2]
                    attached = read_until(process.stderr, b"attached")
                    assert attached == b"attached uprobe probes to 6 functions\n"
                    yield Running(process, address, kvm)
                finally:
                    process.terminate()

    return start
