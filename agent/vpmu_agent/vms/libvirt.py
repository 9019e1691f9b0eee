"""What libvirt knows about a VM: the state of its running domains, if this user may read it."""

from __future__ import annotations

from pathlib import Path

from vpmu_agent.vms.command_line import canonical_uuid
from vpmu_agent.vms.process import read_text

_DOMAIN_SIZE = 4 * 1024 * 1024
"""Bytes to read of a domain's state at most; it is longer than the files of /proc."""


def domain(directory: str, tgid: int) -> str:
    """Return the libvirt domain whose process this is, "" if there is none or it cannot be read."""
    try:
        files = [file for file in Path(directory).iterdir() if file.suffix == ".pid"]
    except OSError:
        return ""
    return next((file.stem for file in files if read_text(str(file)).strip() == str(tgid)), "")


def domain_uuid(directory: str, name: str, tgid: int) -> str:
    """Return the UUID of a libvirt domain, "" if this is not its process: the state of one may outlive it."""
    text = read_text(f"{directory}/{name}.xml", _DOMAIN_SIZE) if name and "/" not in name else ""
    if not text:
        return ""
    # Imported here to save memory: mostly the command line has the UUID, or the daemon may not read this.
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return ""
    if root.get("pid") != str(tgid) or root.findtext("domain/name") != name:
        return ""
    return canonical_uuid(root.findtext("domain/uuid") or "")
