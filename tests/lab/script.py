"""The shell script that runs the command in the VM, whatever the machine is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import places

_COMMAND = """\
{exports}
cd {tree}
exec {command}
"""

_VARIABLES = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPYCACHEPREFIX": places.PYCACHE,
}


def write_script(command: Sequence[str], env: Mapping[str, str], results: Path) -> Path:
    """Writes the script into `results`; returns its path, the same in the VM."""
    variables = {**_VARIABLES, "PYTHONPATH": str(places.REPO / "agent"), places.RESULTS: str(results), **env}
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
    script = results / "command.sh"
    tree = shlex.quote(str(places.REPO))
    script.write_text(_COMMAND.format(exports=exports, tree=tree, command=shlex.join(command)))
    return script
