#!/bin/sh
# Run in a bare guest that has a folder of `make offline` at /offline: what a user types there, and then phases of
# inside.py, which needs the Python that comes with it.
cd "$(dirname "$0")/../.." || exit 1
fail() {
    printf '{"phase": "from nothing", "held": false, "said": "%s", "seconds": 0}\n' "$1"
    exit 1
}
for each in make python3 iptables nft curl bpftool; do
    ! command -v "$each" >/dev/null || fail "it has $each already"
done
dpkg -i /offline/packages/make_*.deb >&2 || fail "no make"
make up OFFLINE=/offline >/run/from-nothing || fail "make up: exit status $?"
exec python3 tests/guests/inside.py "$@"
