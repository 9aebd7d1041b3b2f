"""Commands that are planned but not built yet: absent from the help; if typed all the same, they report this."""

from __future__ import annotations

from merbridge_lab.cli.app import PASS_ON, app
from merbridge_lab.cli.session import Session
from merbridge_lab.errors import LabError

_INSTEAD = {
    "compare": "merlab verify -vv",
}


def _plan(name: str, instead: str) -> None:
    @app.command(name, hidden=True, context_settings=PASS_ON)
    def planned() -> None:
        with Session(name):
            raise LabError(f"merlab {name} is planned, but not built yet", hint=instead, id="feature.not_built")


for _name, _instead in _INSTEAD.items():
    _plan(_name, _instead)
