"""The parent of the daemon: keeps the privileges that starting a loader takes, and does nothing else.

It reads no data, opens no port, and imports nothing of this package: it is run as a file by an interpreter
without site-packages, and stays for as long as the daemon does. As sshd separates its privileges, the daemon
that has none asks; here with one byte and the descriptor on which the loader is to hand over. What the loader
is told was settled before the daemon could be talked to.

usage: python -I -S supervisor.py CONTROL DAEMON LOADER COMMAND...
(a descriptor, the numbers of two processes, and the loader's command without its last argument)
"""

import os
import signal
import socket
import sys

LOAD = b"L"
"""The one request."""

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGABRT)
"""What the daemon gets as if it had been sent there. SIGABRT is a watchdog's, when the daemon hangs."""


def spawn(command: list[str], channel: int) -> int:
    """Starts a loader that hands over on `channel`; returns its process."""
    keep_open = [(os.POSIX_SPAWN_DUP2, channel, channel)]
    return os.posix_spawn(command[0], [*command, str(channel)], os.environ, file_actions=keep_open)


class Parent:
    """The two children, and what to do for them."""

    def __init__(self, daemon: int, loader: int, command: list[str]) -> None:
        self._daemon = daemon
        self._loader = loader  # 0: there is none
        self._command = command

    def serve(self, control: socket.socket) -> None:
        """Starts loaders on request until the daemon is gone. Signals that were blocked come in now."""
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
                # One at a time: each takes a second of a processor and a hundred MB. Who asks again has its
                # answer, or does not wait for it any more.
                self._end_loader()
                self._loader = spawn(self._command, descriptors[0])
            for descriptor in descriptors:
                os.close(descriptor)

    def end(self) -> int:
        """Waits for the daemon, and returns how it ended (negative: by a signal)."""
        os.waitid(os.P_PID, self._daemon, os.WEXITED | os.WNOWAIT)
        for number in PASSED_ON:  # its number may soon be somebody else's
            signal.signal(number, signal.SIG_IGN)
        self._end_loader()
        return os.waitstatus_to_exitcode(os.waitpid(self._daemon, 0)[1])

    def _end_loader(self) -> None:
        self._reap_loader()
        if loader := self._loader:
            self._loader = 0  # not for the handler of SIGCHLD
            os.kill(loader, signal.SIGKILL)
            os.waitpid(loader, 0)

    def _reap_loader(self) -> None:
        try:
            if self._loader and os.waitpid(self._loader, os.WNOHANG)[0]:
                self._loader = 0
        except ChildProcessError:  # the handler came between these two lines of itself
            self._loader = 0


def main(arguments: list[str]) -> None:
    """Runs until the daemon ends, and ends as it did."""
    number, daemon, loader, *command = arguments
    control = socket.socket(fileno=int(number))
    control.set_inheritable(False)
    parent = Parent(int(daemon), int(loader), command)
    parent.serve(control)
    status = parent.end()
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
