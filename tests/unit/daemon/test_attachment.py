"""KVM comes, goes and comes again under a daemon, whose parent and loaders are the test's."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support.counted import Maps
from tests.support.scenes import Guest, checked
from vpmu_agent.counts.recent import KEPT, Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.daemon.attachment import Attachment
from vpmu_agent.daemon.separation import Link
from vpmu_agent.daemon.source import ProbeSource
from vpmu_agent.kernel.errors import KernelError, KvmNotLoadedError, ProbeError
from vpmu_agent.model.rules import Kind
from vpmu_agent.model.verdict import Observation
from vpmu_agent.probes import handover
from vpmu_agent.probes.census import Census
from vpmu_agent.probes.handover import PATIENCE_S, SLOW_S
from vpmu_agent.vms.names import Vms


class Loaded(Maps):
    """Probes of one loader."""

    census = Census(None)
    is_stopped = False
    sent: tuple[Observation, ...] = ()

    def poll(self, _timeout_s: float) -> list[Observation]:
        sent, self.sent = self.sent, ()
        return list(sent)

    def stop(self) -> list[Observation]:
        self.is_stopped = True
        return self.poll(0)

    def close(self) -> None:
        assert self.is_stopped
        self.is_closed = True


class FakeHost:
    """A KVM, and loaders that answer when the test says so."""

    def __init__(self) -> None:
        self.kvm: int | None = 1
        self.answers: list[Loaded | KernelError] = []
        self.time = 100.0
        self.loaders: list[socket.socket] = []
        control, self._parent = handover.channel()
        first, loader = handover.channel()
        self.loaders.append(loader)
        self.link = Link(0, control, first)
        self.source = ProbeSource(kvm_instance=lambda: self.kvm, why_no_vpmu=lambda: None, adopt=self.adopt)

    def answer(self, what: Loaded | KernelError) -> None:
        """The loader that was started last hands this over."""
        self.answers.append(what)
        self.loaders[-1].send(b"see answers")

    def asked(self) -> bool:
        """Whether the daemon asked for one more loader."""
        self._parent.setblocking(False)
        try:
            _, (descriptor,), _, _ = socket.recv_fds(self._parent, 1, 1)
        except BlockingIOError:
            return False
        self.loaders.append(socket.socket(fileno=descriptor))
        return True

    def adopt(self, channel: socket.socket, **_: object) -> Loaded:
        channel.recv(99)
        answer = self.answers.pop(0)
        if isinstance(answer, KernelError):
            raise answer
        return answer


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHost]:
    host = FakeHost()
    monkeypatch.setattr("time.monotonic", lambda: host.time)
    yield host
    for each in (*host.loaders, host.link.control, host.link.first):
        each.close()


@pytest.fixture
def recent() -> Recent:
    return Recent()


@pytest.fixture
def attachment(host: FakeHost, recent: Recent) -> Attachment:
    return Attachment(host.link, Vms(), host.kvm, recent.add, host.source)


def start(attachment: Attachment, host: FakeHost) -> tuple[Loaded, Watch]:
    first = Loaded()
    host.answer(first)
    attachment.wait()
    return first, Watch(attachment.probes, Vms())


def test_for_as_long_as_kvm_stays_nothing_is_loaded(host: FakeHost, attachment: Attachment) -> None:
    first, watch = start(attachment, host)
    for _ in range(3):
        attachment.renew(watch)
    assert not host.asked()
    assert first is attachment.probes
    assert attachment.line == "attached fexit probes to 6 functions"


def test_kvm_is_reloaded_between_two_looks(
    host: FakeHost, attachment: Attachment, capsys: pytest.CaptureFixture[str]
) -> None:
    first, watch = start(attachment, host)
    guest = Guest("pid-1", 1)
    first.feed(guest.life())
    host.kvm = 2
    attachment.renew(watch)
    assert first.is_closed
    assert (watch.scrape().functions, attachment.is_attached) == ((), False)
    assert host.asked()
    assert attachment.missing == "the probes are being loaded"
    attachment.renew(watch)  # the loader takes its time
    assert not host.asked()
    second = Loaded()
    host.answer(second)
    attachment.renew(watch)
    assert second is attachment.probes
    assert watch.scrape().functions == second.functions
    assert "pid-1" in watch.scrape().vms  # not lost with the maps
    attachment.renew(watch)
    assert not host.asked()
    assert capsys.readouterr().err.splitlines() == [
        "KVM was unloaded: the probes are off until it is back",
        "attached fexit probes to 6 functions",
    ]


def test_what_the_probes_send_is_reported_to_the_last(
    host: FakeHost, attachment: Attachment, recent: Recent
) -> None:
    first, watch = start(attachment, host)
    guest = Guest("web01", 1)
    failed, *unexpected = checked([guest.failed_create(), *guest.unexpected_pause(pmc=1)])
    first.sent = (failed,)
    attachment.poll(0)
    assert recent.last() == (failed,)
    first.sent = tuple(unexpected)
    host.kvm = 2
    attachment.renew(watch)  # KVM is unloaded before these were read
    assert recent.last() == (unexpected[-1], failed)
    assert [verdict.kind for _, verdict in recent.last()] == [Kind.UNEXPECTED_CALL, Kind.PREDICTED]


def test_only_the_last_are_kept(recent: Recent) -> None:
    guest = Guest("web01", 1)
    failures = [*checked(guest.failed_create(pmc=pmc) for pmc in range(KEPT + 5))]
    for failure in failures:
        recent.add(*failure)
    assert recent.last() == tuple(reversed(failures[5:]))


def test_kvm_is_away_for_a_while(host: FakeHost, attachment: Attachment) -> None:
    _, watch = start(attachment, host)
    host.kvm = None
    for _ in range(3):
        attachment.renew(watch)
    assert not attachment.is_attached
    assert not host.asked()
    assert attachment.missing == "KVM was unloaded"
    host.kvm = 2
    attachment.renew(watch)
    assert host.asked()


def test_kvm_is_loaded_once_more_while_a_loader_is_at_work(host: FakeHost, attachment: Attachment) -> None:
    _, watch = start(attachment, host)
    host.kvm = 2
    attachment.renew(watch)
    assert host.asked()
    host.kvm = 3
    stale = Loaded()
    host.answer(stale)
    attachment.renew(watch)
    assert stale.is_closed
    assert host.asked()


def test_a_loader_that_fails_is_tried_again_after_a_while(
    host: FakeHost, attachment: Attachment, capsys: pytest.CaptureFixture[str]
) -> None:
    _, watch = start(attachment, host)
    host.kvm = 2
    attachment.renew(watch)
    assert host.asked()
    host.answer(ProbeError("no", "see there"))
    attachment.renew(watch)
    assert capsys.readouterr().err.endswith("no; see there; trying again in 30 s\n")
    assert attachment.missing == "no; see there"
    host.time += 29
    attachment.renew(watch)
    assert not host.asked()
    host.time += 2
    attachment.renew(watch)
    assert host.asked()
    host.answer(ProbeError("no"))
    attachment.renew(watch)
    host.kvm = 3  # there is no need to wait for this one
    attachment.renew(watch)
    assert host.asked()


def test_a_loader_that_hangs_is_told_of_and_ended_and_another_one_gets_more_time(
    host: FakeHost, attachment: Attachment, capsys: pytest.CaptureFixture[str]
) -> None:
    _, watch = start(attachment, host)
    host.kvm = 2
    attachment.renew(watch)
    capsys.readouterr()
    for patience in (PATIENCE_S, 2 * PATIENCE_S):
        assert host.asked()
        hanging = host.loaders[-1]
        host.time += SLOW_S
        attachment.renew(watch)
        attachment.renew(watch)
        said = f"the loader is still at work on the probes, after 30 s; it has {patience:.0f} s\n"
        assert capsys.readouterr().err == said
        host.time += patience
        attachment.renew(watch)
        said = f"the loader has sent nothing in {patience:.0f} s: it is ended, and another one started\n"
        assert capsys.readouterr().err == said
        assert hanging.recv(1) == b""  # nobody waits for it any more
    assert host.asked()
    host.answer(Loaded())
    attachment.renew(watch)
    assert attachment.is_attached


@pytest.mark.parametrize("error", [KvmNotLoadedError("no KVM", "load it"), KernelError("no BTF")])
def test_the_first_failure_ends_it(host: FakeHost, attachment: Attachment, error: KernelError) -> None:
    host.answer(error)
    with pytest.raises(type(error)):
        attachment.wait()


def test_it_waits_for_kvm_if_told_to_but_for_nothing_else(host: FakeHost) -> None:
    host.kvm = None
    attachment = Attachment(host.link, Vms(), host.kvm, Recent().add, host.source)
    host.answer(KvmNotLoadedError("no KVM", "load it"))
    attachment.wait(even_without_kvm=True)
    watch = Watch(attachment.probes, Vms())
    attachment.renew(watch)
    assert not host.asked()
    assert attachment.missing == "no KVM"
    host.kvm = 1
    attachment.renew(watch)
    assert host.asked()
    host.answer(Loaded())
    attachment.renew(watch)
    assert attachment.is_attached
    assert attachment.missing == ""


def test_waiting_for_kvm_is_not_waiting_for_btf(host: FakeHost, attachment: Attachment) -> None:
    host.answer(KernelError("no BTF"))
    with pytest.raises(KernelError, match="no BTF"):
        attachment.wait(even_without_kvm=True)
