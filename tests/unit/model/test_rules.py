"""The automaton as data: its language means the same in both, and every rule can be reached."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.places import ROOT
from vpmu_agent.model.call import CallName
from vpmu_agent.model.generate.language import LanguageError, c, expression, names_in, python, statements
from vpmu_agent.model.rules import REGISTERS, RULES, SLOTS, Kind, State

MASK = 0b1011_0100


@pytest.mark.parametrize(
    ("source", "in_python", "in_c"),
    [
        ("members & ~enabled", "(p.members & (~p.enabled))", "(p->members & (~p->enabled))"),
        (
            "not leader or state == EMPTY",
            "((not (leader)) or (p.state == 1))",
            "((!(leader)) || (p->state == 1))",
        ),
        ("1 if failed else n", "(1 if failed else n)", "(failed ? 1 : n)"),
        ("below(n)", "((1 << n) - 1)", "((1ULL << (n)) - 1)"),
        ("index >= 0 and left_behind()", "((index >= 0) and p.left_behind(event))", None),
        ("SLOTS", str(SLOTS), "4"),
    ],
)
def test_an_expression_in_both_languages(source: str, in_python: str, in_c: str | None) -> None:
    assert expression(source, python()) == in_python
    if in_c is not None:
        assert expression(source, c(4)) == in_c


def test_statements_in_both_languages() -> None:
    source = "if walk:\n    state = RELEASING\nelse:\n    orphans |= members\n    put(0)"
    assert statements(source, python()) == [
        "if p.walk:",
        "    p.state = 7",
        "else:",
        "    p.orphans |= p.members",
        "    p.put(0, event)",
    ]
    assert statements(source, c(4)) == [
        "if (p->walk) {",
        "    p->state = 7;",
        "} else {",
        "    p->orphans |= p->members;",
        "    put_event(p, 0, event);",
        "}",
    ]


@pytest.mark.parametrize("source", ["a ** b", "a[0]", "print(a)", "lambda: 1", "'x'", "1 < a < 3", "a / b"])
def test_what_the_language_does_not_have_is_refused(source: str) -> None:
    for language in (python(), c(4)):
        with pytest.raises(LanguageError, match="has no"):
            expression(source, language)


@pytest.mark.parametrize("source", ["while a:\n    put(0)", "a, b = b, a", "return a", "a.b = 1"])
def test_statements_that_it_does_not_have_are_refused(source: str) -> None:
    with pytest.raises(LanguageError, match="has no"):
        statements(source, python())


def test_every_call_in_every_state_has_a_rule_that_always_holds() -> None:
    for call in CallName:
        for state in State:
            rules = [rule for rule in RULES if rule.call is call and state in rule.states]
            assert any(rule.when == "True" or f"or state == {state.name}" in rule.when for rule in rules)
            assert all(rule.says[-1].when == "True" for rule in rules)


def test_every_kind_is_said_by_some_rule() -> None:
    said = {say.kind for rule in RULES for say in rule.says}
    assert said | {Kind.EVENT_COUNT_MISMATCH} == set(Kind)  # which goes by the vCPU, not by the pmc


def test_effects_write_registers_only() -> None:
    for rule in RULES:
        known = {*REGISTERS, *(name for name, _ in rule.let), *(kind.name for kind in (*Kind, *State))}
        known |= {"SLOTS", "event", "leader", "failed", "disabled", "n", "index", "leader_index"}
        known |= set(python().functions)
        for source in (
            rule.when,
            rule.effects,
            rule.event,
            rule.leader,
            *(value for _, value in rule.predicted),
        ):
            assert names_in(source) <= known


C_FUNCTIONS = r"""
#include <stdio.h>
#include <stdint.h>
typedef uint64_t u64;
#define __always_inline inline
#define VPMU_SLOTS 32
%s
int main(void) { u64 m; while (scanf("%%lu", &m) == 1)
	printf("%%lu %%lu %%lu\n", mask_count(m), mask_low(m), mask_width(m)); }
"""


def test_the_functions_on_masks_are_the_same_in_c(tmp_path: Path) -> None:
    text = (ROOT / "bpf" / "vpmu.bpf.c").read_text()
    start = text.index("static __always_inline u64 opaque")
    (tmp_path / "masks.c").write_text(
        C_FUNCTIONS % text[start : text.index("static __always_inline s32 find_event")]
    )
    subprocess.run(["gcc", "-o", tmp_path / "masks", tmp_path / "masks.c"], check=True)
    masks = [0, 1, 2, 3, MASK, 1 << 63, 2**64 - 1, *(1 << i | 1 for i in range(64))]
    told = subprocess.run(
        [tmp_path / "masks"], input=" ".join(map(str, masks)), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    low = [(mask & -mask).bit_length() - 1 if mask else 0 for mask in masks]
    assert told == [
        f"{mask.bit_count()} {first} {mask.bit_length()}" for mask, first in zip(masks, low, strict=True)
    ]
