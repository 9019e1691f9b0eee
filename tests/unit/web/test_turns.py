"""Turns: who is next, and who has to go."""

from __future__ import annotations

import asyncio

import pytest

from vpmu_agent.web.turns import BusyError, Turns, neighbourhood


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("127.0.0.1", "local"),
        ("127.9.9.9", "local"),
        ("::1", "local"),
        ("", "local"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:127.0.0.1", "local"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_whom_an_address_is_counted_with(host: str, expected: str) -> None:
    assert neighbourhood(host) == expected


def order(turns: Turns, asked: list[str]) -> tuple[list[str], list[str]]:
    """Who had a turn, in order, and who was refused, if all of these ask before the first is over."""
    had: list[str] = []
    refused: list[str] = []

    async def have(name: str) -> None:
        try:
            async with turns.turn(name[0]):
                had.append(name)
                await asyncio.sleep(0.01)
        except BusyError:
            refused.append(name)

    async def ask() -> None:
        await asyncio.gather(*map(have, asked))

    asyncio.run(ask())
    return had, refused


def test_neighbourhoods_take_turns() -> None:
    turns = Turns(at_once=1, waiting=99, waiting_each=99)
    had, refused = order(turns, ["a1", "a2", "a3", "a4", "b1", "b2", "c1"])
    assert (had, refused) == (["a1", "a2", "b1", "c1", "a3", "b2", "a4"], [])


def test_the_newest_may_come_first() -> None:
    turns = Turns(at_once=1, waiting=99, waiting_each=99, newest_first=True)
    assert order(turns, ["a1", "a2", "a3", "b1", "a4"]) == (["a1", "a4", "b1", "a3", "a2"], [])


def test_one_neighbourhood_does_not_fill_the_queue() -> None:
    turns = Turns(at_once=1, waiting=4, waiting_each=3)
    assert order(turns, ["a1", "a2", "a3", "a4", "a5", "b1", "b2"]) == (
        ["a1", "a2", "b1", "a3", "b2"],
        ["a5", "a4"],
    )


def test_where_the_newest_come_first_the_oldest_have_to_go() -> None:
    turns = Turns(at_once=1, waiting=9, waiting_each=2, newest_first=True)
    assert order(turns, ["a1", "a2", "a3", "a4"]) == (["a1", "a4", "a3"], ["a2"])


def test_who_leaves_gives_the_place_or_the_turn_back() -> None:
    turns = Turns(at_once=1, waiting=9, waiting_each=9)
    had: list[str] = []

    async def have(name: str) -> None:
        async with turns.turn(name):
            had.append(name)
            await asyncio.sleep(0.01)

    async def leave() -> None:
        async def first() -> None:
            await have("a")
            third.cancel()  # which has been given its turn, and does not know yet

        tasks = [asyncio.create_task(each) for each in (first(), have("b"), have("c"))]
        _, second, third = tasks
        await asyncio.sleep(0)
        second.cancel()  # while it waits
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(have("d"), 1)

    asyncio.run(leave())
    assert had == ["a", "d"]
