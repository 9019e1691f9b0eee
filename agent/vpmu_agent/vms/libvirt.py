"""What libvirt knows of a VM: the state of its running domains, where this user may read that."""

from __future__ import annotations

from pathlib import Path

from vpmu_agent.vms.command_line import canonical_uuid
from vpmu_agent.vms.process import read_text

_DOMAIN_SIZE = 4 * 1024 * 1024
"""Bytes that are read of the state of a libvirt domain, which is longer."""


def domain(directory: str, tgid: int) -> str:
    """The libvirt domain whose process this is, "" if none or not to be known."""
    try:
        files = [file for file in Path(directory).iterdir() if file.suffix == ".pid"]
    except OSError:
        return ""
    return next((file.stem for file in files if read_text(str(file)).strip() == str(tgid)), "")


def domain_uuid(directory: str, name: str, tgid: int) -> str:
    """The UUID of a libvirt domain, if this is its process: the state of one that ended may be left there."""
    text = read_text(f"{directory}/{name}.xml", _DOMAIN_SIZE) if name and "/" not in name else ""
    if not text:
        return ""
    # Takes memory that most never need: the command line has the UUID, and the daemon may not read this.
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return ""
    if root.get("pid") != str(tgid) or root.findtext("domain/name") != name:
        return ""
    return canonical_uuid(root.findtext("domain/uuid") or "")
