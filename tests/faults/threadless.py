"""`python -m tests.faults.threadless`: a server in a process that can start no more threads."""

from __future__ import annotations

import os
import resource
import sys

from tests.support.web import serving

NOBODY = 65534

if __name__ == "__main__":
    with serving() as server:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        os.setuid(NOBODY)  # for root has no limit
        print(server.address, flush=True)
        sys.stdin.read()
