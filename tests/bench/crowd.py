"""`python -m tests.bench.crowd VMS FILES`: so many processes with a VM and so many files, until stdin ends.

Says "made" once they are there. The VMs are real ones that never run (tests/bpf/kvm.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.errors import BenchError
from tests.bpf.kvm import make_vm

VCPUS = 4
"""Of each VM."""


@contextmanager
def crowd(vms: int, files: int) -> Iterator[None]:
    """These processes, each with `files` descriptors besides those of its VM."""
    command = [sys.executable, "-m", "tests.bench.crowd", str(vms), str(files)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        if process.stdout.readline().strip() != "made":
            raise BenchError(f"cannot make {vms:,} VMs: see above what one of their processes said")
        yield


def main(vms: int, files: int) -> None:
    kvm = os.open("/dev/kvm", os.O_RDWR)
    null = os.open(os.devnull, os.O_RDONLY)
    made_by_child, made = os.pipe()
    ends, end = os.pipe()  # which nobody writes to
    for _ in range(vms):
        # Forked and not started: a Python for each would take 8 GB.
        if os.fork():
            continue
        os.close(end)
        os.close(0)
        kept = [*make_vm(kvm, "ic", VCPUS), *(os.dup(null) for _ in range(files))]
        os.write(made, b".")
        os.close(made)
        os.read(ends, 1)
        os._exit(len(kept) == 0)
    os.close(made)
    count = 0
    while count < vms and (told := os.read(made_by_child, vms)):
        count += len(told)
    if count == vms:
        print("made", flush=True)
        sys.stdin.read()
    os.close(end)
    while vms:
        os.wait()
        vms -= 1


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
