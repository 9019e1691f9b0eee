"""The rules as data: their language means the same in Python and C, and every rule can be reached."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.places import ROOT
from vpmu_agent.model.call import CallName
from vpmu_agent.model.generate import c, python
from vpmu_agent.model.generate.language import LanguageError, names_in, parse_effects, parse_value
from vpmu_agent.model.rules import EFFECTS, FUNCTIONS, INPUTS, REGISTERS, RULES, Kind, State

MASK = 0b1011_0100


@pytest.mark.parametrize(
    ("source", "in_python", "in_c"),
    [
        ("members & ~enabled", "pmc.members & ~pmc.enabled", "pmc->members & ~pmc->enabled"),
        (
            "not leader or state == EMPTY",
            "not leader or pmc.state is STATE_EMPTY",
            "!leader || pmc->state == VPMU_STATE_EMPTY",
        ),
        ("1 if failed else n", "1 if failed else n", "failed ? 1 : n"),
        ("below(n)", "(1 << n) - 1", "BELOW(n)"),
        ("members | orphans & bit(index)", "pmc.members | (pmc.orphans & (1 << index))", None),
        ("count(members & 3) + 1", "(pmc.members & 3).bit_count() + 1", "mask_count(pmc->members & 3) + 1"),
        ("a and (b or not c)", "a and (b or not c)", "a && (b || !c)"),
        ("not enabled & bit(i)", "not (pmc.enabled & (1 << i))", "!(pmc->enabled & BIT_ULL(i))"),
        ("index >= 0 and left_behind()", "index >= 0 and pmc.is_left_behind(event)", None),
        ("a - (b - c)", "a - (b - c)", "a - (b - c)"),
        ("n > SLOTS", "n > SLOTS", "n > VPMU_SLOTS"),
    ],
)
def test_a_value_in_both_languages(source: str, in_python: str, in_c: str | None) -> None:
    assert python.value(parse_value(source)) == in_python
    if in_c is not None:
        assert c.value(parse_value(source)) == in_c


def test_effects_in_both_languages() -> None:
    body = parse_effects("if walk:\n    state = RELEASING\nelse:\n    orphans |= members\n    put(0)")
    assert list(python.effects(body)) == [
        "if pmc.walk:",
        "    pmc.state = STATE_RELEASING",
        "else:",
        "    pmc.orphans |= pmc.members",
        "    pmc.put(0, event)",
    ]
    assert list(c.effects(body)) == [
        "if (pmc->walk) {",
        "pmc->state = VPMU_STATE_RELEASING;",
        "} else {",
        "pmc->orphans |= pmc->members;",
        "put_event(pmc, 0, event);",
        "}",
    ]


@pytest.mark.parametrize("source", ["a ** b", "a[0]", "print(a)", "lambda: 1", "'x'", "1 < a < 3", "a / b"])
def test_what_the_language_does_not_have_is_refused(source: str) -> None:
    with pytest.raises(LanguageError, match="has no"):
        parse_value(source)


@pytest.mark.parametrize("source", ["while a:\n    put(0)", "a, b = b, a", "return a", "a.b = 1"])
def test_statements_that_it_does_not_have_are_refused(source: str) -> None:
    with pytest.raises(LanguageError, match="has no"):
        parse_effects(source)


def test_every_call_in_every_state_has_a_rule_that_always_holds() -> None:
    for call in CallName:
        for state in State:
            rules = [rule for rule in RULES if rule.call is call and state in rule.states]
            assert any(rule.when == "True" or f"or state == {state.name}" in rule.when for rule in rules)
            assert all(rule.says[-1].when == "True" for rule in rules)


def test_every_kind_is_said_by_some_rule() -> None:
    said = {say.kind for rule in RULES for say in rule.says}
    assert said | {Kind.EVENT_COUNT_MISMATCH} == set(Kind)  # which goes by the vCPU, not by the pmc


def test_rules_use_only_what_is_explained() -> None:
    functions = {name.split("(")[0] for name in (*FUNCTIONS, *EFFECTS)}
    constants = {"SLOTS", *(member.name for member in (*Kind, *State))}
    for rule in RULES:
        assert rule.note.endswith(".")
        values = {name for name, _ in rule.let}
        known = {*REGISTERS, *INPUTS, *functions, *constants, *values}
        texts = [rule.when, rule.event, rule.leader, *(count for _, count in rule.predicted)]
        texts += [text for say in rule.says for text in (say.when, say.at, say.size)]
        texts += [value for _, value in rule.let]
        assert names_in([*map(parse_value, texts), *parse_effects(rule.effects)]) <= known


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
    opaque, end, _ = text[text.index("static __always_inline u64 opaque") :].partition("\n}\n")
    on_masks = text[text.index("#define BIT(i)") : text.index("static __always_inline s32 find_event")]
    (tmp_path / "masks.c").write_text(C_FUNCTIONS % (opaque + end + on_masks))
    subprocess.run(["gcc", "-o", tmp_path / "masks", tmp_path / "masks.c"], check=True)
    masks = [0, 1, 2, 3, MASK, 1 << 63, 2**64 - 1, *((1 << i) | 1 for i in range(64))]
    told = subprocess.run(
        [tmp_path / "masks"], input=" ".join(map(str, masks)), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    low = [(mask & -mask).bit_length() - 1 if mask else 0 for mask in masks]
    assert told == [
        f"{mask.bit_count()} {first} {mask.bit_length()}" for mask, first in zip(masks, low, strict=True)
    ]
