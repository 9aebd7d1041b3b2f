"""Remove secrets from output: for a sysdump, which people send to others."""

from __future__ import annotations

import re
from typing import Any

#: What replaces a value.
GONE = "(left out)"

#: Words in the name of a setting, an option or a key that mark its value as private.
_WORD = (
    r"(?:token|passw(?:or)?d|passphrase|secret|credential|api[_.-]?key|private[_.-]?key|access[_.-]?key|authorization)"
)
_NAMED = re.compile(_WORD, re.IGNORECASE)
#: NAME=VALUE and NAME: VALUE in a line of text. A value in quotes or brackets may contain spaces. Every repetition is
#: bounded; otherwise a log of long words would take minutes.
_VALUE = r"""(\{[^}]{0,2000}\}?|\[[^\]]{0,2000}\]?|"[^"]*"|'[^']*'|[^\s"',;&}\]]+)"""
#: The location of a secret, as Envoy's configuration names it, is not a secret.
_PLACE = re.compile(r"""\{\s*"?filename"?:\s*[^\s{},]+\s*\}""")
_ASSIGNED = re.compile(rf"""({_WORD}[\w./-]{{0,40}}["']?\s{{0,3}}[=:]\s{{0,3}}){_VALUE}""", re.IGNORECASE)
_OPTION = re.compile(rf"((?<![\w-])--(?!-)[\w-]{{0,40}}?{_WORD}[\w-]{{0,40}}\s{{1,3}}){_VALUE}", re.IGNORECASE)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_TOKEN = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")  # a JSON web token
_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_IN_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@]{0,200}):[^\s/@]{1,200}@")
#: Keys whose value is left out in any form, and those whose words are treated as a command line.
_WHOLE = {"env", "envFrom", "data", "stringData", "binaryData", "annotations"}
_WORDS = {"args", "command", "argv"}
#: Annotations that describe what Istio and Kubernetes made of a pod.
_TELLING = re.compile(
    r"(sidecar|proxy)\.istio\.io/(inject|nativeSidecar)$|istio\.io/rev$|kubectl\.kubernetes\.io/default-container$"
)


def text(told: str) -> str:
    """Redact keys, tokens, passwords and values with such names in a text."""
    told = _KEY.sub(GONE, told)
    told = _BEARER.sub(rf"\1 {GONE}", told)
    told = _TOKEN.sub(GONE, told)
    told = _IN_ADDRESS.sub(rf"\1:{GONE}@", told)
    told = _ASSIGNED.sub(lambda each: each[0] if _PLACE.fullmatch(each[2]) else f"{each[1]}{GONE}", told)
    return _OPTION.sub(rf"\1{GONE}", told)


def value(told: Any, key: str = "") -> Any:  # noqa: ANN401 - whatever JSON holds
    """Redact any JSON value; of environments, annotations and the like, only the names are kept."""
    if key in _WHOLE:
        return _names(told, key)
    if isinstance(told, dict):
        return {name: value(each, str(name)) for name, each in told.items()}
    if isinstance(told, (list, tuple)):
        return _words(told) if key in _WORDS else [value(each) for each in told]
    if isinstance(told, str):
        return GONE if told and _NAMED.search(key) else text(told)
    return told


def _names(told: Any, key: str) -> Any:  # noqa: ANN401 - see value
    if isinstance(told, dict):
        kept = {name: key == "annotations" and bool(_TELLING.search(str(name))) for name in told}
        return {name: each if kept[name] else GONE for name, each in told.items()}
    if isinstance(told, list):
        return [
            {"name": each["name"], "value": GONE} if isinstance(each, dict) and "name" in each else GONE
            for each in told
        ]
    return told if told is None else GONE


def _words(told: Any) -> list[Any]:  # noqa: ANN401 - see value
    """Redact a command line word by word: the value of an option may be the next word."""
    words, after = [], False
    for each in told:
        if after and isinstance(each, str) and not each.startswith("-"):
            words.append(GONE)
        else:
            words.append(value(each))
        after = isinstance(each, str) and each.startswith("-") and "=" not in each and bool(_NAMED.search(each))
    return words


def setting(told: str) -> str:
    """Return the name of a KEY=VALUE, without its value."""
    name, sign, _ = told.partition("=")
    return f"{name}={GONE}" if sign else GONE
