from __future__ import annotations

import pytest

from vpmu_agent.web.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9775", Address("127.0.0.1", 9775)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:9775", Address("::1", 9775)),
        (":9775", Address("", 9775)),
        ("[fe80::1%eth0]:9775", Address("fe80::1%eth0", 9775)),
        ("bücher.example:80", Address("bücher.example", 80)),
        ("[::]:65535", Address("::", 65535)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9775",
        "localhost",
        "host:",
        "host:http",
        "host:65536",
        "host:-1",
        "host:²",
        "::1:9775",
        "[::1]",
        "[]:9775",
        "a..b:9775",
        f"{'x' * 64}:9775",
        "a\udcff:9775",
        "a\0b:9775",
        "a\nb:9775",
    ],
)
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|has no port|is empty|cannot be the name") as refused:
        parse_address(text)
    assert repr(text) in str(refused.value)
