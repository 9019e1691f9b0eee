"""Programs from the cache instead of the compiler: the same maps and calls, and only from files of root's."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bpf import verifier
from tests.bpf.conftest import ROOT, Lookalike
from tests.bpf.twins import GROUPED, task_offsets
from vpmu_agent.kernel.census import read_census_layout
from vpmu_agent.kernel.errors import ProbeError
from vpmu_agent.loader.cache import KEPT, Cache
from vpmu_agent.loader.image import PLACEHOLDERS, Image, with_placeholders
from vpmu_agent.loader.program import program_source, toolchain_files
from vpmu_agent.probes import adopt, handover
from vpmu_agent.probes.handover import Handover
from vpmu_agent.probes.maps import Map
from vpmu_agent.vms.names import Vms

NOBODY = 65534


class Loaders:
    """Loaders of probes on the look-alike, with one cache; `said` is what the last one wrote to stderr."""

    def __init__(self, lookalike: Lookalike, folder: Path) -> None:
        self.folder = folder
        self.said = ""
        self._lookalike = lookalike

    @contextmanager
    def handed(self, *, no_compiler: bool = False) -> Iterator[Handover]:
        """What a loader hands over; `no_compiler` has bcc's import fail."""
        ours, theirs = handover.channel()
        plan = self._lookalike.plan(cache=str(self.folder), census=True)
        command = [sys.executable, "-m", "tests.bpf.loader", plan]
        if no_compiler:
            command[1:3] = ["-c", NO_COMPILER]
        with ours, theirs:
            number = theirs.fileno()
            done = subprocess.run(
                [*command, str(number)], pass_fds=[number], check=False, cwd=ROOT, stderr=subprocess.PIPE
            )
            self.said = done.stderr.decode()
            theirs.close()
            handed = handover.receive(ours)
            try:
                yield handed
            finally:
                handover.close(handed.descriptors())

    def is_warm(self) -> bool:
        """Whether a loader needs no compiler."""
        try:
            with self.handed(no_compiler=True):
                return True
        except ProbeError:
            assert "no compiler here" in self.said
            return False

    @property
    def file(self) -> Path:
        """The one file in the cache."""
        (file,) = self.folder.iterdir()
        return file


NO_COMPILER = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "bcc.libbcc":
            raise ImportError("no compiler here")
sys.meta_path.insert(0, Refuse())
from tests.bpf.loader import main
main(*sys.argv[1:])
"""


Warm = Callable[[Lookalike], Loaders]


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Lookalike], Path]:
    """Caches with a look-alike's programs, each compiled once."""
    made: dict[Path, Path] = {}

    def template(lookalike: Lookalike) -> Path:
        if lookalike.path not in made:
            folder = made[lookalike.path] = tmp_path_factory.mktemp("template") / "cache"
            with Loaders(lookalike, folder).handed():
                pass
        return made[lookalike.path]

    return template


@pytest.fixture
def warm(templates: Callable[[Lookalike], Path], tmp_path: Path) -> Warm:
    """Makes loaders whose cache has their programs."""

    def loaders(lookalike: Lookalike) -> Loaders:
        folder = tmp_path / lookalike.path.parent.name
        return Loaders(lookalike, shutil.copytree(templates(lookalike), folder))

    return loaders


@pytest.fixture
def loaders(stock: Lookalike, warm: Warm) -> Loaders:
    return warm(stock)


def maps_of(handed: Handover) -> dict[str, tuple[int, int, int]]:
    found = {}
    for name, descriptor in handed.maps.items():
        of = Map(name, os.dup(descriptor))
        found[name] = (of.key_size, of.value_size, of.room)
        of.close()
    return found


def test_what_the_cache_has_is_what_was_compiled(stock: Lookalike, tmp_path: Path) -> None:
    loaders = Loaders(stock, tmp_path / "cache")
    with loaders.handed() as cold:
        compiled_maps, compiled_counts = maps_of(cold), (len(cold.programs), len(cold.links))
        assert cold.census is not None
    assert (loaders.folder.stat().st_mode & 0o777, loaders.file.stat().st_mode & 0o777) == (0o755, 0o644)
    with loaders.handed(no_compiler=True) as warm:
        assert (maps_of(warm), (len(warm.programs), len(warm.links))) == (compiled_maps, compiled_counts)
        assert warm.census is not None
    assert loaders.said == ""


@pytest.mark.parametrize("kernel", ["stock", "grouped"])
def test_calls_are_seen_with_programs_from_the_cache(
    kernel: str, warm: Warm, request: pytest.FixtureRequest
) -> None:
    lookalike: Lookalike = request.getfixturevalue(kernel)
    ours, theirs = handover.channel()
    with ours, theirs, warm(lookalike).handed(no_compiler=True) as handed:
        handover.send(theirs, handed)
        with adopt(ours, vms=Vms(), stream=True) as probes:
            run = lookalike.run(probes, threads=2, rounds=500)
    assert not any(run.lost.values())
    assert run.told["create"] == 1000
    assert run.seen() == {name: count for name, count in run.told.items() if count}


def test_another_kernel_has_a_file_of_its_own(stock: Lookalike, grouped: Lookalike, warm: Warm) -> None:
    assert not Loaders(grouped, warm(stock).folder).is_warm()


def test_only_the_addresses_of_a_kernel_may_differ(stock: Lookalike) -> None:
    def key(**changed: int) -> str:
        constants, _ = with_placeholders(stock.constants | changed)
        return program_source(constants).fingerprint()

    assert key() == key(VPMU_HANDLER=0xFFFFFFFF81234560)
    assert key() != key(VPMU_HANDLER_INTR=0xFFFFFFFF81234560)  # one that is there, and not one that moved
    assert key() != key(VPMU_PMC_IDX=77)


def damage_header(file: Path) -> None:
    file.write_bytes(b"x" + file.read_bytes()[1:])


def damage_content(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_header, damage_content, cut, empty])
def test_a_damaged_file_is_not_used(loaders: Loaders, damage: Callable[[Path], None]) -> None:
    damage(loaders.file)
    assert not loaders.is_warm()
    assert loaders.said.startswith(f"{loaders.file} is damaged (")


def test_a_file_that_is_not_used_is_written_again(loaders: Loaders) -> None:
    cut(loaders.file)
    with loaders.handed() as handed:
        assert handed.links
    assert (
        loaders.said == f"{loaders.file} is damaged (its checksum is wrong): compiling the programs again\n"
    )
    assert loaders.is_warm()
    assert loaders.said == ""


def give_away(path: Path) -> None:
    os.chown(path, NOBODY, -1)


def let_group_write(path: Path) -> None:
    path.chmod(0o775)


def let_all_write(path: Path) -> None:
    path.chmod(0o757)


@pytest.mark.parametrize("open_up", [give_away, let_group_write, let_all_write])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_others_may_write_is_not_used(
    loaders: Loaders, what: str, open_up: Callable[[Path], None]
) -> None:
    spoiled = loaders.file if what == "file" else loaders.folder
    open_up(spoiled)
    assert not loaders.is_warm()
    assert loaders.said.startswith(f"{spoiled} is not used: ")


def test_a_link_to_a_file_is_not_followed(loaders: Loaders, tmp_path: Path) -> None:
    file = loaders.file
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert not loaders.is_warm()


def test_a_file_of_another_source_is_not_taken_for_this_one(
    stock: Lookalike, grouped: Lookalike, warm: Warm
) -> None:
    ours = warm(stock)
    ours.file.write_bytes(warm(grouped).file.read_bytes())
    assert not ours.is_warm()
    assert "it is another one's" in ours.said


def test_what_the_kernel_refuses_is_compiled_again(loaders: Loaders) -> None:
    """As if this were another kernel's, whose verifier took it."""
    fingerprint = loaders.file.stem
    good = Cache(loaders.folder).find(fingerprint)
    assert good is not None
    bad = replace(good, programs=dict.fromkeys(good.programs, bytes(8)))
    Cache(loaders.folder).keep(fingerprint, bad, toolchain_files())
    with loaders.handed() as handed:
        assert len(handed.programs) == len(verifier.programs())
    assert loaders.said == ""
    assert Cache(loaders.folder).find(fingerprint) == good


def test_a_folder_that_cannot_be_made_is_done_without(stock: Lookalike, tmp_path: Path) -> None:
    loaders = Loaders(stock, tmp_path / "nowhere" / "cache")
    with loaders.handed() as handed:
        assert handed.links
    assert loaders.said == ""
    assert not loaders.folder.exists()


IMAGE = Image((), {"program": bytes(16)}, "bcc 1.2.3 and LLVM 4")


def test_what_another_compiler_made_is_not_used(tmp_path: Path) -> None:
    tool = tmp_path / "libbcc.so.0"
    tool.write_bytes(b"one")
    cache = Cache(tmp_path / "cache")
    cache.keep("f" * 64, IMAGE, [tool])
    assert cache.find("f" * 64) == IMAGE
    tool.write_bytes(b"another")
    assert cache.find("f" * 64) is None
    tool.unlink()
    assert cache.find("f" * 64) is None


def test_the_newest_files_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = Cache(folder)
    for number in range(KEPT + 3):
        cache.keep(f"{number:064}", IMAGE, [])
        os.utime(folder / f"{number:064}.bpf", (number, number))
    assert [cache.find(f"{number:064}") is not None for number in range(KEPT + 3)] == [False] * 3 + [
        True
    ] * KEPT


def test_an_address_is_put_where_it_belongs_and_nowhere_else() -> None:
    """So it is compiled by this machine's bcc; by others, as tests.bpf.verifier says."""
    assert verifier.put_addresses()["refused"] == ""


def test_every_address_is_in_the_programs() -> None:
    constants = GROUPED | task_offsets() | read_census_layout().constants
    known, _ = with_placeholders(constants | PLACEHOLDERS)
    code = b"".join(verifier.resolved(known, {}).values())
    for number in PLACEHOLDERS.values():
        low, high = (struct.pack("=I", half) for half in (number & 0xFFFFFFFF, number >> 32))
        assert low + bytes(4) + high in code
