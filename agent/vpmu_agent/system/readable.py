"""Whether a descriptor can be read now."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike


def is_readable(stream: FileDescriptorLike, timeout_s: float = 0) -> bool:
    """Return whether a read of `stream` will not block, for its end too; wait up to `timeout_s` for it.

    select.select() takes no descriptor above 1,023, and a host with as many VMs has those.
    """
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
