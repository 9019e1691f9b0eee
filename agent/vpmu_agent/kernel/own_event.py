"""Opens a perf event of this process and closes it again, which has the kernel release an event.

Imports nothing of this package: the supervisor, which has no site-packages, runs it as a file.
"""

import ctypes
import os
import struct

# include/uapi/linux/perf_event.h
_TYPE_SOFTWARE, _COUNT_SW_DUMMY = 1, 9
_SIZE_VER0 = 64
_DISABLED, _EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 0, 1 << 5, 1 << 6
_FLAG_FD_CLOEXEC = 8

_ATTR = struct.pack(
    "=IIQ24xQ16x", _TYPE_SOFTWARE, _SIZE_VER0, _COUNT_SW_DUMMY, _DISABLED | _EXCLUDE_KERNEL | _EXCLUDE_HV
)
"""A struct perf_event_attr of an event that counts nothing and that no PMU needs room for."""


def open_and_close(perf_event_open: int) -> None:
    """Have this thread call perf_event_release_kernel(), by the number of the system call.

    Raise OSError where no event can be opened. With kernel.perf_event_paranoid above 2, which Debian has,
    that takes CAP_PERFMON.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    itself, any_cpu, no_group = 0, -1, -1
    descriptor = libc.syscall(perf_event_open, _ATTR, itself, any_cpu, no_group, _FLAG_FD_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(descriptor)  # the last one: the event is released before this returns
