"""How a web file fails, apart from what reads it: only who has such a file needs that."""

from __future__ import annotations


class WebConfigError(Exception):
    """The file of --web.config.file, or one that it names, cannot be used; the message says where and why."""
