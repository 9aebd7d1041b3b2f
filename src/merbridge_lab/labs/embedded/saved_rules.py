"""The flushed rules on disk: one file a pod, `saved/<pod>.rules`, which also marks the flush as outstanding.

The file names its pod and network namespace, and contains a digest that shows that it is complete. Anything else in
that folder, or under that name, marks nothing: it is reported, and rules are checked as usual.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merbridge_lab import ruleset
from merbridge_lab.adapters import netns
from merbridge_lab.adapters.change import change
from merbridge_lab.errors import LabError
from merbridge_lab.labs.flush_policy import SpoiltSaveError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_HEADER = "# merlab: nat of"
_SUFFIX = ".rules"
#: What a merlab that was killed during a save leaves: today's drafts, and those of versions before 0.2.
_DRAFT = re.compile(r"\..+\.rules\.new|.+\.new")
#: The last line of a table that iptables-save wrote completely.
_END = re.compile(r"^COMMIT\n# Completed on .*\n\Z", re.MULTILINE)
_MOST = 1 << 20


class SpoiltError(SpoiltSaveError):
    """The file that should hold the rules of a pod does not hold what merlab saved."""

    default_id = "rules.not_restored"

    def __init__(self, path: Path, name: str, why: str) -> None:
        aside = path.parent.parent / f"{path.name}.set-aside"
        super().__init__(f"{path} is not what merlab saved of {name}: {why}", hint=f"mv -T {path} {aside} && merlab up")


@dataclass(frozen=True)
class Save:
    """The rules that were flushed, as iptables-save printed them; `cookie` is that of their network namespace."""

    backend: str
    cookie: int
    rules: str

    def text(self, name: str) -> str:
        """Return the whole file, for the pod `name`."""
        digest = hashlib.sha256(self.rules.encode()).hexdigest()
        return f"{_HEADER} {name}, backend={self.backend} netns={self.cookie} sha256={digest}\n{self.rules}"


class SaveFile:
    """The file for the pod `name` in `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._name = name
        self.path = folder / f"{name}{_SUFFIX}"
        #: A name that no pod has, so that a draft left behind is not taken for a pod's save.
        self._draft = folder / f".{name}{_SUFFIX}.new"

    def read(self) -> Save | None:
        """Return what is saved, or None. Raise SpoiltError for a file that merlab did not write this way."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:  # ELOOP: a symbolic link
            raise SpoiltError(self.path, self._name, error.strerror or str(error)) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SpoiltError(self.path, self._name, "it is not a plain file")
            raw = os.read(descriptor, _MOST)
        finally:
            os.close(descriptor)
        return self._parse(raw.decode(errors="replace"))

    def _parse(self, text: str) -> Save:
        head, _, rules = text.partition("\n")
        facts = dict(re.findall(r"(\w+)=(\S+)", head))
        if not (head.startswith(_HEADER) and facts.get("backend") in ruleset.BACKENDS and _number(facts.get("netns"))):
            raise SpoiltError(self.path, self._name, "its first line is not merlab's")
        of = head.removeprefix(_HEADER).partition(",")[0].strip()
        if of != self._name:
            raise SpoiltError(self.path, self._name, f"it says that it belongs to {of}")
        if not _END.search(rules):
            raise SpoiltError(self.path, self._name, "it is truncated")
        # Versions before 0.2 wrote no digest: their labs are taken over with their saves.
        if facts.get("sha256", digest := hashlib.sha256(rules.encode()).hexdigest()) != digest:
            raise SpoiltError(self.path, self._name, "it was changed after it was saved")
        return Save(facts["backend"], int(facts["netns"]), rules)

    def write(self, save: Save) -> None:
        """Write it, complete and on disk, or not at all. Raises LabError."""
        try:
            with change("save rules"):
                self._draft.unlink(missing_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                with os.fdopen(os.open(self._draft, flags, 0o600), "w") as file:
                    file.write(save.text(self._name))
                    file.flush()
                    os.fsync(file.fileno())
            with change("make the save known"):
                self._draft.rename(self.path)
                folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        except OSError as error:
            with contextlib.suppress(OSError), change("delete a save's draft"):
                self._draft.unlink()
            raise LabError(
                f"the rules of {self._name} cannot be saved to {self.path}: {error.strerror}",
                hint=f"df {self.path.parent}",
                id="rules.not_saved",
            ) from error

    @change("delete a save")
    def delete(self) -> None:
        """Delete it; succeed if it is missing."""
        self.path.unlink(missing_ok=True)

    def is_of(self, namespace: Path) -> bool:
        """Report whether there is a good save of exactly the network namespace that is pinned at `namespace` now."""
        try:
            save = self.read()
        except SpoiltError:
            return False
        return save is not None and save.cookie == cookie(namespace)


def _number(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit()


def cookie(namespace: Path) -> int | None:
    """Return the cookie of the network namespace pinned at `namespace`; None if there is none (any more)."""
    return netns.cookie(namespace) if netns.is_pinned(namespace) else None


def problems(folder: Path, pods: Collection[tuple[str, Path]]) -> list[str]:
    """Describe, one sentence each, what `folder` holds beside good saves of these pods (name, network namespace)."""
    known = {f"{name}{_SUFFIX}": (name, namespace) for name, namespace in pods}
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in known:
            remedy = "merlab up" if _is_draft(path) else f"rm -r {path}"
            what = "a draft of a merlab that was killed" if _is_draft(path) else "not merlab's"
            found.append(f"{path} is {what}: {remedy}")
            continue
        name, namespace = known[path.name]
        try:
            save = SaveFile(folder, name).read()
        except SpoiltError as error:
            found.append(f"{error.what}: {error.hint}")
            continue
        if save is not None and save.cookie != cookie(namespace):
            found.append(f"{path} belongs to a network namespace of {name} that is gone: merlab restore")
    return found


def _is_draft(path: Path) -> bool:
    return _DRAFT.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()


def delete_drafts(folder: Path) -> None:
    """Delete what a merlab that was killed during a save left in `folder`. Raises OSError."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _is_draft(path):
            with change("delete a save's draft"):
                path.unlink(missing_ok=True)
