"""Whose VM a socket or file belongs to, by its path: some VMMs are told no name, only such paths.

No name is better than a wrong one: a word that can stand for a program, a product or a kind of file names no
VM.
"""

from __future__ import annotations

import re

# Words that say what a file or directory is, not which VM's.
_COMMON = re.compile(
    r"""
    anonymous|api|apisock|app|base|bin|build|ch|chv|clh|cloud|conf|config|configs|console|control|controller
    |crosvm|ctl|ctrl|data|debug|default|demo|dev|disk|disks|etc|event|events|example|examples|fc|fcvm|fifo
    |file|files|firecracker|guest|home|http|hypervisor|image|images|instance|internal|jail|kata|kernel
    |kernels|kvm|lib|libvirt|local|log|logs|machine|management|microvm|microvms|mnt|monitor|opt|out|proc
    |qemu|qmp|release|restore|root|rootfs|run|runtime|sandbox|script|scripts|serial|server|share|snapshot
    |snapshots|sock|socket|sockets|src|srv|state|storage|sys|target|temp|template|templates|test|tests|tmp
    |tty|usr|uvm|var|vc|vhost|vm|vmconf|vmconfig|vmm|vmmon|vms|vsock|work|workspace
    """,
    re.VERBOSE,
)

# Directories with one directory for each VM.
_COLLECTIONS = re.compile(
    r"""
    cloud-hypervisor|domains|firecracker|guests|instances|jailer|kata|machines|microvm|microvms|nodes
    |sandboxes|vm|vms
    """,
    re.VERBOSE,
)

_ENDINGS = re.compile(
    r"([-_.](api|config|control|ctl|event[-_]monitor|events?|fifo|json|monitor|s|sock|socket|toml))+$",
    re.IGNORECASE,
)
# A user's files, a descriptor, a package: none of these paths goes on to say which VM's it is.
_HOMES = re.compile(r"/home/[^/]+|/run/user/\d+")
_NOBODYS = re.compile(r"/dev/(?!shm/)|/proc/|/nix/store/")
# A UUID, a ULID, or the hexadecimal ID of a container.
_ID = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9A-HJKMNP-TV-Z]{26}|(?=.*[0-9])[0-9a-f]{12,}", re.ASCII
)


def owner(path: str) -> str:
    """Return the VM that a socket or file belongs to, by its name or a directory's; "" if none names one.

    /srv/vms/web01.sock and /srv/vms/web01/run/api.sock belong to web01, /run/vc/vm/5f0c/clh-api.sock to 5f0c,
    /tmp/firecracker.socket and /run/product/ch.sock to none. A directory's name is taken only in a directory
    that has one for each VM, or if it is an ID.
    """
    if _NOBODYS.match(path):
        return ""
    file, *directories = reversed([part for part in _HOMES.sub("", path, count=1).split("/") if part] or [""])
    if _is_own(name := _ENDINGS.sub("", file)):
        return name
    for directory, parent in zip(directories, [*directories[1:], ""], strict=False):
        # What has a common name in a collection can be the VM's, unless it is a collection itself.
        if _ID.fullmatch(directory) or (_COLLECTIONS.fullmatch(parent.lower()) and _is_own(directory)):
            return directory
        if _is_own(directory):
            return ""
    return ""


def _is_own(name: str) -> bool:
    """Return whether a name has a word of its own."""
    if not name or name.startswith("."):
        return False
    return not all(_COMMON.fullmatch(word) for word in re.split(r"[-_. ]+", name.lower()) if word)
