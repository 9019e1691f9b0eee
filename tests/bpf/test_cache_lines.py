"""Where the entries of arrays lie in cache lines, as `make bench` counts them."""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bench.size import LINE, Array, arrays, lines_written
from tests.bpf import twins
from vpmu_agent.loader.program import kernel_source

SOURCE = rb"""
struct line { u64 words[8]; };
BPF_F_TABLE("array", u32, struct line, mapped, 100, BPF_F_MMAPABLE);
BPF_ARRAY(plain, struct line, 100);
BPF_ARRAY(addresses, u64, 2);
int write(struct bpf_raw_tracepoint_args *ctx)
{
	u32 index = ctx->args[0];
	struct line *in_mapped = mapped.lookup(&index), *in_plain = plain.lookup(&index);

	if (!in_mapped || !in_plain)
		return 0;
	in_mapped->words[0]++;
	in_mapped->words[7]++;
	in_plain->words[0]++;
	in_plain->words[7]++;
	return 0;
}
int where(struct bpf_raw_tracepoint_args *ctx)
{
	u32 first = 0, second = 1;
	u64 in_mapped = (u64)mapped.lookup(&first), in_plain = (u64)plain.lookup(&first);

	addresses.update(&first, &in_mapped);
	addresses.update(&second, &in_plain);
	return 0;
}
"""


@pytest.fixture
def loaded() -> Iterator[Any]:
    import bcc

    with kernel_source():
        bpf = bcc.BPF(text=SOURCE)
    yield bpf
    bpf.cleanup()


def run(bpf: Any, function: bytes, argument: int) -> None:
    import bcc

    packed = struct.pack("=12Q", argument, *[0] * 11)
    arguments = ctypes.create_string_buffer(packed, len(packed))
    twins.TestRun(bpf.load_func(function, bcc.BPF.RAW_TRACEPOINT).fd, arguments)()


@contextmanager
def opened(bpf: Any) -> Iterator[dict[str, Array]]:
    texts = (Path(f"/proc/self/fdinfo/{bpf[name].map_fd}").read_text() for name in (b"mapped", b"plain"))
    ids = {int(number) for text in texts for number in re.findall(r"^map_id:\t(\d+)$", text, re.MULTILINE)}
    found = {array.map.name: array for array in arrays(ids)}
    yield found
    for array in found.values():
        array.map.close()


def test_an_entry_of_a_line_is_in_one_only_if_its_array_can_be_mapped(loaded: Any) -> None:
    with opened(loaded) as found:
        before = {name: array.read() for name, array in found.items()}
        run(loaded, b"write", 70)
        lines = {
            name: lines_written(before[name], array.read(), array.offset) for name, array in found.items()
        }
    assert lines == {"mapped": 1, "plain": 2}


def test_arrays_begin_where_the_kernel_has_them(loaded: Any) -> None:
    run(loaded, b"where", 0)
    addresses = [loaded[b"addresses"][i].value for i in (0, 1)]
    assert all(addresses)
    with opened(loaded) as found:
        offsets = [found[name].offset % LINE for name in ("mapped", "plain")]
    assert [address % LINE for address in addresses] == offsets
