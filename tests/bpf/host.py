"""`python -m tests.bpf.host ARGUMENTS`: vpmu-agent on a host whose KVM is the look-alike program.

Real are the daemon, its parent, the BPF programs and maps; not the loader's choice of what to attach to. The
environment has the loader's plan (LOADER_PLAN) and a file with what kvm_instance() shall find (KVM_INSTANCE).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from vpmu_agent.cli.main import StandIns, main
from vpmu_agent.daemon.source import ProbeSource
from vpmu_agent.probes import Mode


def loader_command(_mode: Mode, *, durations: bool, reads: bool) -> list[str]:
    plan = json.loads(os.environ["LOADER_PLAN"])
    plan["options"] = plan.get("options", {}) | {"durations": durations, "reads": reads}
    return [sys.executable, "-P", "-m", "tests.bpf.loader", json.dumps(plan)]


def kvm_instance() -> int | None:
    try:
        return int(Path(os.environ["KVM_INSTANCE"]).read_text())
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    source = ProbeSource(kvm_instance=kvm_instance, why_no_vpmu=lambda: None, loader_command=loader_command)
    main(StandIns(source=source))
