"""Edits Debian's kernel sources: grouped events and the lab's controls of them (edits/).

Each edit is a semantic patch, applied file by file; a rule that finds nothing where it must is an error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.debian import Root

from ..errors import LabError

EDITS = Path(__file__).resolve().parent / "edits"

KVM = "arch/x86/kvm"
KVM_HOST = "arch/x86/include/asm/kvm_host.h"
PERF = "kernel/events/core.c"
PERF_HEADER = "include/linux/perf_event.h"
CREATE = "perf_event_create_kernel_counter"


@dataclass(frozen=True, slots=True)
class Patch:
    """A semantic patch and where its rules must match: rules by file."""

    name: str
    rules: Mapping[str, frozenset[str]]


# The design, in its steps.
DESIGN = (
    Patch(
        "kvm_pmc.cocci",
        {
            KVM_HOST: frozenset({"layout"}),
            f"{KVM}/svm/pmu.c": frozenset({"gp"}),
            f"{KVM}/vmx/pmu_intel.c": frozenset({"gp", "fixed"}),
        },
    ),
    Patch(
        "kvm_group.cocci",
        {
            f"{KVM}/pmu.c": frozenset({"create", "pause"}),
            f"{KVM}/pmu.h": frozenset({"release"}),
        },
    ),
)
LAB = (
    Patch(
        "lab_control.cocci",
        {
            KVM_HOST: frozenset({"state"}),
            PERF: frozenset({"fail"}),
            f"{KVM}/pmu.c": frozenset({"access", "member", "enable", "rdpmc", "reset"}),
            f"{KVM}/pmu.h": frozenset({"declared", "release", "keep", "wrmsr"}),
            f"{KVM}/svm/pmu.c": frozenset({"rdmsr_amd"}),
            f"{KVM}/vmx/pmu_intel.c": frozenset({"rdmsr_intel"}),
        },
    ),
)
NEW_FILES = ("lab_control.c", "lab_control.h")


def apply(tree: Path, *, root: Root, scratch: Path, at: str) -> None:
    """Edits the kernel sources in `tree`, by the spatch of `root`, which sees the folder `scratch` in `at`.

    Raises LabError where a place to edit is not found, and spatch's own words where it cannot read a patch.
    """
    for patch in (_group_leader(tree), *DESIGN, *LAB):
        for file, rules in patch.rules.items():
            matched = _spatch(EDITS / patch.name, tree / file, root, scratch, at)
            if missing := rules - matched:
                raise LabError(
                    f"{patch.name} found no place for {', '.join(sorted(missing))} in {file} of {tree.name}: "
                    "these sources are not those it was written for; adapt the patch"
                )
    for name in NEW_FILES:
        shutil.copy(EDITS / name, tree / KVM)
    with (tree / KVM / "Makefile").open("a") as makefile:
        makefile.write("\nkvm-y += lab_control.o\n")


def inputs() -> list[Path]:
    """The files that say what apply() does."""
    return [Path(__file__), *sorted(EDITS.iterdir())]


def _group_leader(tree: Path) -> Patch:
    """perf_group_leader.cocci, with every caller in the tree, also those that are not built here."""
    where = {PERF: frozenset({"definition"}), PERF_HEADER: frozenset({"prototype"})}
    grep = ["grep", "-rlw", "--include=*.[ch]", CREATE, "."]
    found = subprocess.run(grep, cwd=tree, capture_output=True, text=True, check=True).stdout
    callers = {line.removeprefix("./") for line in found.splitlines()} - where.keys()
    return Patch("perf_group_leader.cocci", where | dict.fromkeys(sorted(callers), frozenset({"callers"})))


def _spatch(patch: Path, file: Path, root: Root, scratch: Path, at: str) -> set[str]:
    """Applies `patch` to `file`; returns the names of the rules that matched."""
    text = patch.read_text()
    rules = re.findall(r"^@(\w+)@$", text, re.MULTILINE)
    # spatch itself says nothing of rules that do not match.
    reports = (f'\n@script:python depends on {rule}@\n@@\nprint("matched {rule}")\n' for rule in rules)
    script = scratch / "edit.cocci"
    script.write_text(text + "".join(reports))
    done = root.run(
        "spatch",
        "--sp-file",
        f"{at}/{script.name}",
        "--in-place",
        "--smpl-spacing",
        "--no-includes",
        "--include-headers",
        "--no-show-diff",
        "--very-quiet",
        f"{at}/{file.relative_to(scratch)}",
        binds={scratch: at},
        status=None,
    )
    if done.returncode or "error" in done.stderr:
        raise LabError(f"spatch cannot apply {patch.name} to {file}:\n{done.stderr}")
    return set(re.findall(r"^matched (\w+)$", done.stdout, re.MULTILINE))
