"""The debug flag in the arguments of mbctl, wherever a container has them: in its command or in its args."""

from __future__ import annotations

import copy
import re
import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_FLAGS = ("-d", "--debug", "-d=true", "--debug=true")
#: A call of it by a shell: its name, and its arguments as far as this command extends.
_CALL = re.compile(r"(?P<name>(?:^|(?<=[\s/]))mbctl\b)(?P<rest>[^;&|\n]*)")


def _words(container: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the field in which mbctl is called, and the position; None if the image's own command calls it."""
    for field in ("command", "args"):
        for place, word in enumerate(container.get(field) or ()):
            if str(word).rpartition("/")[2] == "mbctl" or _in_shell(str(word)):
                return field, place
    return None


def _in_shell(word: str) -> bool:
    return " " in word and _CALL.search(word) is not None


def debug(container: Mapping[str, Any]) -> bool:
    """Report whether the container's mbctl is told to write trace lines."""
    words = [str(word) for field in ("command", "args") for word in container.get(field) or ()]
    return any(word in _FLAGS or (_in_shell(word) and _in_text(word)) for word in words)


def _in_text(text: str) -> bool:
    return any(word in _FLAGS for call in _CALL.finditer(text) for word in call["rest"].split())


def with_debug(container: Mapping[str, Any]) -> dict[str, Any]:
    """Return the container with -d after mbctl, as in the walkthrough; unchanged if it has the flag."""
    changed = copy.deepcopy(dict(container))
    if debug(container):
        return changed
    at = _words(container)
    if at is None:
        # mbctl is the image's command: args are then mbctl's own.
        changed["args"] = ["-d", *(container.get("args") or ())]
        return changed
    field, place = at
    word = str(changed[field][place])
    if _in_shell(word):
        changed[field][place] = _CALL.sub(r"\g<name> -d\g<rest>", word, count=1)
    else:
        changed[field].insert(place + 1, "-d")
    return changed


def without_debug(container: Mapping[str, Any]) -> dict[str, Any]:
    """Return the container without the flag."""
    changed = copy.deepcopy(dict(container))
    for field in ("command", "args"):
        if field in changed:
            kept = [word for word in changed[field] if str(word) not in _FLAGS]
            changed[field] = [_cleared(str(word)) if _in_shell(str(word)) else word for word in kept]
    return changed


def _cleared(text: str) -> str:
    flag = rf"\s(?:{'|'.join(map(re.escape, sorted(_FLAGS, key=len, reverse=True)))})(?=\s|$)"
    return _CALL.sub(lambda call: call["name"] + re.sub(flag, "", call["rest"]), text)


def place_of_flag(container: Mapping[str, Any]) -> str:
    """Return the position of -d as "args/1": the field, and the index in it."""
    at = _words(container)
    return f"{at[0]}/{at[1] + 1}" if at else "args/0"


def excerpt(container: Mapping[str, Any]) -> str:
    """Return the lines of YAML that the walkthrough shows: the container's command and args."""
    lines = []
    for field in ("command", "args"):
        if container.get(field):
            lines += [f"        {field}:", *(f"        - {_quoted(str(word))}" for word in container[field])]
    return "\n".join(lines)


def _quoted(word: str) -> str:
    return word if shlex.quote(word) == word else f"'{word}'"
