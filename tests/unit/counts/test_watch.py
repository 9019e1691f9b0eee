from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import pytest

from tests.support.counted import Maps, Processes, by_pmc
from tests.support.looks import look, pmc, vcpu
from tests.support.scenes import Guest
from vpmu_agent.counts import watch as module
from vpmu_agent.counts.counters import Counters
from vpmu_agent.counts.counts import DURATION_BUCKETS, FIELDS, Counts, Snapshot
from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.watch import Watch
from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.model.call import CallName
from vpmu_agent.model.rules import State
from vpmu_agent.probes.census import Pmc
from vpmu_agent.vms.modes import Mode, Pmu
from vpmu_agent.vms.names import VmInfo

WEB, DB = 4242, 777
GP0 = 0, 0  # type and index


def creates(counts: Counts) -> int:
    return int(counts.numbers[FIELDS["calls"].start])


def number(counts: Counts, field: str) -> int:
    return sum(counts.numbers[FIELDS[field]])


def created(watch: Watch) -> dict[str, int]:
    """How many events each VM has created."""
    return {name: creates(counts) for name, counts in watch.scrape().vms.items()}


@pytest.fixture
def vms() -> Processes:
    return Processes(web01=WEB, db01=DB)


def test_vcpus_add_up_to_vms_in_the_order_of_names(vms: Processes) -> None:
    web, db = Guest("web01", WEB), Guest("db01", DB)
    watch = Watch(Maps(web.life(), web.life(vcpu=3, size=2), db.life()), vms)
    assert list(created(watch).items()) == [("db01", 1), ("web01", 3)]
    web01 = watch.scrape().vms["web01"]
    assert sum(web01.numbers[DURATION_BUCKETS[0]]) == 3
    assert by_pmc(web01) == {(0, *GP0): (1, 1, 1, 1), (3, *GP0): (2, 2, 0, 2)}


def test_a_vm_that_is_gone_is_shown_once_more_and_then_not(vms: Processes) -> None:
    web, db = Guest("web01", WEB), Guest("db01", DB)
    maps = Maps(web.life(), islice(db.life(size=2), 4), [db.failed_create(pmc=1)])
    watch = Watch(maps, vms)
    before = watch.scrape().vms["db01"]
    assert (number(before, "events"), number(before, "groups")) == (2, 1)
    vms.living = {WEB}
    watch.sweep()
    watch.sweep()  # nobody has seen yet how it ended
    last = watch.scrape().vms["db01"]
    assert creates(last) == creates(before) == 3
    assert last.errors == {28: 1}
    assert by_pmc(last) == by_pmc(before)
    assert (number(last, "events"), number(last, "groups")) == (0, 0)
    assert vms.forgotten == []
    watch.sweep()
    assert created(watch) == {"web01": 1}
    assert vms.forgotten == [DB]


def test_a_migrated_vm_goes_on_counting_under_its_name(vms: Processes) -> None:
    """However often it is scraped: after the source, its target has the name."""
    source, target = Guest("web01", WEB), Guest("web01", DB)
    watch = Watch(Maps(source.life(), target.life(), target.life(vcpu=1)), vms)
    vms.uuid = "8e5e3e56-d4ec-44f5-9363-e3699359ca9b"
    vms.names[DB] = f"web01-{DB}"
    assert created(watch) == {"web01": 1, f"web01-{DB}": 2}
    vms.living = {DB}
    vms.names[DB] = "web01"
    watch.sweep()
    for _ in range(3):
        assert created(watch) == {"web01": 3}
        watch.sweep()
    assert vms.forgotten == [WEB]


def test_a_vm_whose_name_comes_late_goes_on_counting_under_it(vms: Processes) -> None:
    """/proc hides it, and its command line came with a call that was read after the scrape."""
    web = Guest("web01", WEB)
    watch = Watch(Maps(web.life()), vms)
    vms.names[WEB] = f"pid-{WEB}"
    assert created(watch) == {f"pid-{WEB}": 1}
    vms.names[WEB] = "web01"
    vms.uuid = "8e5e3e56-d4ec-44f5-9363-e3699359ca9b"
    watch.sweep()
    assert created(watch) == {"web01": 1}
    assert vms.forgotten == []


def test_the_paused_source_of_a_migration_is_shown_apart(vms: Processes) -> None:
    source, target = Guest("web01", WEB), Guest("web01", DB)
    watch = Watch(Maps(source.life(), target.life(), target.life(vcpu=1)), vms)
    vms.uuid = "8e5e3e56-d4ec-44f5-9363-e3699359ca9b"
    vms.names[DB] = f"web01-{DB}"
    assert created(watch) == {"web01": 1, f"web01-{DB}": 2}
    vms.names = {WEB: f"web01-{WEB}", DB: "web01"}
    watch.sweep()
    assert created(watch) == {"web01": 2, f"web01-{WEB}": 1}
    vms.living = {DB}
    watch.sweep()
    assert created(watch) == {"web01": 2, f"web01-{WEB}": 1}
    watch.sweep()
    assert created(watch) == {"web01": 2}


def test_orphans_of_a_vm_that_is_gone_are_shown(vms: Processes) -> None:
    web = Guest("web01", WEB)
    first, second = (web.call(CallName.CREATE, web.new_event()) for _ in range(2))
    maps = Maps([first, second])
    watch = Watch(maps, vms)
    assert number(watch.scrape().vms["web01"], "orphans") == 1
    vms.living = {DB}
    watch.sweep()
    assert number(watch.scrape().vms["web01"], "orphans") == 1


def test_starvations_of_a_vm_that_is_gone_still_count(vms: Processes) -> None:
    maps = Maps(replace(call, starved=True) for call in Guest("web01", WEB).life())
    watch = Watch(maps, vms)
    assert number(watch.scrape().vms["web01"], "starvations") == 4
    vms.living = {DB}
    watch.sweep()
    assert number(watch.scrape().vms["web01"], "starvations") == 4


def test_the_kernel_forgets_a_process_at_once(vms: Processes) -> None:
    """Another process that gets its tgid must not inherit its counts."""
    maps = Maps(Guest("db01", DB).life())
    watch = Watch(maps, vms)
    watch.scrape()
    vms.living = {WEB}
    watch.sweep()
    assert maps.shares() == {}
    assert [*maps.errors()] == []
    vms.names[DB] = "web02"
    vms.living.add(DB)
    maps.feed(islice(Guest("web02", DB).life(size=2), 2))
    assert created(watch) == {"db01": 1, "web02": 2}
    watch.sweep()
    assert created(watch) == {"web02": 2}
    assert vms.forgotten == []  # its tgid is another VM's now


def test_calls_between_the_last_scrape_and_the_end_count(vms: Processes) -> None:
    db = Guest("db01", DB)
    maps = Maps(db.life())
    watch = Watch(maps, vms)
    watch.scrape()
    maps.feed(db.life())
    vms.living = {WEB}
    watch.sweep()
    assert created(watch) == {"db01": 2}


def test_a_call_that_comes_after_the_end_is_still_the_vms(vms: Processes) -> None:
    """A zombie's last thread may still be taking its VM down."""
    db = Guest("db01", DB)
    life = [*db.life(size=2)]
    maps = Maps(life[:-1])
    watch = Watch(maps, vms)
    watch.scrape()
    vms.living = {WEB}
    watch.sweep()
    maps.feed(life[-1:])
    for _ in range(2):
        counts = watch.scrape().vms["db01"]
        assert counts.numbers[FIELDS["calls"]].tolist() == [2, 2, 0, 2]
        watch.sweep()
    assert created(watch) == {}
    assert vms.forgotten == [DB]


def test_a_vm_that_was_restarted_goes_on_counting(vms: Processes) -> None:
    maps = Maps(islice(Guest("web01", WEB).life(size=2), 4))
    watch = Watch(maps, vms)
    assert created(watch) == {"web01": 2}
    vms.names[9999], vms.living = "web01", {9999}
    watch.sweep()
    maps.feed(Guest("web01", 9999).life())
    for _ in range(3):
        web01 = watch.scrape().vms["web01"]
        assert (creates(web01), number(web01, "events")) == (3, 0)
        assert by_pmc(web01) == {(0, *GP0): (3, 3, 1, 1)}
        watch.sweep()
    assert vms.forgotten == [WEB]
    vms.living = set()
    watch.sweep()
    assert created(watch) == {"web01": 3}
    watch.sweep()
    assert created(watch) == {}
    assert vms.forgotten == [WEB, 9999]


def test_without_a_scrape_a_vm_that_is_gone_is_dropped_in_the_end(
    vms: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)  # nobody scrapes, but it looks for itself
    maps = Maps(Guest("web01", WEB).life())
    watch = Watch(maps, vms)
    vms.living = set()
    watch.sweep()
    assert maps.shares() == {}
    assert vms.forgotten == []
    monkeypatch.setattr(module, "KEEP_GONE_S", 0.0)
    watch.sweep()
    assert vms.forgotten == [WEB]
    assert created(watch) == {}


def test_vms_that_are_gone_and_not_scraped_are_kept_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that went first are dropped, and counted."""
    monkeypatch.setattr(module, "MAX_GONE", 10)
    vms, maps = Processes(web01=WEB), Maps(Guest("web01", WEB).life())
    watch = Watch(maps, vms)
    for number in range(15):
        vms.names[1000 + number] = f"vm{number:02}"
        vms.living.add(1000 + number)
        maps.feed(Guest(f"vm{number:02}", 1000 + number).life())
        watch.snapshot()
        vms.living.discard(1000 + number)
        watch.sweep()
        watch.sweep()
    snapshot = watch.scrape()
    assert list(snapshot.vms) == [*[f"vm{number:02}" for number in range(5, 15)], "web01"]
    assert snapshot.dropped_vms == 5
    watch.sweep()
    assert (list(watch.scrape().vms), watch.scrape().dropped_vms) == (["web01"], 5)
    assert sorted(vms.forgotten) == [*range(1000, 1015)]


def test_maps_are_not_read_at_every_sweep(vms: Processes) -> None:
    maps = Maps(Guest("web01", WEB).life())
    watch = Watch(maps, vms)
    watch.scrape()
    maps.is_closed = True
    watch.sweep()


def test_one_sweep_finds_all_that_are_gone() -> None:
    tgids = range(1, 96)
    vms = Processes(**{f"guest-{tgid}": tgid for tgid in tgids})
    maps = Maps(*(Guest(vms.names[tgid], tgid).life() for tgid in tgids))
    watch = Watch(maps, vms)
    watch.scrape()
    vms.living = {17}
    watch.sweep()
    assert list(maps.shares()) == [17]


def test_it_is_known_who_a_vm_is_until_it_was_shown_for_the_last_time(vms: Processes) -> None:
    watch = Watch(Maps(Guest("web01", WEB).life(), Guest("db01", DB).life()), vms)
    assert {name: about.tgid for name, about in watch.scrape().about.items()} == {"db01": DB, "web01": WEB}
    vms.living = {WEB}
    watch.sweep()
    assert watch.scrape().about["db01"].tgid == DB
    watch.sweep()
    assert list(watch.scrape().about) == ["web01"]


def test_a_vm_that_was_restarted_is_who_it_is_now(vms: Processes) -> None:
    maps = Maps(Guest("web01", WEB).life())
    watch = Watch(maps, vms)
    watch.scrape()
    vms.names[9999], vms.living = "web01", {9999}
    watch.sweep()
    maps.feed(Guest("web01", 9999).life())
    assert watch.scrape().about["web01"].tgid == 9999


def test_a_vm_that_ended_twice_is_who_it_was_last(vms: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = Maps(Guest("web01", WEB).life())
    watch = Watch(maps, vms)
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)  # nobody scrapes
    watch.sweep()
    vms.names[9999], vms.living = "web01", {9999}
    watch.sweep()
    maps.feed(Guest("web01", 9999).life())
    watch.sweep()
    vms.living = set()
    watch.sweep()
    assert watch.scrape().about["web01"].tgid == 9999


class Forgetful(Processes):
    """`Vms` once it was told of a process's first call: it takes it for a new one until it looks again."""

    told: frozenset[int] = frozenset()

    def is_alive(self, tgid: int) -> bool:
        return tgid not in self.told and super().is_alive(tgid)

    def about(self, tgid: int) -> VmInfo:
        self.told -= {tgid}
        return super().about(tgid)


def test_a_vm_with_another_vcpu_is_not_gone() -> None:
    vms = Forgetful(web01=WEB)
    watch = Watch(Maps(islice(Guest("web01", WEB).life(), 1)), vms)
    watch.scrape()
    vms.told = frozenset({WEB})
    watch.sweep()
    assert number(watch.scrape().vms["web01"], "events") == 1


def test_a_tgid_that_is_in_use_again_was_the_former_vms() -> None:
    vms = Forgetful(web01=WEB)
    maps = Maps(Guest("web01", WEB).life())
    watch = Watch(maps, vms)
    watch.scrape()
    vms.told, vms.names[WEB] = frozenset({WEB}), "db01"
    watch.sweep()
    maps.feed(Guest("db01", WEB).life(size=2))
    assert created(watch) == {"db01": 2, "web01": 1}


def test_a_name_that_was_told_after_the_scrape_is_the_one_that_stays() -> None:
    vms = Processes(**{"pid-4242": WEB})
    watch = Watch(Maps(Guest("web01", WEB).life()), vms)
    vms.living = set()
    assert created(watch) == {"pid-4242": 1}  # gone before anyone looked, and the ring is not read yet
    vms.names[WEB] = "web01"
    watch.sweep()
    assert created(watch) == {"web01": 1}


def test_who_came_and_went_since_the_probes_were_polled_is_for_the_next_sweep() -> None:
    """The daemon was stopped in between, for as long as that took."""
    vms = Processes(**{"pid-4242": WEB})
    maps = Maps()
    watch = Watch(maps, vms)
    among = watch.processes()
    maps.feed(Guest("web01", WEB).life())
    vms.living = set()
    assert created(watch) == {"pid-4242": 1}
    watch.sweep(among)
    vms.names[WEB] = "web01"  # the ring is read
    watch.sweep(watch.processes())
    assert created(watch) == {"web01": 1}


def test_other_probes_take_over_with_nothing_lost(vms: Processes) -> None:
    web, db = Guest("web01", WEB), Guest("db01", DB)
    former = Maps(islice(web.life(size=2), 2), db.life(), [web.failed_create(pmc=1)])
    former.losses = {"ring_full": 2, "pmcs_full": 1}
    watch = Watch(former, vms)
    vms.living = {WEB}
    latter = Maps()
    watch.replace(latter)
    former.is_closed = True
    latter.feed(web.life(vcpu=1))
    latter.losses = {"ring_full": 5}
    for _ in range(2):
        found = watch.scrape()
        assert found.loads == 2
        assert found.lost == {"ring_full": 7, "pmcs_full": 1}
        assert creates(found.vms["web01"]) == 4
        assert found.vms["web01"].errors == {28: 1}
        assert number(found.vms["web01"], "events") == 0  # as far as the latter can know
    assert creates(found.vms["db01"]) == 1
    watch.sweep()
    assert created(watch) == {"db01": 1, "web01": 4}
    watch.sweep()
    assert created(watch) == {"web01": 4}


def test_no_count_goes_backwards_while_vms_come_and_go() -> None:
    """Scrapes in threads, while a VM is restarted again and again and the probes are replaced."""
    vms = Processes()
    maps = [Maps()]
    watch = Watch(maps[0], vms)
    done = threading.Event()
    seen: list[list[int]] = [[], []]

    def look(at: list[int]) -> None:
        while not done.is_set():
            if "web01" in (found := created(watch)):
                at.append(found["web01"])

    threads = [threading.Thread(target=look, args=(at,)) for at in seen]
    for thread in threads:
        thread.start()
    try:
        for tgid in range(1, 40):
            restart(vms, tgid)
            maps[0].feed(Guest("web01", tgid).life())
            watch.sweep()
            if tgid % 10 == 0:
                latter = Maps()
                watch.replace(latter)
                maps[0] = latter
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert created(watch) == {"web01": 39}
    for at in seen:
        assert at == sorted(at)
        assert at


def restart(vms: Processes, tgid: int) -> None:
    vms.names[tgid], vms.living = "web01", {tgid}


def test_a_scrape_does_not_wait_for_a_look_into_proc(vms: Processes) -> None:
    maps = Maps(Guest("web01", WEB).life())
    watch = Watch(maps, vms)
    watch.scrape()
    during: list[dict[str, int]] = []
    is_alive: Callable[[int], bool] = vms.is_alive

    def slow(tgid: int) -> bool:
        scrape = threading.Thread(target=lambda: during.append(created(watch)))
        scrape.start()
        scrape.join(10)
        return is_alive(tgid)

    vms.is_alive = slow  # type: ignore[method-assign]
    watch.sweep()
    assert during == [{"web01": 1}]


class SlowMaps(Maps):
    """A read of them takes until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def errors(self) -> Iterator[tuple[int, int, int]]:
        self.reads += 1
        self.begun.release()
        assert self.go_on.acquire(timeout=30)
        return super().errors()


def test_scrapes_that_wait_share_one_read(vms: Processes) -> None:
    """Twenty at once are one read that is under way, and one for all who come before it ends.

    On a busy machine some come later, and share another.
    """
    maps = SlowMaps()
    watch = Watch(maps, vms, per_counter=False)
    found: list[Snapshot] = []
    clients = [threading.Thread(target=lambda: found.append(watch.scrape())) for _ in range(20)]
    clients[0].start()
    assert maps.begun.acquire(timeout=30)
    maps.feed(Guest("web01", WEB).life())  # after the first had looked at the vCPUs
    for client in clients[1:]:
        client.start()
    deadline = time.monotonic() + 30
    while sum(client.is_alive() for client in clients) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # for the last of them to ask
    maps.go_on.release(20)
    for client in clients:
        client.join(timeout=30)
    assert len(found) == 20
    assert len({id(snapshot) for snapshot in found}) == maps.reads
    assert 2 <= maps.reads < 10
    assert [len(snapshot.vms) for snapshot in found].count(1) == 19


def test_a_read_that_fails_fails_nobody_elses_scrape(vms: Processes) -> None:
    class Failing(Maps):
        failures = 1

        def errors(self) -> Iterator[tuple[int, int, int]]:
            if self.failures:
                self.failures -= 1
                raise KernelError("cannot read the BPF map errors")
            return super().errors()

    watch = Watch(Failing(), vms)
    with pytest.raises(KernelError):
        watch.scrape()
    assert watch.scrape().vms == {}


def found(*pmcs: Pmc) -> Found:
    """What the census finds of web01."""
    counters = Counters().take(look(vcpu(), *pmcs))
    return Found({"web01": [Pmu(Mode.EMULATED)]}, {"web01": counters[WEB]}, {"web01": WEB}, pulls=1)


def test_what_was_there_before_is_known_by_the_census_until_there_are_calls(vms: Processes) -> None:
    maps = Maps()
    watch = Watch(maps, vms)
    assert watch.scrape().vms == {}
    watch.show_guests(found(pmc(0), pmc(1), pmc(2, state=-1)))
    web01 = watch.scrape().vms["web01"]
    assert number(web01, "events") == 3
    groups = dict(zip(State, web01.numbers[FIELDS["groups"]], strict=True))
    assert {state: count for state, count in groups.items() if count} == {State.RUNNING: 2, State.PAUSED: 1}
    assert creates(web01) == 0
    maps.feed(Guest("web01", WEB).life())  # of gp0, which holds nothing at its end
    assert number(watch.scrape().vms["web01"], "events") == 2


def test_a_vm_without_calls_ends_too(vms: Processes) -> None:
    watch = Watch(Maps(), vms)
    watch.show_guests(found(pmc(0)))
    assert number(watch.scrape().vms["web01"], "events") == 1
    vms.living = {DB}
    watch.sweep()
    watch.show_guests(found(pmc(0)))  # the census was pulled before
    assert number(watch.scrape().vms["web01"], "events") == 0
    watch.sweep()
    assert watch.scrape().vms == {}


def test_a_vm_that_cannot_be_traced_has_no_counts(vms: Processes) -> None:
    watch = Watch(Maps(), vms)
    watch.show_guests(replace(found(), pmus={"web01": [Pmu(Mode.MEDIATED)]}))
    assert watch.scrape().vms == {}
