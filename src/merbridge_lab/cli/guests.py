"""Other kernels: `merlab kernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merbridge_lab.cli.app import Debug, JsonFlag, NoColor, app
from merbridge_lab.cli.session import Session
from merbridge_lab.errors import LabError

if TYPE_CHECKING:
    from merbridge_lab.guest.kernels import Kernel


@app.command("kernels")
def list_kernels(json: JsonFlag = False, debug: Debug = False, no_color: NoColor = False) -> None:
    """List the kernels that --kernel can boot: those at hand, and those of the distribution's packages.

    merlab downloads a package itself, unpacks it in your cache, and installs nothing.

    Examples:  merlab kernels    merlab doctor --kernel 6.12    merlab verify --kernel newest
    """
    with Session("kernels", as_json=json, debug=debug, no_color=no_color, quiet=True) as run:
        from merbridge_lab.guest import debian, kernels

        at_hand = kernels.at_hand()
        have = {kernel.version for kernel in at_hand}
        packages = [each for each in debian.newest_of_series(debian.offered()) if each not in have]
        releases = list(debian.RELEASES) if debian.mirrors() else []
        if json:
            run.console.json(
                {
                    "schema": 1,
                    "kernels": [_described(kernel) for kernel in at_hand]
                    + [{"version": each, "at_hand": False, "get": debian.command(each)} for each in packages],
                    "releases": releases,
                }
            )
            return
        if not (at_hand or packages or releases):
            raise LabError(
                "there is no kernel at hand: none with its modules is installed, and apt knows none",
                hint="name the directory of an unpacked kernel package after --kernel",
                id="kernel.unknown",
            )
        run.console.kernels(
            [(kernel.version, str(kernel.image)) for kernel in at_hand],
            [(version, debian.command(version)) for version in packages],
            ", ".join(releases),
        )


def _described(kernel: Kernel) -> dict[str, object]:
    return {
        "version": kernel.version,
        "at_hand": True,
        "image": str(kernel.image),
        "modules": str(kernel.modules),
    }
