"""What a loader sends arrives whole, or is an error that says why."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from vpmu_agent.kernel.errors import BtfError, KernelError, KvmNotLoadedError, ProbeError
from vpmu_agent.probes import handover
from vpmu_agent.probes.handover import Handover


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = handover.channel()
    with ours, theirs:
        yield ours, theirs


def files(*texts: str) -> list[int]:
    """Descriptors that can be told from each other by what is in them."""
    descriptors = []
    for text in texts:
        descriptor = os.memfd_create(text)
        os.write(descriptor, text.encode())
        descriptors.append(descriptor)
    return descriptors


def text(descriptor: int) -> str:
    return os.pread(descriptor, 100, 0).decode()


def test_descriptors_arrive_as_what_they_were_sent_as(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    calls, vcpus, *programs, link = files("calls", "vcpus", "program 0", "program 1", "link")
    handover.send(theirs, Handover("kprobe", {"calls": calls, "vcpus": vcpus}, programs, [link]))
    handover.close([calls, vcpus, *programs, link])
    theirs.close()
    handed = handover.receive(ours)
    assert handed.mode == "kprobe"
    assert {name: text(descriptor) for name, descriptor in handed.maps.items()} == {
        "calls": "calls",
        "vcpus": "vcpus",
    }
    assert [text(descriptor) for descriptor in handed.programs] == ["program 0", "program 1"]
    assert [text(descriptor) for descriptor in handed.links] == ["link"]
    received = [*handed.maps.values(), *handed.programs, *handed.links]
    assert not any(map(os.get_inheritable, received))
    handover.close(received)


def test_what_the_census_lacks_arrives(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    handover.send(theirs, Handover("census", no_host_events="no perf_read"))
    assert handover.receive(ours).no_host_events == "no perf_read"


def test_the_census_arrives_or_why_there_is_none(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    calls, program, link, census, walks = files("calls", "program", "link", "census", "walks")
    sent = Handover("fexit", {"calls": calls}, [program], [link], census=census)
    handover.send(theirs, sent)
    handed = handover.receive(ours)
    assert handed.census is not None
    assert [text(descriptor) for descriptor in (*handed.links, handed.census)] == ["link", "census"]
    assert (handed.census_program, handed.no_census) == (None, "")
    handover.close(handed.descriptors())
    handover.send(theirs, replace(sent, census_program=walks))
    handed = handover.receive(ours)
    assert handed.census is not None
    assert handed.census_program is not None
    assert [text(descriptor) for descriptor in (handed.census, handed.census_program)] == ["census", "walks"]
    handover.close([calls, program, link, census, walks, *handed.descriptors()])
    handover.send(theirs, Handover("fexit", no_census="cannot load the census: refused"))
    handed = handover.receive(ours)
    assert (handed.census, handed.no_census) == (None, "cannot load the census: refused")


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (KvmNotLoadedError("no KVM", "load it"), KvmNotLoadedError),
        (ProbeError("refused"), ProbeError),
        (BtfError("no field", "report it"), KernelError),
    ],
)
def test_an_error_keeps_its_words_and_what_the_daemon_must_tell_apart(
    ends: tuple[socket.socket, socket.socket], sent: KernelError, kind: type[KernelError]
) -> None:
    ours, theirs = ends
    handover.send_error(theirs, sent)
    with pytest.raises(KernelError) as raised:
        handover.receive(ours)
    assert type(raised.value) is kind
    assert str(raised.value) == str(sent)


def test_a_loader_that_ends_without_a_word(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.close()
    with pytest.raises(ProbeError, match="ended without sending anything"):
        handover.receive(ours)


def test_descriptors_for_which_there_is_no_room(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    links = files(*map(str, range(20)))
    handover.send(theirs, Handover("fexit", links=links))
    handover.close(links)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(ProbeError, match="sent 20 descriptors and only 0 arrived"):
            handover.receive(ours)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
