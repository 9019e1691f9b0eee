"""Give up what a process may do, for good, and find out what it must keep."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Set
from functools import cache

from vpmu_agent.kernel.facts import CAPABILITIES
from vpmu_agent.kernel.libbpf import libbpf, quiet, strerror
from vpmu_agent.kernel.trials import Trial
from vpmu_agent.system.user import DAEMON_USER, User, find_user

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

# include/uapi/linux/capability.h: what root needs to become another user, and to send that one signals.
# Root in a container has only what it was given.
_SWITCHING = {"CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}

_CAPABILITY_VERSION_3 = 0x20080522  # include/uapi/linux/capability.h: two words of 32 bits each
_MAX_CAPABILITIES = 64
_BPF_MAP_TYPE_ARRAY = 2


def missing_to_switch() -> tuple[str, ...]:
    """Return the capabilities that this process lacks to switch to another user; none if it is not root.

    Without CAP_KILL the daemon would not even get the signal that is to end it with its parent
    (pdeath_signal: group_send_sig_info() asks check_kill_permission(), kernel/signal.c).
    """
    if os.geteuid() != 0:
        return ()
    held = _permitted()
    return tuple(name for name, bit in _SWITCHING.items() if not (held >> bit) & 1)


def drop(user: User, *, keep: Set[str] = frozenset()) -> None:
    """Switch to `user`, if this process is root, and give up all capabilities but those in `keep`, for good.

    Nothing that is run from here on has more. Raise OSError where the kernel refuses; the process must then
    end, for some of this may be done.
    """
    wanted = sum(1 << CAPABILITIES[name] for name in keep) & _permitted()
    for capability in range(_MAX_CAPABILITIES):
        # Takes CAP_SETPCAP, and ends with EINVAL after the last one that the kernel knows.
        if _libc().prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            break
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    if os.geteuid() == 0:
        _prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        _prctl(_PR_SET_KEEPCAPS, 0)
    _set_capabilities(wanted)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if _permitted() != wanted or 0 in os.getresuid():
        raise PermissionError("still has privileges after it gave them up")


def end_with(parent: int, signal: int) -> None:
    """Have the kernel send this process `signal` when its parent ends.

    Call it after drop(), which makes the kernel forget it. Raise ProcessLookupError if the parent has ended.
    """
    _prctl(_PR_SET_PDEATHSIG, signal)
    if os.getppid() != parent:
        raise ProcessLookupError("the parent has ended")


def try_map_access(user: User | None = None) -> Trial:
    """Try to read a BPF map by its descriptor as `user` (default: DAEMON_USER) without any capability.

    Before Linux 5.19 that takes CAP_BPF where kernel.unprivileged_bpf_disabled is set. `denied` if this
    process may not even make a map. Raise KernelError without libbpf.
    """
    with quiet():
        descriptor = libbpf().bpf_map_create(_BPF_MAP_TYPE_ARRAY, b"vpmu_trial", 4, 8, 1, None)
    if descriptor < 0:
        return Trial(False, f"the kernel makes no BPF map: {strerror(-descriptor)}", denied=True)
    try:
        refused = _look_up_without_privileges(descriptor, user or find_user(DAEMON_USER))
    finally:
        os.close(descriptor)
    if refused:
        found = f"the kernel lets no unprivileged process read a BPF map: {strerror(refused)}"
        return Trial(False, found)
    return Trial(True)


def _look_up_without_privileges(descriptor: int, user: User) -> int:
    """Return 0, or the errno of the refusal."""
    child = os.fork()
    if not child:
        status = errno.EPERM
        try:
            drop(user)
            value = ctypes.create_string_buffer(8)
            status = -libbpf().bpf_map_lookup_elem(descriptor, bytes(4), value)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class _Header(ctypes.Structure):
    """`struct __user_cap_header_struct`."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    """`struct __user_cap_data_struct`."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )
    effective: int
    permitted: int
    inheritable: int


def _permitted() -> int:
    """Return the permitted capabilities, a bit each."""
    low, high = data = (_Data * 2)()
    _check(_libc().capget(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), data))
    return low.permitted | (high.permitted << 32)


def _set_capabilities(mask: int) -> None:
    """Set the effective and permitted capabilities; none are to be inherited."""
    words = (_Data * 2)(*(_Data(word, word, 0) for word in (mask & 0xFFFFFFFF, mask >> 32)))
    _check(_libc().capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), words))


def _prctl(option: int, argument: int) -> None:
    _check(_libc().prctl(option, argument, 0, 0, 0))


def _check(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    return library
