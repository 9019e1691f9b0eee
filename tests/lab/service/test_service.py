"""The service under a real systemd: started, ready, reloaded, killed, hung, stopped; and its journal."""

from __future__ import annotations

import errno
import re
import subprocess
from pathlib import Path

from .. import live, pmu
from ..guests import guest_a
from ..processes import status
from ..scrape import parse, read, scrape_until, total
from . import unit
from .unit import CONFIG, LISTEN, UNIT, journal, show, systemctl, wait_for

CAPABILITIES = 1 << 39 | 1 << 38 | 1 << 34  # CAP_BPF, CAP_PERFMON, CAP_SYSLOG
SECCOMP_MODE_FILTER = "2"


def is_attached(status_text: str) -> bool:
    """Return whether all probes are attached; in which way is up to the kernel (loader.main.ways())."""
    return re.fullmatch("attached (fexit|kprobe) probes to 6 functions", status_text) is not None


def test_the_unit_is_sound() -> None:
    # This host has no man; tests/package has one.
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", UNIT],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"")


def test_it_is_ready_when_the_probes_are_attached() -> None:
    systemctl("restart", UNIT)  # returns at READY=1; the loader takes many seconds here
    assert (show("ActiveState"), show("SubState")) == ("active", "running")
    status_text = show("StatusText")
    assert is_attached(status_text)
    assert total(parse(read(LISTEN)), "vpmu_agent_attached_probes") == 6
    attached = journal(f"_SYSTEMD_UNIT={UNIT}", f"MESSAGE={status_text}")[-1]
    assert (attached["_TRANSPORT"], attached["PRIORITY"]) == ("journal", "6")


def test_it_may_do_three_things_and_its_daemon_none() -> None:
    parent, daemon = status(unit.main_process()), status(unit.daemon())
    for name in ("CapPrm", "CapEff", "CapAmb", "CapBnd"):
        assert int(parent[name], 16) == CAPABILITIES, name
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(daemon[name], 16) == 0, name
    for process in (parent, daemon):
        assert (process["NoNewPrivs"], process["Seccomp"]) == ("1", SECCOMP_MODE_FILTER)
        assert "0" not in process["Uid"].split()
    assert unit.daemon().username() == unit.USER


def test_it_counts_what_the_test_pmu_counts() -> None:
    with guest_a("web01", rounds=3) as guest:
        guest.finish()
        counts = pmu.kvm_counts(guest.tgid)
    metrics = scrape_until(
        LISTEN, lambda now: total(now, "vpmu_calls_total", vm="web01", call="release") >= counts.destroyed
    )
    assert total(metrics, "vpmu_calls_total", vm="web01", call="create") == counts.initialised >= 12
    assert (
        total(metrics, "vpmu_calls_total", vm="web01", call="release")
        == counts.destroyed
        == counts.initialised
    )


def test_a_failed_creation_is_in_the_journal_with_its_vm() -> None:
    pmu.fail_creation(errno.ENOSPC)
    with guest_a("full01", rounds=5) as guest:
        guest.finish()
        failed = pmu.kvm_counts(guest.tgid).failed
    assert failed > 5
    wait_for("entries", lambda: len(journal("VPMU_VM=full01")) == 5, timeout_s=20)
    entries = journal("VPMU_VM=full01", "VPMU_ERRNO=ENOSPC", "VPMU_CALL=create", "PRIORITY=4")
    assert len(entries) == 5
    # Newer kernels try a counter again at the guest's next entry, before the guest comes to another one.
    assert {entry["VPMU_PMC"] for entry in entries} <= {"gp0", "gp1", "gp2", "gp3"}
    assert {entry["_SYSTEMD_UNIT"] for entry in entries} == {UNIT}
    assert entries[0]["MESSAGE"].startswith("full01: vCPU 0 gp0: create failed with ENOSPC; no event for ")
    # The others are not lost: when it stops it says how many they were.
    systemctl("stop", UNIT)
    later = journal("VPMU_VM=full01")[5:]
    assert sum(int(entry["VPMU_HELD_BACK"]) for entry in later) == failed - 5


def test_it_reads_its_configuration_again() -> None:
    before = unit.main_process(), unit.daemon()
    with guest_a("web01") as guest:
        guest.finish()
    scrape_until(LISTEN, lambda now: total(now, "vpmu_pmc_calls_total", vm="web01") > 0)
    CONFIG.write_text("per_counter = false\n")
    systemctl("reload", UNIT)
    wait_for("word of it", lambda: "configuration reload" in unit.log(), timeout_s=20)
    assert "vpmu_pmc_calls_total{" not in read(LISTEN)
    CONFIG.write_text("per_counter = maybe\n")
    systemctl("reload", UNIT)
    wait_for("refusal", lambda: f"{CONFIG}:1" in unit.log(), timeout_s=20)
    assert show("ActiveState") == "active"
    assert "vpmu_pmc_calls_total{" not in read(LISTEN)
    assert (unit.main_process(), unit.daemon()) == before


def test_it_is_started_again_when_it_is_killed() -> None:
    restarts, killed = int(show("NRestarts")), unit.daemon()
    killed.kill()
    wait_for("restart", lambda: int(show("NRestarts")) > restarts and show("ActiveState") == "active")
    assert unit.daemon() != killed
    assert total(parse(read(LISTEN)), "vpmu_agent_attached_probes") == 6


def test_it_is_started_again_when_it_hangs_and_says_where_it_hung() -> None:
    restarts, hung = int(show("NRestarts")), unit.daemon()
    hung.suspend()
    wait_for("watchdog", lambda: "Watchdog timeout" in unit.log(), timeout_s=60)
    hung.resume()  # only now can it get the SIGABRT that its parent passed on
    wait_for("restart", lambda: int(show("NRestarts")) > restarts and show("ActiveState") == "active")
    assert unit.daemon() != hung
    assert "Fatal Python error: Aborted" in unit.log()
    assert "in watch_over" in unit.log()
    assert total(parse(read(LISTEN)), "vpmu_agent_attached_probes") == 6


def test_it_waits_for_kvm() -> None:
    systemctl("stop", UNIT)
    live.unload_kvm()
    try:
        systemctl("start", UNIT)
        assert show("StatusText").endswith("; waiting for it")
    finally:
        live.load_kvm()
    wait_for("probes", lambda: is_attached(show("StatusText")))


def test_a_wrong_configuration_is_said_once_and_not_tried_again() -> None:
    systemctl("stop", UNIT)
    CONFIG.write_text('lisen = "127.0.0.1:9775"\n')
    restarts = show("NRestarts")
    systemctl("start", "--no-block", UNIT)
    wait_for("failure", lambda: show("ActiveState") == "failed", timeout_s=60)
    assert (show("ExecMainStatus"), show("NRestarts")) == ("2", restarts)
    assert f"{CONFIG}:1: lisen" in unit.log()


def test_it_stops_and_leaves_nobody() -> None:
    pids = [unit.main_process().pid, unit.daemon().pid]
    systemctl("stop", UNIT)
    assert (show("ActiveState"), show("Result"), show("ExecMainStatus")) == ("inactive", "success", "0")
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
