"""`step 9` changes the machine only at change points: checked by strace, system call by system call.

Between its change points merlab, its threads, and each command that it starts there, may read everything, but must not
create, alter or remove anything that others can see. What a command does that was started at a change point is that
change.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest
from change_points import MARKS
from test_change_points import at_the_door
from walkthrough_host import merlab

pytestmark = pytest.mark.kernel

FORKS = ("clone", "clone3", "fork", "vfork")
#: System calls that change something whenever they succeed.
ALWAYS = (
    "mount", "umount2", "move_mount", "mount_setattr", "pivot_root", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat",
    "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "mknod", "mknodat", "chmod", "fchmod",
    "fchmodat", "chown", "fchown", "lchown", "fchownat", "truncate", "ftruncate", "setxattr", "fsetxattr", "lsetxattr",
    "creat", "sethostname", "init_module", "finit_module", "delete_module", "swapon", "reboot",
)  # fmt: skip
#: System calls that may, depending on their arguments.
SOMETIMES = {
    "open": re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC"),
    "openat": re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC"),
    "bpf": re.compile(r"BPF_(MAP_(UPDATE|DELETE)|OBJ_PIN|PROG_(ATTACH|DETACH)|LINK_(CREATE|UPDATE|DETACH))"),
    "kill": re.compile(r"\(\d+, SIG"),
    "unshare": re.compile(r"CLONE_NEW"),  # of CLONE_FS, what a thread shares with others of its own process
    "setsockopt": re.compile(r"IPT_SO_SET|SO_SET_REPLACE"),
}
#: What belongs only to the process: its terminal, its pipes, nothing, itself; files without a name.
OWN = re.compile(r'"(/dev/(null|tty|ptmx|pts/\d+)|/proc/(self|thread-self)/(fd/\d+|comm))"|O_TMPFILE')
NETLINK = ("sendto", "sendmsg")
TRACED = ",".join([*FORKS, *ALWAYS, *SOMETIMES, *NETLINK, "access", "faccessat", "faccessat2"])

_MESSAGE = re.compile(r"nlmsg_len=(\d+), nlmsg_type=([\w<|]+).*?nlmsg_flags=([\w|]+)")
#: XFRM_MSG_GETDEFAULT, with its three bytes; of rtnetlink that number makes a class, which takes more.
_XFRM_ASKS = ("0x28", "19")
#: enum nf_tables_msg_types: those that only query.
_NFT_ASKS = {1, 4, 7, 10, 13, 16, 19, 21, 23, 25}


def changes_by_netlink(name, arguments):
    """Report whether one of the messages changes something.

    strace has no names for those of another network namespace.
    """
    for size, kind, flags in _MESSAGE.findall(arguments):
        if "NLM_F_DUMP" in flags or "0x300" in flags:
            continue
        if not kind.startswith("0x"):
            if re.search(r"RTM_(NEW|DEL|SET)|NFT_MSG_(NEW|DEL)|CT_(NEW|DELETE)", kind):
                return True
            continue
        if (kind, size) == _XFRM_ASKS:
            continue
        family, number = divmod(int(kind, 16), 256)
        # Of rtnetlink (pyroute2 uses sendto); with sendmsg these numbers begin and end a batch of nftables, which a
        # plain list sends empty.
        if name == "sendto" and family == 0 and number >= 16 and number % 4 != 2:
            return True
        if (family == 10 and number not in _NFT_ASKS) or (family == 1 and number in (0, 2)):
            return True
    return False


_LINE = re.compile(r"^(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))$")
_RESULT = re.compile(r"= (-?\d+|0x[0-9a-f]+)[^=]*$")


class Traced:
    """The output of strace, read twice: first who is a thread or a child of whom, then who changed what, and when.

    `blind` change points are ignored, to check that a change there would be detected.
    """

    def __init__(self, lines, blind=None):
        self._blind = blind
        self.calls = list(self._calls(lines))
        self.main = self.calls[0][0]
        self.group, self.born = {self.main: self.main}, {}
        for at, (pid, name, arguments, result) in enumerate(self.calls):
            if name in FORKS and result and result > 0:
                self.born[result] = (pid, at)
                self.group[result] = self.group.get(pid, pid) if "CLONE_THREAD" in arguments else result
        self.points = Counter()
        self.past = []
        self._judge()

    @staticmethod
    def _calls(lines):
        """Return (pid, name, arguments, result or None) of each call, in the order of their start."""
        begun, waiting = [], {}
        for line in lines:
            if not (found := _LINE.match(line)):
                continue
            pid, name, rest, resumed, end = found.groups()
            result = _RESULT.search(line)
            value = int(result[1], 0) if result else None
            if resumed:
                if (at := waiting.pop((pid, resumed), None)) is not None:
                    begun[at] = (*begun[at][:2], begun[at][2] + end, value)
                continue
            if "<unfinished" in rest:
                waiting[pid, name] = len(begun)
            begun.append((int(pid), name, rest, value))
        return begun

    def _judge(self):
        depth, allowed = 0, {self.main: False}
        births = {at: child for child, (_, at) in self.born.items()}
        for at, (pid, name, arguments, result) in enumerate(self.calls):
            group = self.group.get(pid, pid)
            is_open = depth > 0 if group == self.main else allowed.get(group, False)
            if at in births and self.group[births[at]] == births[at]:
                allowed[births[at]] = is_open
            if group == self.main and MARKS in arguments:
                before = f"{MARKS}/before/" in arguments
                point = arguments.split(MARKS)[1].split("/")[2].split('"')[0]
                depth += 0 if point == self._blind else 1 if before else -1
                self.points[point] += before
            elif self._changes(name, arguments, result) and not is_open:
                self.past.append(f"{'merlab' if group == self.main else f'child {group}'}: {name}({arguments}")

    @staticmethod
    def _changes(name, arguments, result):
        if (result is not None and result < 0) or OWN.search(arguments):
            return False
        if name in NETLINK:
            return changes_by_netlink(name, arguments)
        return name in ALWAYS or (name in SOMETIMES and SOMETIMES[name].search(arguments) is not None)


#: Each uses other system calls: files, netlink of two kinds (by a command and by merlab), mounts, cgroups, processes.
SEEN = (
    "save rules", "make the save known", "flush rules", "load rules", "link two namespaces", "delete a link",
    "make a namespace", "unmount", "make a folder", "delete a folder", "delete a tree", "kill a cgroup",
    "start a process", "ask as an app", "write a file",
)  # fmt: skip


def test_step_9_changes_nothing_past_its_change_points(tmp_path):
    assert merlab("up", "-q").returncode == 0
    try:
        log = tmp_path / "strace"
        prefix = ("strace", "-f", "-qq", "-s", "300", "-o", str(log), "-e", f"trace={TRACED}")
        done = at_the_door("mark", "--", "step", "9", "-q", prefix=prefix)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = log.read_text(errors="replace").splitlines()
        traced = Traced(lines)
    finally:
        merlab("down")
    assert traced.past == []
    # It has seen everything: the flush of sleep and of its control client, their saves, the control client created and
    # removed.
    expected = {"save rules", "flush rules", "load rules", "make a namespace", "link two namespaces", "start a process"}
    assert expected <= traced.points.keys()
    assert traced.points["flush rules"] == 2
    # It would also detect each of these changes if it bypassed the change points.
    assert [point for point in SEEN if not Traced(lines, blind=point).past] == []


def test_a_change_past_the_door_is_seen():
    """The same reading, of a trace in which a file is written, and a command removes one, outside of change points."""
    lines = f"""\
7 access("{MARKS}/before/x", F_OK) = -1 ENOENT (No such file or directory)
7 openat(AT_FDCWD, "/run/a", O_WRONLY|O_CREAT, 0666) = 3
7 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = 8
7 access("{MARKS}/after/x", F_OK) = -1 ENOENT (No such file or directory)
8 unlink("/run/b") = 0
7 openat(AT_FDCWD, "/dev/null", O_RDWR) = 3
7 unlink("/run/not-there") = -1 ENOENT (No such file or directory)
7 clone3({{flags=CLONE_VM|CLONE_THREAD, exit_signal=0}} <unfinished ...>
9 mkdir("/run/c", 0777) = 0
7 <... clone3 resumed>, 88) = 9
7 clone(child_stack=NULL, flags=SIGCHLD) = 10
10 sendto(3, [{{nlmsg_len=80, nlmsg_type=0xa08 /* NLMSG_??? */, nlmsg_flags=NLM_F_REQUEST}}], 80, 0, NULL, 0) = 80
""".splitlines()
    assert [each.partition("(")[0] for each in Traced(lines).past] == ["merlab: mkdir", "child 10: sendto"]
