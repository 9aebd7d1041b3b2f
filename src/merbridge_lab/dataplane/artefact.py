"""The programs as BCC compiled them, in one file: `merlab compile` writes it, and it is loaded where BCC is missing.

Nothing in it depends on the kernel: what does is a value in the map `kernel`. It is JSON:

    {"format": 1, "stamp": "…", "byte_order": "little", "compiler": "BCC 0.26.0",
     "maps": [{"name": "merlab_pods", "type": 1, "key_size": 8, …}],
     "programs": [{"name": "merlab_connect4", "type": 18, "attach_type": 10, "license": "GPL", "feature": "…",
                   "needs": "bpf.…", "maps": {"merlab_pods": [12, 40]}, "code": "…"}]}

`code` is the instructions in hexadecimal, 8 bytes each. Those at the numbers in `maps` load a map (BPF_PSEUDO_MAP_FD);
their operand is zero in the file. `feature` and `needs` say what a kernel lacks that refuses the program: in words, and
in kernel_features.FEATURES.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merbridge_lab.adapters import bcc_import
from merbridge_lab.adapters.bpf_objects import MapShape
from merbridge_lab.dataplane import abi
from merbridge_lab.dataplane.pins import MAPS, PREFIX, PROGRAMS
from merbridge_lab.errors import LabError

#: Names the file to load the programs from, even if BCC could compile them.
VARIABLE = "MERLAB_COMPILED"
#: Where it is looked for if BCC is missing, and where `merlab compile` writes it: beside the sources.
PLACE = abi.BPF / "compiled.json"

_FORMAT = 1
_SIZE = 8
_LOAD_64, _MAP_FD = 0x18, 1  # BPF_LD | BPF_IMM | BPF_DW, which is two instructions long; BPF_PSEUDO_MAP_FD


@dataclass(frozen=True)
class CompiledProgram:
    """One program; `maps` has the numbers of the instructions that load a map, by the name of the map."""

    name: str
    type: int
    attach_type: int
    license: str
    feature: str
    needs: str
    maps: dict[str, list[int]]
    code: bytes

    def linked(self, descriptors: dict[str, int]) -> bytes:
        """Return the instructions with the descriptors of the maps."""
        linked = bytearray(self.code)
        for name, places in self.maps.items():
            for place in places:
                struct.pack_into("=i", linked, place * _SIZE + 4, descriptors[name])
        return bytes(linked)


@dataclass(frozen=True)
class Artefact:
    """All maps and programs, and what compiled them."""

    stamp: str
    compiler: str
    byte_order: str
    maps: tuple[MapShape, ...]
    programs: tuple[CompiledProgram, ...]

    def program(self, name: str) -> CompiledProgram:
        """Return a program by its name in the kernel."""
        return next(each for each in self.programs if each.name == name)

    def text(self) -> str:
        """Return the content of the file."""
        told = dataclasses.asdict(self)
        told["maps"] = [shape._asdict() for shape in self.maps]
        for program in told["programs"]:
            program["code"] = program["code"].hex()
        return json.dumps({"format": _FORMAT, **told}, indent=1) + "\n"


def unlinked(code: bytes, names: dict[int, str]) -> tuple[bytes, dict[str, list[int]]]:
    """Return instructions without the descriptors of maps, and which of them load which map.

    Raise LabError for a descriptor of no map in `names`.
    """
    plain, maps, number = bytearray(code), dict[str, list[int]](), 0
    while number * _SIZE < len(plain):
        operation, registers, _, value = struct.unpack_from("=BBhi", plain, number * _SIZE)
        if operation == _LOAD_64 and registers >> 4 == _MAP_FD:
            if value not in names:
                raise LabError("a program uses a map that merlab does not know", id="internal")
            maps.setdefault(names[value], []).append(number)
            struct.pack_into("=i", plain, number * _SIZE + 4, 0)
        number += 2 if operation == _LOAD_64 else 1
    return bytes(plain), maps


def read(path: Path) -> Artefact:
    """Read the file. Raise LabError if it cannot be read, or was not compiled from this version's sources."""
    try:
        told: dict[str, Any] = json.loads(path.read_text())
        if told["format"] != _FORMAT:
            raise _unusable(path, f"has format {told['format']}, expected {_FORMAT}")
        made = Artefact(
            told["stamp"],
            told["compiler"],
            told["byte_order"],
            tuple(MapShape(**each) for each in told["maps"]),
            tuple(CompiledProgram(**{**each, "code": bytes.fromhex(each["code"])}) for each in told["programs"]),
        )
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unusable(path, "was not written by `merlab compile`, or is damaged") from error
    if made.stamp != abi.stamp():
        raise _unusable(path, f"was compiled from the sources of merlab {made.stamp}, this is {abi.stamp()}")
    wanted = {PREFIX + each for each in (*PROGRAMS, "learn", *MAPS)}
    if missing := sorted(wanted - {each.name for each in made.programs} - {each.name for each in made.maps}):
        raise _unusable(path, f"is incomplete: {', '.join(missing)}")
    if made.byte_order != sys.byteorder:
        raise _unusable(path, f"was compiled for {made.byte_order}-endian processors")
    return made


def _unusable(path: Path, why: str) -> LabError:
    return LabError(f"the file of compiled programs {path} {why}", hint="merlab compile", id="compiled.unusable")


def chosen(root: Path = Path("/")) -> Path | None:
    """Return the file to load the programs from; None if they are to be compiled.

    That is the file that the environment names. Otherwise, it is the one beside the sources if BCC is missing below
    `root`.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named)
    return PLACE if not has_bcc(root) and PLACE.is_file() else None


def has_bcc(root: Path = Path("/")) -> bool:
    """Report whether BCC is on this machine, or below another root."""
    return any(map(bcc_import.is_bcc, bcc_import.candidates(root)))
