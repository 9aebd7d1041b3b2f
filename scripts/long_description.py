"""The long description of the package: README.md, whose links hold on another page than the repository's too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

#: [text](target) and ![text](target), where the target is a path in the repository.
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)\s]+)\)")


def absolute(text: str, source: str, version: str) -> str:
    """Make links to files of the repository absolute; where it has no address yet, only their text is left."""
    where = source.rstrip("/")

    def link(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if not where:
            return "" if picture else words
        return f"{picture}[{words}]({where}/{'raw' if picture else 'blob'}/v{version}/{target})"

    return _LINK.sub(link, text)


class Description(MetadataHookInterface):
    """What hatchling asks for the fields that pyproject.toml calls dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the long description, and the addresses where there are any."""
        root, source = Path(self.root), str(self.config.get("source", ""))
        text = (root / "README.md").read_text(encoding="utf-8")
        version = re.search(r'__version__ = "([^"]+)"', (root / "src/merbridge_lab/__init__.py").read_text())
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, source, version[1] if version else "0"),
        }
        metadata["urls"] = (
            {
                "Source": source,
                "Issues": f"{source}/issues",
                "Changelog": f"{source}/blob/main/CHANGELOG.md",
            }
            if source
            else {}
        )
