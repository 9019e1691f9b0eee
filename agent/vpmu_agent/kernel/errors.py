"""What can be missing from a kernel, and what to do about it."""

from __future__ import annotations


class KernelError(Exception):
    """This kernel lacks something that the agent needs.

    `found` says what was looked for, where, and what was found instead; `todo` what the user can do about it.
    The message is both.
    """

    def __init__(self, found: str, todo: str = "") -> None:
        super().__init__(found, todo)
        self.found = found
        self.todo = todo

    def __str__(self) -> str:
        return f"{self.found}; {self.todo}" if self.todo else self.found


class BtfError(KernelError):
    """BTF, or a struct, field, enumerator or function in it, is missing or not as expected."""


class SymbolError(KernelError):
    """A kernel symbol is missing, or its address is hidden."""


class KvmNotLoadedError(KernelError):
    """KVM is not loaded. It may be later: loading a module is enough."""


class ProbeError(KernelError):
    """The kernel or bcc rejects the probes."""
