from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import pytest

from tests.support.web import ALICE, BOB, basic, get, serving_file
from vpmu_agent.web import users as web_users
from vpmu_agent.web.users import Users


@pytest.mark.parametrize(
    "value",
    ["Basic", "Basic !", "Basic YTpi=", "Basic /w==", "Bearer YWxpY2U6c2VjcmV0", "basic \xff", "x" * 999],
)
def test_an_authorization_that_is_none(value: str) -> None:
    assert not Users({"alice": ALICE.encode()}).admits(value)


class Bcrypt:
    """The real one, which counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def checkpw(self, password: bytes, hashed: bytes) -> bool:
        self.asked.append(hashed)
        return bcrypt.checkpw(password, hashed)


def test_bcrypt_is_asked_once_for_a_right_password_and_always_for_a_wrong_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Bcrypt()
    monkeypatch.setattr(web_users, "bcrypt", counted)
    users = Users({"alice": ALICE.encode(), "bob": BOB.encode()})
    assert [users.admits(basic("alice:secret")) for _ in range(3)] == [True] * 3
    assert len(counted.asked) == 1
    for wrong in ("alice:other", "alice:other", "bob:secret", "carol:secret", "carol:secret"):
        assert not users.admits(basic(wrong))
    assert len(counted.asked) == 6
    assert users.admits(basic("alice:secret"))
    assert len(counted.asked) == 6


def test_a_stranger_costs_what_the_dearest_user_does(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Bcrypt()
    monkeypatch.setattr(web_users, "bcrypt", counted)
    dear = bcrypt.hashpw(b"secret", bcrypt.gensalt(5))
    users = Users({"alice": ALICE.encode(), "dear": dear, "bob": BOB.encode()})
    assert not users.admits(basic("carol:secret"))  # though that is the password of the hash
    assert counted.asked == [dear]


def test_of_a_password_bcrypt_sees_72_bytes() -> None:
    hashed = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4))
    users = Users({"alice": hashed})
    assert users.admits(basic("alice:" + "x" * 90))
    assert not users.admits(basic("alice:" + "x" * 71))


def test_passwords_are_looked_at_one_by_one_and_nobody_waits_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Bcrypt):
        def checkpw(self, password: bytes, hashed: bytes) -> bool:
            free.wait(10)
            return super().checkpw(password, hashed)

    free, slow = threading.Event(), Slow()
    monkeypatch.setattr(web_users, "PASSWORD_S", 0.3)
    with serving_file(folder, f"basic_auth_users: {{alice: {ALICE}, bob: {BOB}}}") as (server, _):
        assert get(server, user="bob:other").status == 200
        monkeypatch.setattr(web_users, "bcrypt", slow)
        with ThreadPoolExecutor(4) as pool:
            wrong = [pool.submit(get, server, user=f"alice:{i}") for i in range(4)]
            time.sleep(0.1)
            assert get(server, user="bob:other").status == 200  # who is known need not wait
            time.sleep(0.6)
            free.set()
            assert sorted(each.result().status for each in wrong) == [401, 503, 503, 503]
    assert len(slow.asked) == 1
