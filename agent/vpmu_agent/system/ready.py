"""Whether a descriptor can be read or written now."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike


def is_readable(stream: FileDescriptorLike, timeout_s: float = 0) -> bool:
    """Return whether a read of `stream` will not block, for its end too; wait up to `timeout_s` for it.

    select.select() takes no descriptor above 1,023, and a host with as many VMs has those.
    """
    return _is_ready(stream, select.POLLIN, timeout_s)


def is_writable(stream: FileDescriptorLike, timeout_s: float = 0) -> bool:
    """Return whether to write select.PIPE_BUF bytes to `stream` will not block, an error included.

    Wait up to `timeout_s` for it.
    """
    return _is_ready(stream, select.POLLOUT, timeout_s)


def _is_ready(stream: FileDescriptorLike, for_what: int, timeout_s: float = 0) -> bool:
    poll = select.poll()
    poll.register(stream, for_what)
    return bool(poll.poll(timeout_s * 1000))
