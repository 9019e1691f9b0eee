"""QEMU's command line: which of its options take an argument, and how arguments are written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

# Those with HAS_ARG in qemu-options.hx: the first lines are those of QEMU 7.2, which a test asks the program
# itself about; the last ones are of other releases. All other options are flags.
_TAKE_ARGUMENT = re.compile(
    r"""
    D|L|M|accel|acpitable|action|add-fd|append|audio|audiodev|bios|blockdev|boot|cdrom|chardev|chroot|compat
    |cpu|d|debugcon|device|dfilter|display|drive|dtb|dump-vmstate|echr|fda|fdb|fsdev|fw_cfg|g|gdb|global|hda
    |hdb|hdc|hdd|icount|incoming|initrd|iscsi|k|kernel|loadvm|m|machine|mem-path|mon|monitor|msg|mtdblock
    |name|net|netdev|nic|numa|object|option-rom|overcommit|parallel|pflash|pidfile|plugin|prom-env|qmp
    |qmp-pretty|qtest|qtest-log|readconfig|rotate|rtc|runas|sandbox|sd|seed|semihosting-config|serial|set
    |smbios|smp|spice|tpmdev|trace|usbdevice|uuid|vga|virtfs|vnc|watchdog-action|xen-domid
    |balloon|bootp|bt|clock|hdachs|nvram|pcidevice|realtime|redir|run-with|shim|smb|soundhw|startdate
    |tb-size|tftp|virtioconsole|watchdog|writeconfig
    """,
    re.VERBOSE,
)


def options(command: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option without its dashes, `-name` and `--name` being the same, with the argument after it.

    An option that takes an argument takes any, also one that looks like an option (`-append -name`). What
    follows other options may be the next one.
    """
    i = 1
    while i < len(command):
        argument = command[i]
        i += 1
        if not argument.startswith("-"):
            continue  # a disk image
        option = argument.removeprefix("-").removeprefix("-")
        yield option, command[i] if i < len(command) else ""
        if _TAKE_ARGUMENT.fullmatch(option):
            i += 1


def fields(argument: str) -> dict[str, str]:
    """Return `key=value,…` as a dictionary; a first value without `=` has an implied key, here "".

    A comma in a value is doubled, and the last value of a key counts (util/qemu-option.c).
    """
    found = {}
    for i, field in enumerate(re.findall(r"(?:[^,]|,,)+", argument)):
        key, equals, content = field.partition("=")
        if equals:
            found[key] = content.replace(",,", ",")
        elif i == 0:
            found[""] = key.replace(",,", ",")
    return found
