"""Load the programs: compile them with BCC, or take what it compiled where there is a file of that and no BCC.

Both ways give the same maps and programs, by the same names, and all that were loaded together share their types.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import TYPE_CHECKING

from merbridge_lab.adapters import bpf_objects, kernel_features, ring_buffer
from merbridge_lab.adapters.btf_blob import Blob
from merbridge_lab.dataplane import artefact
from merbridge_lab.dataplane.loaded import Loaded
from merbridge_lab.dataplane.pins import MAPS, PREFIX, PROGRAMS
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from merbridge_lab.adapters.bpf_objects import MapShape
    from merbridge_lab.dataplane.artefact import Artefact

_LEARNER = PREFIX + "learn"


def load() -> Loaded:
    """Load everything, compiled now or before; nothing is attached or pinned.

    Compiling changes the working directory for a moment: call this before starting threads. Raise LabError if there is
    neither BCC nor a usable file, UnsupportedFeatureError for a missing feature, OSError for what else the kernel
    refuses.
    """
    compiled = artefact.chosen()
    if compiled is not None:
        return load_compiled(artefact.read(compiled))
    from merbridge_lab.dataplane import compiler  # BCC is only needed to compile

    return compiler.load()


def load_compiled(made: Artefact) -> Loaded:
    """Load what was compiled before. Raises LabError, UnsupportedFeatureError, OSError."""
    with contextlib.ExitStack() as undo:
        opened = undo.enter_context(contextlib.ExitStack())
        loader = _Loader(made, opened)
        programs = {PREFIX + name: loader.program(PREFIX + name) for name in PROGRAMS}
        maps = {name: loader.maps[PREFIX + name] for name in MAPS}
        undo.pop_all()
    return Loaded(programs, maps, lambda: loader.program(_LEARNER), opened.close)


def _key_type(blob: Blob, shape: MapShape) -> int:
    """Return the type of a map's keys: the kernel wants those of an LPM trie to be a structure."""
    return blob.structure(shape.key_size) if shape.type == bpf_objects.LPM_TRIE else blob.sized(shape.key_size)


class _Loader:
    """Load the types and maps of an artefact, then its programs; `opened` closes all of them."""

    def __init__(self, made: Artefact, opened: contextlib.ExitStack) -> None:
        self._made, self._opened = made, opened
        blob = Blob()
        sized = {
            shape.name: (_key_type(blob, shape), blob.sized(shape.value_size)) for shape in made.maps if shape.typed
        }
        self._functions = {program.name: blob.function(program.name) for program in made.programs}
        self.maps: dict[str, int] = {}
        try:
            self._types = self._keep(bpf_objects.load_types(blob.bytes()))
            for shape in made.maps:
                types = bpf_objects.Types(self._types, sized[shape.name]) if shape.typed else None
                inner = self._ring() if shape.type == bpf_objects.ARRAY_OF_MAPS else 0
                self.maps[shape.name] = self._keep(bpf_objects.create_map(shape, types, inner))
        except PermissionError as refused:
            raise _as_root(refused) from refused

    def _ring(self) -> int:
        """Return what the rings in an array look like; only the kernel looks at it."""
        return self._keep(ring_buffer.create(mmap.PAGESIZE, "merlab_ring"))

    def program(self, name: str) -> int:
        """Load a program; its descriptor is closed with the others. Raises LabError, UnsupportedFeatureError."""
        made = self._made.program(name)
        types = bpf_objects.Types(self._types, (self._functions[name],))
        try:
            return self._keep(
                bpf_objects.load_program(name, made.type, made.attach_type, made.linked(self.maps), made.license, types)
            )
        except bpf_objects.RefusedError as refused:
            if os.geteuid() != 0:
                raise _as_root(refused) from refused
            raise kernel_features.cannot(made.needs, refused.log or str(refused), named=made.feature) from refused

    def _keep(self, descriptor: int) -> int:
        self._opened.callback(os.close, descriptor)
        return descriptor


def _as_root(refused: OSError) -> Exception:
    """Return the error that says to be root; `refused` itself if this is root."""
    if os.geteuid() == 0:
        return refused
    return LabError("loading BPF programs requires root", hint="sudo merlab up", id="root.needed")
