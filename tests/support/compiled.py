"""Compiled C: a test can ask where a field lies both from the BTF and from the compiled program."""

from __future__ import annotations

import subprocess
from pathlib import Path


def object_file(source: str, folder: Path, *, name: str = "types") -> Path:
    """Compiles `source` to an object file with BTF."""
    path = folder / f"{name}.c"
    path.write_text(source)
    output = path.with_suffix(".o")
    command = ["gcc", "-gbtf", "-fno-eliminate-unused-debug-types", "-c", str(path), "-o", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    return output


def printed(source: str, expressions: list[str], folder: Path) -> list[int]:
    """What a program made of `source` prints for each expression, as numbers."""
    prints = "\n".join(f'printf("%lld\\n", (long long)({expression}));' for expression in expressions)
    path = folder / "print.c"
    path.write_text(f"#include <stddef.h>\n#include <stdio.h>\n{source}\nint main(void) {{ {prints} }}\n")
    program = path.with_suffix("")
    subprocess.run(["gcc", path, "-o", program], check=True, capture_output=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return [int(line) for line in output.split()]
