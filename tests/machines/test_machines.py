"""Machines that we do not have: another userland, odd surroundings, containers, users. None needs a virtual machine.

What must work works; what cannot says so in one sentence, with what to type next, and changes nothing.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

import pytest
from tests.machines.conftest import CHECKOUT

pytestmark = pytest.mark.machines

MERLAB = f"'{CHECKOUT}/.venv/bin/merlab'"
#: What Docker gives to a container (moby, oci/caps/defaults.go).
DOCKER = (
    *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service"),
    *("net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"),
)
#: Calls merlab, and prints each exit status.
CALLS = """cd /; n=0
for each in "$@"; do
    eval "$merlab $each" </dev/null; echo "[$each] $?"
done
ls -A /run | sed 's/^/left: /'
"""


@dataclass(frozen=True)
class Machine:
    """Lines of shell that make the machine what it is, and the prefix of a command on it."""

    name: str
    lines: str = ""
    prefix: tuple[str, ...] = ()
    says: str = ""
    remedy: str = ""


def without(*programs):
    """Return lines that remove programs, given as patterns."""
    return f"rm -f {' '.join(f'/usr/sbin/{each} /usr/bin/{each}' for each in programs)}"


def only(*capabilities):
    return ("setpriv", "--bounding-set=" + ",".join(["-all", *(f"+{each}" for each in capabilities)]))


def read_only(place):
    return f"mount --bind {place} {place}; mount -o remount,bind,ro {place}"


CGROUP2 = "$(awk '$3 == \"cgroup2\" { print $2; exit }' /proc/mounts)"
#: An older curl: one that refuses options younger than the oldest that doctor lets pass, 7.70.
OLD_CURL = r"""mv /usr/bin/curl /usr/libexec/curl
cat >/usr/bin/curl <<'EOF'
#!/bin/sh
for each; do
    case $each in
    --version) echo "curl 7.70.0"; exit ;;
    --retry-all-errors | --fail-with-body | --rate | --json | --variable* | --expand-* | --url-query | --aws-sigv4)
        echo "curl: option $each: is unknown" >&2; exit 2 ;;
    *'%{header_json}'* | *'%{onerror}'* | *'%{certs}'* | *'%{num_certs}'* | *'%header{'*)
        echo "curl: unknown --write-out variable: $each" >&2; exit 2 ;;
    esac
done
exec /usr/libexec/curl "$@"
EOF
chmod 755 /usr/bin/curl"""

#: Where Fedora has things: no directory sbin of its own, and Python's packages by version.
FEDORA = """for each in /usr/sbin/*; do [ -e "/usr/bin/${each##*/}" ] || mv "$each" /usr/bin/; done
rm -rf /usr/sbin; ln -s bin /usr/sbin
packages=$(echo /usr/lib/python3.[0-9]*)/site-packages
mkdir -p "$packages"; mv /usr/lib/python3/dist-packages/bcc* "$packages/"
printf 'NAME="Fedora Linux"\\nID=fedora\\nVERSION_ID=43\\n' >/etc/os-release"""

ODD = [
    Machine("fedora_layout", FEDORA),
    Machine("no_iptables_legacy", without("*tables-legacy*")),
    Machine("no_nft", without("nft")),
    Machine("no_bpftool", without("bpftool")),
    Machine("no_ps", without("ps", "pgrep")),
    Machine("no_ldconfig", without("ldconfig")),
    Machine("no_sudo_no_su", without("sudo", "su")),
    Machine("old_curl", OLD_CURL),
    Machine("path_without_sbin", "export PATH=/usr/bin:/bin"),
    Machine("no_etc", "rm -f /etc/os-release /usr/lib/os-release /etc/nsswitch.conf /etc/resolv.conf /etc/hosts"),
    Machine("no_modules", "rm -rf /lib/modules"),
    Machine("no_bpffs", "umount -l /sys/fs/bpf 2>/dev/null || :; mount -t tmpfs -o ro none /sys/fs/bpf"),
    Machine("no_tracefs", "for each in tracing debug; do mount -t tmpfs -o ro none /sys/kernel/$each; done"),
    Machine("hidepid", "mount -t proc -o hidepid=2 proc /proc"),
    Machine("tmp_missing", "export TMPDIR=/nonexistent"),
    Machine("tmp_noexec", "mount -o remount,noexec,nosuid,nodev /tmp; mount -o remount,noexec,nosuid,nodev /run"),
    Machine("home_unset", "unset HOME"),
    Machine("xdg_odd", "export XDG_RUNTIME_DIR=relative XDG_CACHE_HOME=/proc/1 XDG_CONFIG_HOME=/nonexistent"),
    Machine("umask_777", "umask 777"),
    Machine("not_utf8", "export LC_ALL=POSIX LANG=POSIX PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 PYTHONIOENCODING=ascii"),
    Machine("dumb_terminal", "export TERM=dumb COLUMNS=1"),
    Machine("root_read_only", "mount -o remount,bind,ro /"),
    Machine("capabilities", prefix=only(
        "chown", "dac_override", "kill", "setgid", "setuid", "net_admin", "net_raw", "sys_chroot", "sys_ptrace",
        "sys_admin")),
    Machine("no_new_privileges", prefix=("setpriv", "--no-new-privs")),
]  # fmt: skip
#: All in one, which is quicker; each alone, which tells which it was, is soak.
TOGETHER = Machine(
    "all_at_once", "\n".join(odd.lines for odd in ODD), tuple(word for odd in ODD for word in odd.prefix)
)

PRIVILEGED = "in a privileged container"
REFUSED = [
    Machine("fedora_no_bcc", f"{FEDORA}; rm -rf $packages/bcc", says="bcc", remedy="dnf install python3-bcc"),
    Machine("fedora_no_iptables", f"{FEDORA}; {without('iptables*')}", says="tool.iptables-nft", remedy="dnf install"),
    Machine("no_iptables", without("iptables*"), says="tool.iptables-nft", remedy="apt-get install iptables"),
    Machine("no_ip", without("ip"), says="tool.ip: found not installed", remedy="apt-get install iproute2"),
    Machine("no_unshare", without("unshare"), says="tool.unshare", remedy="apt-get install util-linux"),
    Machine("no_curl", without("curl"), says="tool.curl", remedy="apt-get install curl"),
    Machine(
        "curl_too_old",
        "printf '#!/bin/sh\\necho curl 7.68.0 of old\\n' >/usr/bin/curl",
        says="curl 7.68.0, needed >= 7.70",
        remedy="use a distribution with curl 7.70",
    ),
    Machine("no_bcc", "rm -rf /usr/lib/python3/dist-packages/bcc", says="bcc", remedy="apt-get install python3-bpfcc"),
    Machine("run_read_only", read_only("/run"), says="Read-only", remedy="mount -o remount,rw /run"),
    Machine("cgroup_read_only", read_only(CGROUP2), says="kernel.cgroup2", remedy="mount -o remount,rw /sys/fs/cgroup"),
    Machine("settings_read_only", read_only("/proc/sys"), says="kernel.settings", remedy="remount,rw /proc/sys"),
    Machine("no_sys", "mount -t tmpfs none /sys", says="kernel.btf", remedy="CONFIG_DEBUG_INFO_BTF"),
    Machine(
        "user_namespace",
        prefix=("unshare", "--user", "--map-root-user"),
        says="root of a user namespace alone",
        remedy="rootless Docker",
    ),
    Machine("container", prefix=only(*DOCKER), says="CAP_SYS_ADMIN", remedy=PRIVILEGED),
    Machine("container_net_admin", prefix=only(*DOCKER, "net_admin"), says="CAP_SYS_ADMIN", remedy=PRIVILEGED),
    Machine(
        "container_bpf", prefix=only(*DOCKER, "net_admin", "bpf", "perfmon"), says="CAP_SYS_ADMIN", remedy=PRIVILEGED
    ),
    Machine(
        "container_sys_admin", prefix=only(*DOCKER, "net_admin", "sys_admin"), says="CAP_SYS_PTRACE", remedy=PRIVILEGED
    ),
]


def call(debian13, hold, machine, *words, timeout=300):
    """Call merlab there with each of these lines; return what was printed, and the exit statuses."""
    script = f'set -e\n{machine.lines}\nset +e\nexport merlab="{MERLAB}"\n'
    argv = [*machine.prefix, "sh", "-c", CALLS, "sh", *words]
    done = debian13.run(script + "exec " + shlex.join(argv), hold, timeout=timeout)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert "internal error" not in said, said
    left = set(re.findall(r"^left: (.*)$", done.stdout, re.MULTILINE))
    assert left <= {"mount", "xtables.lock"}, said
    return said, [int(each) for each in re.findall(r"^\[.*\] (\d+)$", done.stdout, re.MULTILINE)]


@pytest.mark.parametrize(
    "machine",
    [TOGETHER, *(pytest.param(odd, marks=pytest.mark.soak) for odd in ODD)],
    ids=lambda each: each.name,
)
def test_what_must_work_works(debian13, hold, machine):
    said, statuses = call(debian13, hold, machine, "doctor", "up -q --until 3", "step 9 -q", "verify -q", "down")
    assert statuses == [0, 0, 0, 0, 0], said
    assert "6 of 6 cells as expected" in said


def test_debian_13_with_all_ten_steps_and_legacy_tables(debian13, hold):
    lines = ("up -q", "verify -q", "down", "up -q --iptables legacy", "verify -q", "down")
    said, statuses = call(debian13, hold, Machine("plain"), *lines)
    assert statuses == [0] * 6, said
    assert said.count("up: 10 of 10 steps held") == 2


@pytest.mark.parametrize("machine", REFUSED, ids=lambda each: each.name)
def test_what_cannot_work_says_why_and_what_to_type(debian13, hold, machine):
    said, statuses = call(debian13, hold, machine, "doctor", "up -q", timeout=60)
    assert statuses == [3, 3], said
    assert machine.says in said
    assert machine.remedy in said
    _, _, up = said.partition("\n[doctor] 3\n")
    assert len(re.findall(r"^merlab: ", said, re.MULTILINE)) == 1, up
    assert len(re.findall(r"^  → ", said, re.MULTILINE)) == 1, up


def test_a_python_that_is_too_old(debian13, hold):
    old = "for each in /usr/bin/python3*; do printf '#!/bin/sh\\nexit 1\\n' >$each; done; rm -rf .venv"
    done = debian13.run(f"cd '{CHECKOUT}'; {old}; scripts/setup venv", hold)
    assert done.returncode == 3
    assert done.stderr.startswith("set-up: no Python 3.10 or newer with its venv module on PATH")
    assert len(done.stderr.splitlines()) == 1


def as_user(debian13, hold, user, *commands, lines=""):
    """Run commands as an ordinary user in a copy of the checkout that is the user's own, without a terminal."""
    become = f"cp -a '{CHECKOUT}' /home/{user}/lab; chown -R {user}: /home/{user}/lab"
    script = "; ".join(f'{each}; echo "[{user}] $?"' for each in commands)
    named = f"export MERLAB_NAME={debian13.environment['MERLAB_NAME']}; cd '{CHECKOUT}'"
    done = debian13.run(
        f"{become if user != 'free' else ':'}\n{lines}\n"
        f"exec setpriv --reuid={user} --regid={user} --init-groups env HOME=/home/{user} sh -c "
        + shlex.quote(f"{named}; {script}"),
        hold,
    )
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    return said, [int(each) for each in re.findall(r"^\[.*\] (\d+)$", done.stdout, re.MULTILINE)]


def test_a_user_with_sudo_needs_nothing_else(debian13, hold):
    made = ("make up ARGS='-q --until 3'", "make verify ARGS=-q", "make down")
    said, statuses = as_user(debian13, hold, "free", *made, "find . ! -user free")
    assert statuses == [0, 0, 0, 0], said
    assert "6 of 6 cells as expected" in said
    assert not re.search(r"^\./", said, re.MULTILINE), "root left files in a user's checkout"


@pytest.mark.parametrize(
    ("user", "lines", "make", "hint"),
    [
        ("asked", "", "sudo would ask for a password where there is no terminal", "sudo env MERLAB_NAME="),
        ("none", "rm /usr/bin/sudo", "there is no sudo here: become root (su)", "su -c '"),
        ("none", "rm /usr/bin/sudo /usr/bin/su", "there is no sudo here", "as root: MERLAB_NAME="),
    ],
    ids=["password", "no_sudo", "no_sudo_no_su"],
)
def test_a_user_who_cannot_become_root_hears_so_first(debian13, hold, user, lines, make, hint):
    made = ("make up", "make down", f"{MERLAB} up", f"{MERLAB} doctor", f"{MERLAB} status")
    said, statuses = as_user(debian13, hold, user, *made, lines=lines)
    assert statuses == [2, 2, 3, 3, 0], said
    assert said.count(make) == 2
    assert said.count("this requires root\n  → ") == 1
    assert f"  → {hint}" in said
    assert "only root can run the embedded lab; doctor as root checks the rest" in said
    assert "installing" not in said


#: Calls the first argument on a terminal, which script(1) makes, and types the second one once sudo asks: what is typed
#: before, sudo throws away.
ANSWERS_SUDO = """made=$(mktemp -d); mkfifo "$made/keys"
script -qec "$1" /dev/null <"$made/keys" >"$made/told" &
exec 3>"$made/keys"
trap '' PIPE
for each in $(seq 300); do
    if grep -qs 'password for' "$made/told" || ! kill -0 $! 2>/dev/null; then break; fi
    sleep 0.2
done
echo "$2" >&3
wait $!; status=$?
cat "$made/told"; rm -rf "$made"; exit $status
"""


def test_a_user_whose_sudo_asks_for_a_password(debian13, hold):
    typed = f"cd '{CHECKOUT}' && make up ARGS='-q --until 2' && make down"
    become = f"setpriv --reuid=asked --regid=asked --init-groups sh -c {shlex.quote(typed)}"
    answered = shlex.join(["sh", "-c", ANSWERS_SUDO, "sh", become, "secret"])
    done = debian13.run(f"chown -R asked: '{CHECKOUT}'; {answered}", hold)
    assert "up: 3 of 3 steps held" in done.stdout, done.stdout + done.stderr
    assert "the lab is gone" in done.stdout
