"""Attached probes by their descriptors, read as calls and counts.

Reading them takes neither bcc nor privileges: a loader (loader/main.py) compiles and attaches them in a
process of its own, hands them over and exits.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Literal, Self

from vpmu_agent.kernel.errors import ProbeError
from vpmu_agent.kernel.libbpf import recursion_misses
from vpmu_agent.model.verdict import Observation
from vpmu_agent.probes import handover
from vpmu_agent.probes.census import Census
from vpmu_agent.probes.clock import Clock
from vpmu_agent.probes.decoder import Decoder, VmNames
from vpmu_agent.probes.entries import Entries, GivenBack, Share
from vpmu_agent.probes.handover import Handover
from vpmu_agent.probes.layout import (
    CONTROL,
    ERROR_KEY,
    GIVEN_BACK,
    LOST_REASONS,
    SHARE,
    SLOT_KEY,
    TEST_ENDS,
    VCPU,
    Layout,
    pmc_layout,
)
from vpmu_agent.probes.maps import Map, Ring
from vpmu_agent.probes.self_test import SelfTested

__all__ = [
    "FUNCTIONS",
    "Mode",
    "ProbeError",
    "Probes",
    "Unattached",
    "adopt",
    "attach",
    "functions",
    "loader_command",
]

Way = Literal["fexit", "kprobe"]
"""A way to attach the probes."""

Mode = Literal["auto", Way]

WAYS: tuple[Way, ...] = ("fexit", "kprobe")

FUNCTIONS = {
    "enable": "perf_event_enable",
    "pause": "perf_event_pause",
    "release": "perf_event_release_kernel",
    "create": "perf_event_create_kernel_counter",
}
"""The kernel functions whose calls are checked, by the short names of their probes."""

UNCHECKED_FUNCTIONS = {
    "read": "perf_event_read_value",
    "period": "perf_event_period",
}
"""Those whose calls are only counted, and may be left out."""


def functions(*, reads: bool = True) -> dict[str, str]:
    """Return the probed kernel functions, by the short names of their probes."""
    return FUNCTIONS | UNCHECKED_FUNCTIONS if reads else FUNCTIONS


_LABELS = {"left_behind": "left"}  # of metrics, where they are not the name of the map
_U32, _U64 = 4, 8  # bytes
_END_S = 5.0  # how long a loader may take to end, once it has handed over or was killed
_MISSES_EVERY_S = 0.1  # how often to ask the kernel for calls that it did not run a probe for


class Probes:
    """Attached probes: the counts in their maps, and the calls that they send.

    One thread polls; another one at a time may use the maps meanwhile. Methods that use them raise
    KernelError if the kernel refuses.
    """

    pmc: Layout
    """The layout of the entries in pmcs()."""
    self_tested: SelfTested | None
    """How to test whether these probes run; None of uprobes, which see no call of the kernel."""

    def __init__(self, handed: Handover, *, vms: VmNames, stream: bool = False) -> None:
        """Take ownership of the descriptors and go live. With `stream`, the probes send every call.

        Raise ProbeError if these are not the maps of this version.
        """
        self.mode = handed.mode
        self.functions = tuple(functions(reads=handed.reads).values())
        self.census = Census(handed.census, handed.no_census, program=handed.census_program)
        self._programs, self._links = handed.programs, handed.links
        self._maps = {name: Map(name, descriptor) for name, descriptor in handed.maps.items()}
        self.pmc = pmc_layout((self._maps["pmcs"].value_size - pmc_layout(0).size) // _U64)
        self._check_sizes()
        self._entries = Entries(self._maps, self.pmc)
        self._clock = Clock()
        self._decoder = Decoder(epoch_ns=self._clock.offset_ns(), vms=vms)
        self._ring = Ring(self._maps["calls"])
        self._stream = stream
        self._tester = 0
        self.self_tested = self if handed.mode in WAYS else None
        self._not_run = self._misses()
        self._looked = time.monotonic()
        self._set_epoch(1)

    def poll(self, timeout_s: float) -> list[Observation]:
        """Return the calls that were sent, oldest first; wait up to `timeout_s` for the first one."""
        records = self._ring.poll(timeout_s)
        if time.monotonic() - self._looked >= _MISSES_EVERY_S:
            self._look_for_misses()
        self._decoder.epoch_ns = self._clock.offset_ns()
        return [observation for data in records if (observation := self._decoder.call(data))]

    def pmcs(self) -> Iterator[memoryview]:
        """Yield all entries of pmcs, laid out as `pmc`, some hundred at a time; free ones have the tgid 0.

        They are valid only until the next ones are asked for.
        """
        return (values for _, values in self._entries.pmcs.chunks())

    def vcpus(self) -> Iterator[memoryview]:
        """Yield all entries of vCPUs, laid out as `layout.VCPU`, as pmcs() does."""
        return (values for _, values in self._entries.vcpus.chunks())

    def shares(self) -> dict[int, Share]:
        """Return what each process has of the entries, by tgid: of all processes that have made calls."""
        return self._entries.shares()

    def errors(self) -> Iterator[tuple[int, int, int]]:
        """Yield (tgid, errno, how many creations failed with it)."""
        for keys, values in self._maps["errors"].chunks():
            for (tgid, error), count in zip(
                ERROR_KEY.struct.iter_unpack(keys), values.cast("B").cast("Q"), strict=True
            ):
                yield tgid, error, count

    def errnos(self) -> dict[tuple[int, tuple[int, int, int]], int]:
        """Return the errno of a counter's last creation, of counters whose last one failed.

        The keys are a tgid and the counter's vcpu_id, type and index as in `struct vpmu_pmc`.
        """
        # All entries are read only where something has failed, which is rare.
        return self._entries.errnos() if next(self._error_keys(), None) else {}

    def starvations(self) -> int:
        """Return how many calls have left a counter starved, of all VMs."""
        return int.from_bytes(self._maps["starvations"].get(bytes(_U32)) or b"", sys.byteorder)

    def lost(self) -> dict[str, int]:
        """Return how many calls or records were lost since the start, by reason.

        `not_run` counts calls for which the kernel did not run a probe (struct bpf_prog_info,
        recursion_misses); callers other than KVM may be among them.
        """
        counts = self._maps["lost"]
        lost = {
            reason: int.from_bytes(counts.get(i.to_bytes(_U32, sys.byteorder)) or b"", sys.byteorder)
            for i, reason in enumerate(LOST_REASONS)
        }
        return {**lost, "not_run": self._misses()}

    def forget(self, tgids: Set[int]) -> None:
        """Delete what the maps have of these processes, which are gone."""
        self._entries.forget(tgids)
        errors = self._maps["errors"]
        gone = [key for key in self._error_keys() if key[0] in tgids]
        for key in gone:
            errors.delete(ERROR_KEY.struct.pack(*key))

    def give_back(self) -> GivenBack:
        """Free entries of processes that are gone, and idle ones of those that have too many; once a second.

        Return the last counts of the latter, which no other method counts any more.
        """
        return self._entries.give_back(self._epoch)

    def occupancy(self, shares: Mapping[int, Share]) -> dict[str, tuple[int, int]]:
        """Return (entries in use, room for entries) of each map that can be full, by its label in metrics.

        `shares` is what shares() has returned: reading them takes about a millisecond of 1,000 processes.
        """
        in_use = {
            "pmcs": sum(share.pmcs for share in shares.values()),
            "vcpus": sum(share.vcpus for share in shares.values()),
            "processes": len(shares),
            "left_behind": self._maps["left_behind"].entries(),
            "errors": self._maps["errors"].entries(),
        }
        return {_LABELS.get(name, name): (used, self._maps[name].room) for name, used in in_use.items()}

    def expect_tests_of(self, tgid: int) -> None:
        """Count releases by this process in tests_seen()."""
        self._tester = tgid
        self._set_epoch(self._epoch)

    def tests_seen(self) -> tuple[int, ...]:
        """Return how many releases of the process that is to test the probes were seen, at each end."""
        counts = self._maps["self_tests"]
        return tuple(
            int.from_bytes(counts.get(i.to_bytes(_U32, sys.byteorder)) or b"", sys.byteorder)
            for i in range(len(TEST_ENDS))
        )

    def begin_epoch(self) -> None:
        """Make every counter's state unknown, because calls may have been missed; not after stop()."""
        if self._epoch:
            self._set_epoch(self._epoch + 1)

    def stop(self) -> list[Observation]:
        """Stop taking calls, and return those that were still in the ring. The counts stay."""
        self._set_epoch(0)
        calls: list[Observation] = []
        while batch := self.poll(0):
            calls += batch
        return calls

    def close(self) -> None:
        """Detach the probes."""
        self._set_epoch(0)
        self._ring.close()
        self.census.close()
        handover.close([*self._links, *self._programs])
        for each in self._maps.values():
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_sizes(self) -> None:
        """Raise ProbeError if the maps are of another version: during an upgrade a loader can be newer."""
        keys = {"slots": SLOT_KEY.size, "errors": ERROR_KEY.size}
        values = {
            "control": CONTROL.size,
            "pmcs": self.pmc.size,
            "vcpus": VCPU.size,
            "processes": SHARE.size,
            "given_back": GIVEN_BACK.size,
        }
        if (
            not (self._maps.keys() >= keys.keys() | values.keys())
            or any(self._maps[name].key_size != size for name, size in keys.items())
            or any(self._maps[name].value_size != size for name, size in values.items())
        ):
            raise ProbeError("the loader's maps are not those of this version", "restart vpmu-agent")

    def _error_keys(self) -> Iterator[tuple[int, int]]:
        for keys, _ in self._maps["errors"].chunks():
            yield from ERROR_KEY.struct.iter_unpack(keys)

    def _set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._maps["control"].put(bytes(_U32), CONTROL.struct.pack(epoch, self._stream, self._tester))

    def _misses(self) -> int:
        return sum(map(recursion_misses, self._programs))

    def _look_for_misses(self) -> None:
        """Begin a new epoch if calls were missed: nobody knows whose, so any pmc's state may be wrong."""
        self._looked = time.monotonic()
        not_run = self._misses()
        if not_run != self._not_run:
            self._not_run = not_run
            self.begin_epoch()


class Unattached:
    """Stands in for `Probes` while there is nothing to attach to: it counts nothing and sends nothing."""

    mode = "none"
    functions: tuple[str, ...] = ()
    census = Census(None)
    self_tested = None
    pmc = pmc_layout(0)

    def poll(self, timeout_s: float) -> list[Observation]:
        """Sleep for `timeout_s`."""
        time.sleep(timeout_s)
        return []

    def pmcs(self) -> Iterator[memoryview]:
        """Yield no pmcs."""
        return iter(())

    def vcpus(self) -> Iterator[memoryview]:
        """Yield no vCPUs."""
        return iter(())

    def shares(self) -> dict[int, Share]:
        """Return no processes."""
        return {}

    def errors(self) -> Iterator[tuple[int, int, int]]:
        """Yield no errors."""
        return iter(())

    def errnos(self) -> dict[tuple[int, tuple[int, int, int]], int]:
        """Return no errnos."""
        return {}

    def starvations(self) -> int:
        """Return 0: nothing is seen."""
        return 0

    def lost(self) -> dict[str, int]:
        """Return no reasons: nothing is lost."""
        return {}

    def forget(self, tgids: Set[int]) -> None:
        """Do nothing: there are no entries."""

    def give_back(self) -> GivenBack:
        """Return no entries."""
        return GivenBack()

    def occupancy(self, _shares: Mapping[int, Share]) -> dict[str, tuple[int, int]]:
        """Return no maps."""
        return {}

    def stop(self) -> list[Observation]:
        """Return no calls."""
        return []

    def close(self) -> None:
        """Do nothing: nothing is attached."""


NO_DURATIONS, NO_READS, STREAM = "--no-durations", "--no-reads", "--stream"
"""The loader's options."""


def loader_command(
    mode: Mode | Literal["census"],
    *,
    durations: bool = True,
    reads: bool = True,
    stream: bool = False,
) -> list[str]:
    """Return the command of a loader without its last argument, the descriptor to hand over on.

    Without `durations` its probes do not measure how long calls take; without `reads` there are none for the
    calls that are only counted. With `stream` they have room to send every call.
    """
    options = [] if durations else [NO_DURATIONS]
    if not reads:
        options.append(NO_READS)
    if stream:
        options.append(STREAM)
    # -P: a module of the same name in the current directory is not ours.
    return [sys.executable, "-P", "-m", "vpmu_agent.loader.main", mode, *options]


def attach(*, mode: Mode = "auto", vms: VmNames, stream: bool = True) -> Probes:
    """Attach the probes to the running kernel, in mode "auto" by fentry/fexit if possible, else by kprobes.

    Raise KernelError if the kernel lacks something that the probes need, and ProbeError if it refuses them.
    """
    with _loader(mode, stream=stream) as channel:
        return adopt(channel, vms=vms, stream=stream)


def attach_census() -> Census:
    """Attach the census alone. Raise KernelError if the kernel or bcc refuses it."""
    with _loader("census") as channel:
        handed = handover.receive(channel)
        return Census(handed.census, no_host_events=handed.no_host_events, program=handed.census_program)


@contextmanager
def _loader(mode: Mode | Literal["census"], *, stream: bool = False) -> Iterator[socket.socket]:
    """Run a loader; give the socket on which it hands over."""
    ours, theirs = handover.channel()
    with ours:
        with theirs:
            number = theirs.fileno()
            # In a group of its own: Ctrl-C is for this process, and a loader ends with its parent.
            loader = subprocess.Popen(
                [*loader_command(mode, stream=stream), str(number)], pass_fds=[number], process_group=0
            )
        try:
            handover.wait(ours, _tell_slow)
            yield ours
            with suppress(subprocess.TimeoutExpired):
                loader.wait(_END_S)
        finally:
            loader.kill()
            with suppress(subprocess.TimeoutExpired):  # one that the kernel does not let go of
                loader.wait(_END_S)


def _tell_slow(waited_s: float) -> None:
    print(
        f"the loader is still at work on the probes, after {waited_s:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def adopt(channel: socket.socket, *, vms: VmNames, stream: bool = False) -> Probes:
    """Wait for what a loader hands over, and go live with it. Raise the KernelError that the loader met."""
    handed = handover.receive(channel)
    return Probes(handed, vms=vms, stream=stream)
