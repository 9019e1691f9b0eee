"""`python -m tools.image PACKAGE FOLDER`: makes the image of a .deb of the agent, and leaves it in FOLDER."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tools.image.build import BuildError, build


def main() -> None:
    """Builds; ends with status 1 and one line if that fails."""
    parser = argparse.ArgumentParser(prog="python -m tools.image")
    parser.add_argument("package", type=Path, help="the .deb, as `make deb` leaves it in dist/")
    parser.add_argument("folder", type=Path, help="where to put the archive")
    arguments = parser.parse_args()
    if os.geteuid():
        sys.exit("python -m tools.image: run it as root: it makes a Debian with chroot")
    try:
        archive = build(arguments.package, arguments.folder)
    except BuildError as error:
        sys.exit(f"python -m tools.image: {error}")
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        sys.exit(f"python -m tools.image: {command} ended with {error.returncode}: see what it wrote above")
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
