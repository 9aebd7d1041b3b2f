"""What merlab's own source compiles to, to compare with what the kernel runs.

The stamp beside the pins identifies it, too. But whoever can pin other programs can also write another stamp, or any
other file that merlab keeps: on the machine, only the source itself is evidence. So it is compiled once more (half a
second, 120 MB), in a separate process: BCC changes the working directory and the standard error of its caller. `verify`
starts this when it begins, and compares in its last check of the dataplane: it runs in parallel to the rest, at no
measurable cost. Nothing is loaded for it.

Without BCC, the kernel's programs are compared with the file that they were loaded from, and `not_compared` says so.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from typing import TYPE_CHECKING, Any

from merbridge_lab.adapters import bpf_syscall
from merbridge_lab.adapters.command import Beside
from merbridge_lab.dataplane import artefact
from merbridge_lab.dataplane.pins import PREFIX, PROGRAMS, opened
from merbridge_lab.errors import LabError
from merbridge_lab.shortage import unread

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from merbridge_lab.dataplane.pins import Pins

#: Compiling on an emulated processor takes more than a minute, in seconds.
_COMPILE = 180.0
_LOAD_64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW: two instructions long
_OF_MAPS = (1, 2)  # BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE
_TAG = 8


class Recompiled:
    """The tags that merlab's programs must have; compiling begins when this object is created. Raises LabError."""

    def __init__(self) -> None:
        # With our own search path and no other: a file of the current directory must not be taken for a module.
        script = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
        self._compiling = Beside([sys.executable, "-I", "-B", "-c", script])
        self._told: dict[str, Any] | None = None

    def tags(self) -> Mapping[str, list[str]]:
        """Return the tags that a kernel may give the programs, by their names in the kernel. Raises LabError."""
        tags: Mapping[str, list[str]] = self._result().get("tags", {})
        return tags

    def kernel(self) -> Mapping[str, int]:
        """Return what the programs must be told about this kernel (kernel_facts.constant). Raises LabError."""
        facts: Mapping[str, int] = self._result().get("kernel", {})
        return facts

    def file(self) -> str | None:
        """Return the file that the tags were taken from; None if the source was compiled. Raises LabError."""
        file: str | None = self._result().get("file")
        return file

    def _result(self) -> Mapping[str, Any]:
        if self._told is None:
            done = self._compiling.result(_COMPILE)
            try:
                self._told = json.loads(done.stdout)
            except ValueError as error:
                said = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.status}"
                raise LabError(
                    f"merlab's own BPF programs could not be compiled: {said}",
                    hint="merlab doctor",
                    id="dataplane.failed",
                ) from error
        return self._told or {}


def tags(code: bytes) -> list[str]:
    """Return the tags that kernels give a program: a digest of its instructions, without the numbers of its maps.

    Linux uses SHA-256 since 6.18, SHA-1 before; see bpf_prog_calc_tag() in kernel/bpf/core.c.
    """
    plain, at = bytearray(code), 0
    while at < len(plain):
        operation, registers = struct.unpack_from("=BB", plain, at)
        wide = operation == _LOAD_64
        if wide and registers >> 4 in _OF_MAPS:
            plain[at + 4 : at + 8] = plain[at + 12 : at + 16] = bytes(4)
        at += 16 if wide else 8
    digests = (hashlib.sha256(plain), hashlib.sha1(plain))  # noqa: S324 - the kernel's choice
    return [digest.digest()[:_TAG].hex() for digest in digests]


def problems(pins: Pins, recompiled: Recompiled | None, *, needed: bool) -> list[str]:
    """Describe which running programs differ from what merlab's source compiles to.

    If it was not compiled, or cannot be, that is a problem only if it is `needed`: for a proof, not for a repair.
    """
    if recompiled is None:
        return []
    try:
        wanted, file = recompiled.tags(), recompiled.file()
    except LabError as error:
        return [str(unread("what merlab's BPF source compiles to", error))] if needed else []
    found = _kernel_problems(pins, recompiled.kernel())
    for name in PROGRAMS:
        try:
            with opened(pins.prog(name)) as fd:
                program = bpf_syscall.prog_info(fd)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):  # a missing pin was already reported
                found.append(str(unread(f"program {name}", error)))
            continue
        if program.tag not in wanted.get(PREFIX + name, ()):
            found.append(
                f"program {name} (id {program.id}) is not what merlab's source compiles to on this machine: it is"
                " another program, or BCC was upgraded since it was loaded"
                if file is None
                else f"program {name} (id {program.id}) is not the one in {file}: it is another program, or the file"
                " was replaced since it was loaded"
            )
    return found


def _kernel_problems(pins: Pins, facts: Mapping[str, int]) -> list[str]:
    try:
        told = pins.kernel()
    except OSError as error:
        return [] if isinstance(error, FileNotFoundError) else [str(unread("map kernel", error))]
    wrong = [name for name, value in facts.items() if told[name] != value]
    return [f"the programs are told something else about this kernel than it is: {', '.join(wrong)}"] if wrong else []


def _file() -> Path | None:
    return None if artefact.has_bcc() else artefact.chosen()


def not_compared() -> str | None:
    """Describe what the comparison leaves out on this machine; None if it leaves out nothing."""
    file = _file()
    if file is None:
        return None
    return (
        f"without BCC, the programs in the kernel are compared with {file}, and that file is not compared with"
        " merlab's source"
    )


def main() -> None:
    """Compile, or read what was compiled, and print the expected tags; or print why not, and fail."""
    from merbridge_lab.dataplane import compiler, kernel_facts

    file = _file()
    try:
        compiled = compiler.compiled() if file is None else artefact.read(file)
    except LabError as error:
        sys.exit(error.what)
    told = {
        "tags": {PREFIX + name: tags(compiled.program(PREFIX + name).code) for name in PROGRAMS},
        "file": None if file is None else str(file),
        "kernel": kernel_facts.constant(),
    }
    json.dump(told, sys.stdout)
