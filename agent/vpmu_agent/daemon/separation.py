"""One process becomes two: a daemon without privileges, and a supervisor that keeps them for loaders."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from vpmu_agent.daemon import supervisor
from vpmu_agent.kernel import own_event
from vpmu_agent.kernel.arch import current_arch
from vpmu_agent.kernel.container import require_children_here
from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.kernel.trials import Trial
from vpmu_agent.probes import handover
from vpmu_agent.system import privileges
from vpmu_agent.system.ready import is_readable
from vpmu_agent.system.user import User

_ANSWER_S, _ANSWER_SIZE = 0.05, 16


@dataclass(frozen=True, slots=True)
class Link:
    """The daemon's connection to its parent, and the socket on which the first loader hands over."""

    parent: int
    """The supervisor's process ID."""
    control: socket.socket
    first: socket.socket

    def load(self) -> socket.socket:
        """Have the supervisor start a loader; return the socket on which that one hands over."""
        ours, theirs = handover.channel()
        with theirs:
            socket.send_fds(self.control, [supervisor.LOAD], [theirs.fileno()])
        return ours

    @property
    def tgid(self) -> int:
        """The process that makes calls to test the probes: the supervisor."""
        return self.parent

    def ask(self) -> None:
        """Have the supervisor make a call that the probes must see."""
        with suppress(BrokenPipeError):  # it has ended, and this process is about to
            self.control.send(supervisor.TEST)

    def answer(self) -> str | None:
        """Return "" once the supervisor has made the call, why it could not, or None if it has not answered.

        A supervisor that does something else is waited for for a moment.
        """
        if not is_readable(self.control, _ANSWER_S):
            return None
        if code := int(self.control.recv(_ANSWER_SIZE) or errno.EPIPE):
            return f"no perf event can be opened to test them: {os.strerror(code)}"
        return ""


def separate(loader: Sequence[str]) -> Link:
    """Start the first loader and split this process in two. Return in the child, which becomes the daemon.

    The process that was called becomes the supervisor (supervisor.py). It ends when and as the daemon does.

    Raise KernelError if children of this process start in another PID namespace.
    """
    require_children_here()
    perf_event_open = current_arch().perf_event_open
    control, theirs = handover.channel()
    first, end = handover.channel()
    with end:
        loading = supervisor.spawn([*loader], end.fileno())
    caller = os.getpid()
    # Until the supervisor has its handlers: a signal would end it, and a loader that ended stay a zombie.
    held_back = (*supervisor.PASSED_ON, signal.SIGCHLD)
    signal.pthread_sigmask(signal.SIG_BLOCK, held_back)
    if daemon := os.fork():
        theirs.set_inheritable(True)
        # -I and -S: nothing of the environment, the current directory or site-packages gets in.
        python = [sys.executable, "-I", "-S", supervisor.__file__]
        tester = [own_event.__file__, str(perf_event_open)]
        os.execv(python[0], [*python, *tester, str(theirs.fileno()), str(daemon), str(loading), *loader])
    theirs.close()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, held_back)
    # Ctrl-C goes to the whole foreground group; the supervisor passes it on, and once is enough.
    os.setsid()
    return Link(caller, control, first)


def require_switch() -> None:
    """Raise KernelError if this process is a root that cannot become the daemon's user."""
    if missing := privileges.missing_to_switch():
        raise KernelError(
            f"this process is root and lacks {', '.join(missing)}, so it cannot become an unprivileged user",
            "in a container add them (podman: --cap-add, Kubernetes: securityContext.capabilities.add), or "
            "start it as a user with CAP_BPF, CAP_PERFMON and CAP_SYSLOG as ambient capabilities",
        )


def give_up_privileges(link: Link, user: User) -> None:
    """Leave this process no right but to read the maps that it is given, and have it end with its parent.

    Raise KernelError where the kernel refuses that.
    """
    try:
        privileges.drop(user, keep=needed_capabilities(privileges.try_map_access(user)))
        privileges.end_with(link.parent, signal.SIGTERM)
    except OSError as error:
        raise KernelError(
            f"cannot give up privileges and become the user with ID {user.uid}: {error.strerror or error}",
            "name another user with --user; in a user namespace, one whose ID and group are mapped",
        ) from error


def needed_capabilities(map_access: Trial) -> frozenset[str]:
    """Return what the daemon must keep: nothing where the trial read a map without privileges.

    Where the trial was denied the means to try, CAP_BPF is not there to be kept.
    """
    if map_access.works or map_access.denied:
        return frozenset()
    return frozenset({"CAP_BPF"})
