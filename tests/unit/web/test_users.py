"""Passwords: what is remembered, what a check costs, and what its time tells."""

from __future__ import annotations

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import pytest

from tests.support.web import ALICE, BOB, basic, get, serving_file, written
from vpmu_agent.web import users as web_users
from vpmu_agent.web.users import STRANGERS_COST, Credentials, Users, credentials


@pytest.mark.parametrize(
    "value",
    [
        "Basic",
        "Basic !",
        "Basic /w==",
        "Bearer YWxpY2U6c2VjcmV0",
        "basic \xff",
        "x" * 999,
        basic(":secret"),
        basic("alice:a\0b"),
    ],
)
def test_an_authorization_that_is_none(value: str) -> None:
    assert credentials(value) is None


class Bcrypt:
    """The real one, which counts how often it was asked."""

    hashpw = staticmethod(bcrypt.hashpw)

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def checkpw(self, password: bytes, hashed: bytes) -> bool:
        self.asked.append(hashed)
        return bcrypt.checkpw(password, hashed)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Bcrypt:
    counted = Bcrypt()
    monkeypatch.setattr(web_users, "bcrypt", counted)
    return counted


def test_bcrypt_is_asked_once_for_a_right_password_and_always_for_a_wrong_one(
    folder: Path, counted: Bcrypt
) -> None:
    with serving_file(folder, f"basic_auth_users: {{alice: {ALICE}, bob: {BOB}}}") as (server, _):
        assert [get(server, user="alice:secret").status for _ in range(3)] == [200] * 3
        assert len(counted.asked) == 1
        for wrong in ("alice:other", "alice:other", "bob:secret", "carol:secret", "carol:secret"):
            assert get(server, user=wrong).status == 401
        assert len(counted.asked) == 6
        assert get(server, user="alice:secret").status == 200
        assert len(counted.asked) == 6


def test_who_was_right_is_known_as_long_as_the_hash_is_the_same(folder: Path, counted: Bcrypt) -> None:
    with serving_file(folder, f"basic_auth_users: {{alice: {ALICE}, bob: {BOB}}}") as (server, _):
        assert get(server, user="alice:secret").status == get(server, user="bob:other").status == 200
        asked = len(counted.asked)
        written(folder, f"basic_auth_users: {{bob: {ALICE}, alice: {ALICE}}}")
        assert get(server, user="alice:secret").status == 200
        assert len(counted.asked) == asked
        assert get(server, user="bob:other").status == 401
        assert get(server, user="bob:secret").status == 200


@pytest.mark.parametrize(("dearest", "cost"), [(4, 4), (10, STRANGERS_COST), (18, STRANGERS_COST)])
def test_a_stranger_costs_little_whatever_the_users_do(counted: Bcrypt, dearest: int, cost: int) -> None:
    dear = ALICE.replace("$04$", f"${dearest:02}$").encode()
    users = Users({"alice": ALICE.encode(), "dear": dear, "bob": BOB.encode()})
    assert not users.check(Credentials("carol", b"secret"))
    (hashed,) = counted.asked
    assert int(hashed.split(b"$")[2]) == cost


def test_of_a_password_bcrypt_sees_72_bytes() -> None:
    users = Users({"alice": bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4))})
    assert users.check(Credentials("alice", b"x" * 90))
    assert not users.check(Credentials("alice", b"x" * 71))


def test_the_time_does_not_tell_which_users_exist(folder: Path) -> None:
    cheap, dear = (bcrypt.hashpw(b"secret", bcrypt.gensalt(cost)).decode() for cost in (4, 9))
    took: dict[str, list[float]] = {"cheap": [], "dear": [], "carol": []}
    with serving_file(folder, f"basic_auth_users: {{cheap: {cheap}, dear: {dear}}}") as (server, _):
        for number in range(12):
            for user, times in took.items():
                start = time.perf_counter()
                assert get(server, user=f"{user}:{number}").status == 401
                times.append(time.perf_counter() - start)
    medians = [statistics.median(times) for times in took.values()]
    # A check of cost 9 takes 32 times as long as one of cost 4. On a busy machine it may take longer than
    # it was expected to when the file was read.
    assert max(medians) < 3 * min(medians)


def test_passwords_are_looked_at_one_by_one_and_nobody_waits_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Bcrypt):
        def checkpw(self, password: bytes, hashed: bytes) -> bool:
            free.wait(10)
            return super().checkpw(password, hashed)

    free, slow = threading.Event(), Slow()
    monkeypatch.setattr(web_users, "PASSWORD_S", 0.8)
    with serving_file(folder, f"basic_auth_users: {{alice: {ALICE}, bob: {BOB}}}") as (server, _):
        assert get(server, user="bob:other").status == 200
        monkeypatch.setattr(web_users, "bcrypt", slow)
        with ThreadPoolExecutor(4) as pool:
            guesses = [pool.submit(get, server, user=f"alice:{i}") for i in range(3)]
            late = pool.submit(get, server, user="alice:secret")
            time.sleep(0.2)
            assert get(server, user="bob:other").status == 200  # who is known need not wait
            assert [each.result().status for each in (*guesses, late)] == [503] * 4
        free.set()
        # Nobody waits for these any more, but one of them was right.
        for _ in range(50):
            if get(server, user="alice:secret").status == 200:
                break
            time.sleep(0.1)
        else:
            pytest.fail("its password was right, and is not known")
