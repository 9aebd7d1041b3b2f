"""Messages of the command kind if it creates no cluster: the cause out of hundreds of lines, and what to type next."""

from __future__ import annotations

import re

from merbridge_lab.text import lines_of

#: Maximum number of lines of the summary: a file has all of them.
_MOST = 8
#: One frame of a Go stack: a function with its package and receiver, and below it, indented, a file with its line.
_CALL = re.compile(r"^[\w.~-]+(?:/[\w.~-]+)*(?:\.\([*\w.\[\]]+\))?[\w.\[\]·]*\.[\w.\[\]·]+(?:\(.*\))?$|^created by \S+")
_FILE = re.compile(r"^\s+\S+\.(?:go|s):\d+(?: \+0x[0-9a-f]+)?$")
_ROUTINE = re.compile(r"^goroutine \d+ \[")
#: cgroup v1 is mentioned often, even if nothing is wrong with it.
_REFUSES_V1 = r"not run on a host using cgroup v1|cgroups? v1 support is (?:unsupported|not)"
#: In order of precedence: kind's own sentence; then the complaints of kubeadm and below it.
_HEAD = re.compile(r"^(?:ERROR|FATAL|panic|error): ?|^Error: ")
_COMPLAINTS = (
    re.compile(
        r"\[kubelet-check\].*(?:not|fail|error|refused|deadline|unhealthy)|kubelet is (?:not|unhealthy|configured)"
    ),
    re.compile(r"^\s*\[ERROR \w[^\]]*\]"),
    re.compile(rf"validate .*(?:kubelet|cgroup)|{_REFUSES_V1}|required cgroups disabled"),
    re.compile(r"too many open files|no space left on device|address already in use|port is already allocated"),
    re.compile(r"^[EF]\d{4} "),
    re.compile(r"^(?:error execution phase|couldn't |failed to |unable to |timed out )", re.IGNORECASE),
    re.compile(r"^\s*- (?:The kubelet|A control plane)"),
)
#: kubeadm waits for the kubelet, and for what the kubelet starts.
_WAITED = r"kubelet-check|kubelet is (?:not|unhealthy)|wait-control-plane"
#: How a kubelet reports why it ends: the result of its command, and the fatal error; in klog's form.
_LAST_WORDS = (
    re.compile(r'"command failed" err='),
    re.compile(r"(?i)failed to run kubelet|^F\d{4} |^Error: "),
)
#: It reports this until kubeadm has written that file.
_NOT_YET = "failed to load kubelet config file"
_ERR = re.compile(r'err="((?:[^"\\]|\\.)*)"')
_KLOG = re.compile(r"^[IWEF]\d{4} \S+\s+\d+ \S+\] ")
_LONGEST = 400
#: Known causes, by their words: how each is reported, and what to type.
_KNOWN = (
    (_REFUSES_V1, "its kubelet refuses cgroup v1, which this machine has", "merlab doctor"),
    (r"required cgroups disabled", "the kernel lacks cgroups that the kubelet needs", "merlab doctor"),
    (
        r"too many open files|inotify",
        "the inotify limits are used up",
        "sysctl fs.inotify.max_user_instances=2048 fs.inotify.max_user_watches=524288",
    ),
    (r"no space left on device", "a disk is full", "docker system df; df -h"),
    (r"port is already allocated|address already in use|Port-\d+\]", "a port is in use already", "ss -ltnp"),
    (
        r"address pools have been (?:fully )?(?:subnetted|exhausted)|non-overlapping IPv4",
        "Docker has no free subnet for another network",
        "docker network prune",
    ),
    (r"already exist for a cluster", "there are nodes of that name already", "merlab down"),
    (
        r"exec format error",
        "its image is for another architecture",
        "docker image inspect --format '{{.Architecture}}' {image}",
    ),
    (r"could not find a log line that matches", "its node does not start", "merlab doctor"),
    (r"failed to pull image", "its node's image cannot be pulled", "docker pull {image}"),
    (
        r"running with swap on is not supported",
        "its kubelet refuses swap, which this machine has on",
        "swapoff --all",
    ),
    (
        r"kubelet-check|kubelet is (?:not|unhealthy)",
        "kubeadm waited for the kubelet, which is not healthy",
        "merlab doctor",
    ),
    (
        # What kind does with kubectl once kubeadm has ended: the API server was there, and a node's name says nothing.
        r"failed to (?:add default storage class|apply overlay network|remove control plane (?:taint|load))",
        "its API server came up, and then did not serve what kind asked for",
        "merlab doctor",
    ),
    (
        r"wait-control-plane|(?<!-)control.plane",
        "kubeadm waited for the control plane, which did not come up",
        "merlab doctor",
    ),
)


def cause(said: str, image: str) -> tuple[str, str]:
    """Return the cause in a few words and the next command; two empty strings if it is unknown."""
    # In what is shown first: the rest is also about what went well.
    for text in (summary(said), said):
        for words, why, command in _KNOWN:
            if re.search(words, text):
                return why, command.replace("{image}", image)
    return "", ""


def summary(said: str) -> str:
    """Return only the lines that show the cause: kind's ERROR first, then the complaints; no stack frames."""
    lines = without_frames(said)
    heads = [line for line in lines if _HEAD.match(line)]
    found = dict.fromkeys(heads[:2])
    for words in _COMPLAINTS:
        found |= dict.fromkeys(line.strip() for line in lines if words.search(line) and line not in heads)
    if not found:
        return "\n".join(lines[-_MOST:])
    return "\n".join(list(found)[:_MOST])


def is_kubelets(said: str) -> bool:
    """Report whether kind could not create a cluster because of its kubelet, or of what that starts."""
    return re.search(_WAITED, summary(said)) is not None


def of_kubelet(journal: str) -> str:
    """Return the last line in which a kubelet reported why it ended; "" if it reported no such thing."""
    lines = [line.strip() for line in lines_of(journal) if _NOT_YET not in line]
    for words in _LAST_WORDS:
        if found := [line for line in lines if words.search(line)]:
            told = _ERR.search(found[-1])
            return (told[1].replace('\\"', '"') if told else _KLOG.sub("", found[-1]))[:_LONGEST]
    return ""


def without_frames(said: str) -> list[str]:
    """Return the lines that are neither a frame of a Go stack nor empty."""
    # The output of a command that kind ran in the node begins on a line of kind's own.
    lines = lines_of(re.sub(r"^Command Output: ", "", said, flags=re.MULTILINE))
    kept = []
    for at, line in enumerate(lines):
        calls = at + 1 < len(lines) and bool(_FILE.match(lines[at + 1]))
        if line.strip() and not (_FILE.match(line) or _ROUTINE.match(line) or (calls and _CALL.match(line))):
            kept.append(line.rstrip())
    return kept
