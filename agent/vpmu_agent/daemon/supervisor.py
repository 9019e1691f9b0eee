"""The daemon's parent: keeps the privileges that starting a loader takes, and does nothing else.

It reads no data, opens no port, and imports nothing of this package: it is run as a file by an interpreter
without site-packages, and lives as long as the daemon. The daemon has no privileges, so it asks for a loader,
as in sshd's privilege separation: with one byte and the descriptor on which the loader is to hand over. The
loader's command line was fixed before the daemon could be talked to. With another byte the daemon asks for a
call by which it tests the probes, because opening a perf event can take privileges.

usage: python -I -S supervisor.py OWN_EVENT PERF_EVENT_OPEN CONTROL DAEMON LOADER COMMAND...
(the file kernel/own_event.py and the number of the system call, a descriptor, the IDs of two processes, and
the loader's command without its last argument)
"""

import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from types import ModuleType

LOAD = b"L"
"""A request: start a loader."""

TEST = b"T"
"""A request: make a call that the probes must see, and answer 0 or the errno of its failure, in digits."""

KILLED_S = 5.0
"""How long to wait for the end of a loader that was killed, in seconds."""

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGABRT)
"""Signals that go on to the daemon. SIGABRT is from a service manager's watchdog, when the daemon hangs."""


def spawn(command: list[str], channel: int) -> int:
    """Start a loader that hands over on `channel`; return its process ID.

    Its group is its own: it ends with this process, and Ctrl-C is for this process only.
    """
    keep_open = [(os.POSIX_SPAWN_DUP2, channel, channel)]
    return os.posix_spawn(
        command[0], [*command, str(channel)], os.environ, file_actions=keep_open, setpgroup=0
    )


class Supervisor:
    """The two children, the daemon and a loader, and what to do for them.

    `make_call` makes a call that the probes must see; it raises OSError.
    """

    def __init__(self, daemon: int, loader: int, command: list[str], make_call: Callable[[], None]) -> None:
        self._daemon = daemon
        self._make_call = make_call
        self._loader = loader  # 0: there is none
        self._command = command

    def serve(self, control: socket.socket) -> None:
        """Start loaders and make calls on request until the daemon is gone.

        Signals that were blocked are delivered now.
        """
        for number in PASSED_ON:
            signal.signal(number, lambda received, _frame: os.kill(self._daemon, received))
        signal.signal(signal.SIGCHLD, lambda _number, _frame: self._reap_loader())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*PASSED_ON, signal.SIGCHLD))
        while True:
            try:
                request, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            except ConnectionResetError:
                return
            if not request:
                return
            if request == LOAD and descriptors:
                # One at a time: each takes a second of a processor and a hundred MB. A daemon that asks again
                # has the answer of the last one, or no longer waits for it.
                self._end_loader()
                self._loader = spawn(self._command, descriptors[0])
            if request == TEST:
                try:
                    control.send(str(self._test()).encode())
                except BrokenPipeError:
                    return
            for descriptor in descriptors:
                os.close(descriptor)

    def end(self) -> int:
        """Wait for the daemon; return its exit status, or the negative number of the signal that ended it."""
        os.waitid(os.P_PID, self._daemon, os.WEXITED | os.WNOWAIT)
        for number in PASSED_ON:  # its process ID may soon be another's
            signal.signal(number, signal.SIG_IGN)
        self._end_loader()
        return os.waitstatus_to_exitcode(os.waitpid(self._daemon, 0)[1])

    def _test(self) -> int:
        try:
            self._make_call()
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _end_loader(self) -> None:
        self._reap_loader()
        if loader := self._loader:
            self._loader = 0  # nothing is left for the handler of SIGCHLD
            os.kill(loader, signal.SIGKILL)
            # One that the kernel does not let go of is left behind: it ends as soon as it can.
            end = time.monotonic() + KILLED_S
            while not os.waitpid(loader, os.WNOHANG)[0] and time.monotonic() < end:
                time.sleep(0.01)

    def _reap_loader(self) -> None:
        try:
            if self._loader and os.waitpid(self._loader, os.WNOHANG)[0]:
                self._loader = 0
        except ChildProcessError:  # the handler of SIGCHLD interrupted this, and was faster
            self._loader = 0


def main(arguments: list[str]) -> None:
    """Run until the daemon ends, and end as it did."""
    own_event, perf_event_open, number, daemon, loader, *command = arguments
    tester = ModuleType("own_event")
    SourceFileLoader("own_event", own_event).exec_module(tester)
    control = socket.socket(fileno=int(number))
    control.set_inheritable(False)
    supervisor = Supervisor(
        int(daemon), int(loader), command, lambda: tester.open_and_close(int(perf_event_open))
    )
    supervisor.serve(control)
    status = supervisor.end()
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
