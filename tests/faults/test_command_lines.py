"""Command lines that are broken, hostile, or that look like something else."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from typing import Any

import pytest

from tests.faults.conftest import Attack
from tests.support.vmm_commands import PROCESSES, expected
from vpmu_agent.vms.clean import MAX_NAME, clean_name
from vpmu_agent.vms.command_line import canonical_uuid, identify
from vpmu_agent.vms.qemu_options import options

QEMU = "qemu-system-x86_64"
TRIES = 20_000

COMMANDS = [process["command"].split("\n") for (process,) in (each.values for each in PROCESSES)]  # type: ignore[index]
WORDS = [
    "-",
    "--",
    "=",
    ",",
    ",,",
    ",,,",
    "@",
    "/",
    "//",
    "/dev/fd/63",
    "-name",
    "--name=",
    "-uuid",
    "type=1,uuid=",
    "boot",
    "microvm@",
    "{}",
    "�",
]
PIECES = [*WORDS, "", "\0", "\x1b[2J", "\u0660" * 32, "x" * 70_000, "/" * 5000, "," * 5000]


def mutated(command: list[str], rng: random.Random) -> list[str]:
    """The command line with one to four random faults."""
    command = list(command)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(command)) if command else 0
        fault = rng.randrange(6)
        if not command or fault == 0:
            command.insert(at, rng.choice(PIECES))
        elif fault == 1:
            del command[at]
        elif fault == 2:
            command[at] = command[at][: rng.randint(0, len(command[at]))]
        elif fault == 3:
            other = rng.choice(COMMANDS)
            command[at:] = other[rng.randrange(len(other)) :]
        elif fault == 4:
            command[at] += rng.choice(PIECES)
        else:
            rng.shuffle(command)
    return command


def test_mutated_command_lines(attack: Attack) -> None:
    """A command line that no VMM would take"""
    rng = random.Random(13)
    for i in range(TRIES):
        command = mutated(rng.choice(COMMANDS), rng)
        with attack.once(f"{i}: {command!r:.200}"):
            found = identify(command, comm=rng.choice(["", "kvm", "runsc", "crosvm\n", *PIECES[-7:]]))
            assert found.uuid == "" or re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", found.uuid)
            name = clean_name(found.name)
            assert name == "" or (name.isprintable() and len(name) <= MAX_NAME)


def test_public_command_lines(attack: Attack) -> None:
    """A command line as hosts and documents have it is given a wrong name"""
    for param in PROCESSES:
        process: Any = param.values[0]
        with attack.once(process["source"]):
            cgroup = process.get("cgroup", "")
            found = identify(process["command"].split("\n"), comm=process["comm"], cgroup=cgroup)
            assert found == expected(process)


def qemus_own(*arguments: str) -> tuple[str, str]:
    """The name and the UUID that QEMU itself takes from its command line."""
    command = [QEMU, "-accel", "tcg", "-m", "16", "-S", "-display", "none", "-nodefaults", "-qmp", "stdio"]
    names = ("qmp_capabilities", "query-name", "query-uuid", "quit")
    asked = "".join(json.dumps({"execute": name}) + "\n" for name in names)
    done = subprocess.run(
        [*command, *arguments], input=asked, capture_output=True, text=True, check=True, timeout=30
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    found = {key: value for answer in answers for key, value in answer.get("return", {}).items()}
    return found.get("name", ""), canonical_uuid(found["UUID"])


def named(rng: random.Random) -> list[str]:
    """Arguments that name a VM in one of QEMU's ways, or look as if they did."""
    word = "".join(rng.choices("ab,=.-", k=rng.randint(1, 5))).replace(",", ",,")
    uuid = f"{rng.getrandbits(128):032x}"
    uuid = "-".join((uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:]))
    return rng.choice(
        [
            ["-name", word.replace("=", "")],
            ["--name", f"guest={word}"],
            ["-name", f"debug-threads=on,guest={word}"],
            ["-name", "debug-threads=off"],
            ["-name", ""],
            ["-uuid", uuid],
            ["--uuid", uuid.upper()],
            ["-smbios", f"type=1,uuid={uuid}"],
            ["-smbios", "type=1,serial=x"],
            ["-fw_cfg", f"name=opt/{uuid},string=-name"],
            ["-echr", "1"],
            ["-D", "/dev/null"],
            ["-no-shutdown"],
            ["-L", "-uuid"],
            ["-L", "-name"],
            ["-k", "-smbios"],
        ]
    )


@pytest.mark.skipif(not shutil.which(QEMU), reason=f"{QEMU} is not installed")
@pytest.mark.slow
def test_qemu_itself(attack: Attack) -> None:
    """QEMU reads a command line in another way than the agent"""
    rng = random.Random(15)
    for _ in range(60):
        arguments = [word for _ in range(rng.randint(1, 7)) for word in named(rng)]
        with attack.once(" ".join(arguments)):
            found = identify([QEMU, *arguments])
            assert (found.name, found.uuid) == qemus_own(*arguments)


@pytest.mark.skipif(not shutil.which(QEMU), reason=f"{QEMU} is not installed")
def test_options_with_arguments(attack: Attack) -> None:
    """QEMU takes an argument for an option that the agent takes for a flag, or the other way round"""
    text = subprocess.run([QEMU, "--help"], capture_output=True, text=True, check=True).stdout
    found = {name for line in text.splitlines() for name in re.findall(r"^--?([\w-]+)", line)}
    assert {"name", "uuid", "append", "S", "snapshot"} <= found
    for option in sorted(found):
        with attack.once(option):
            done = subprocess.run(
                [QEMU, "-version", f"-{option}"], capture_output=True, text=True, check=False
            )
            names = [name for name, _ in options([QEMU, f"-{option}", "-nodefaults"])]
            assert ("requires an argument" in done.stderr) == (names == [option])
