"""What changes this process for good is tried in a child."""

from __future__ import annotations

import os
from collections.abc import Callable


def in_child(do: Callable[[], None]) -> None:
    """Runs it in a process of its own; what it raises fails the test."""
    child = os.fork()
    if not child:
        status = 1
        try:
            do()
            status = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
