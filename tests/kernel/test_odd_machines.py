"""Unusual machines, created in namespaces: on them `up`, `verify` and `down` work as on any other.

None of them changes a setting of the machine that the tests run on: the unusual part is in a mount, network or pid
namespace, in a limit or a filter of the process, and disappears with it.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from kernel_without import lacking
from test_bad_machines import host  # noqa: F401 - a fixture
from tests.merlab_cli import MERLAB
from walkthrough_host import environment, is_plain

pytestmark = pytest.mark.kernel

#: As firewalld 2 leaves it, cut to one zone: incoming and forwarded packets are rejected.
FIREWALLD = """
table inet firewalld {
  chain mangle_PREROUTING { type filter hook prerouting priority mangle + 10; policy accept; jump zones; }
  chain zones { return; }
  chain nat_PREROUTING { type nat hook prerouting priority dstnat + 10; policy accept; }
  chain nat_POSTROUTING { type nat hook postrouting priority srcnat + 10; policy accept; }
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    iifname lo accept
    ct state invalid drop
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    ct state invalid drop
    reject with icmpx admin-prohibited
  }
  chain filter_OUTPUT { type filter hook output priority filter + 10; policy accept; }
}
"""
#: As Docker leaves them.
DOCKER = """
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
"""


#: Mount points: Latin-1, then characters at which Python splits lines or words, as printf(1) writes them.
NAMES = (r"disk\374", r"a\302\205b", r"c\342\200\250d", r"e\034f", "g h")


@dataclass(frozen=True)
class Odd:
    """A machine: the lines of shell that create it, in separate namespaces, and the prefix of a command."""

    name: str
    lines: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()


ODD = [
    Odd("firewalld", (f"nft -f - <<'EOF'{FIREWALLD}EOF",)),
    Odd("docker", (f"iptables-nft-restore <<'EOF'{DOCKER}EOF",)),
    Odd("docker_legacy", (f"iptables-legacy-restore <<'EOF'{DOCKER}EOF",)),
    Odd("ipv6_off", ("for each in all default lo; do echo 1 >/proc/sys/net/ipv6/conf/$each/disable_ipv6; done",)),
    Odd("no_ipv6", prefix=lacking("ipv6")),
    Odd("hidepid", ("mount -t proc -o hidepid=2 proc /proc",)),
    Odd("few_files", ("ulimit -n 64",)),
    Odd("umask_0", ("umask 0",)),
    Odd("umask_077", ("umask 077",)),
    Odd("locked_memory", ("ulimit -l 64",)),
    # As kernel.kptr_restrict=2, and many containers.
    Odd("hidden_symbols", prefix=("setpriv", "--bounding-set=-syslog")),
    Odd("odd_mount_points", tuple(f'd=$(printf "/run/odd/{name}"); mkdir -p "$d"; mount -t tmpfs none "$d"'
                                  for name in NAMES)),
]  # fmt: skip
#: All in one, so that everything costs one lab in `make test`; each alone is for `make soak`.
TOGETHER = Odd(
    "all_at_once",
    tuple(line for odd in ODD for line in odd.lines),
    tuple(word for odd in ODD for word in odd.prefix),
)


def _machine(odd: Odd) -> tuple[str, ...]:
    # A user with /run in a separate namespace has a separate lab there: nothing of it is visible outside.
    lines = ["set -e", "mount -t tmpfs none /run", *odd.lines, 'exec "$@"']
    return ("unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines), "sh", *odd.prefix)


@pytest.mark.parametrize(
    "odd", [TOGETHER, *(pytest.param(odd, marks=pytest.mark.soak) for odd in ODD)], ids=lambda odd: odd.name
)
def test_up_verify_and_down_work(host, odd):  # noqa: F811, ARG001
    """M10, c17 and section 3: what is unusual about a machine and does not concern merlab changes no verdict."""
    calls = f"'{MERLAB}' up -q && '{MERLAB}' verify -q; status=$?; '{MERLAB}' down -q && ls -A /run >&3; exit $status"
    done = subprocess.run(
        [*_machine(odd), "sh", "-c", f"exec 3>&1; {calls}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert is_plain(done)
    assert "up: 10 of 10 steps held" in done.stdout
    assert "6 of 6 cells as expected" in done.stdout
    left = set(done.stdout.rstrip("\n").split("\n")[2:]) - {"odd", "mount", "xtables.lock", "merlab"}
    assert not {each for each in left if each.startswith("merlab-")}
    assert Path("/run").is_dir()
