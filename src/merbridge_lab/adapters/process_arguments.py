"""Check that command line and environment of a process are where exec put them, with the same length.

/proc/PID/cmdline and environ show a part of the process's own memory. The process may write there, and prctl(PR_SET_MM)
lets it change where that part is. At the top of the stack, exec puts the path of the program, below it the environment,
below that the command line (copy_strings() in fs/exec.c), with nothing between. The kernel records where they begin and
end. So a process that was started with another command line can only pass for one with words of exactly the same number
of bytes. More is not visible: the bytes that it writes there are recorded nowhere.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

from merbridge_lab.adapters.procfs import stat_fields
from merbridge_lab.text import lines_of, read_text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

#: The fields of /proc/PID/stat with the addresses, counted after the name; see proc_pid_stat(5).
_START_STACK, _ARGUMENTS, _ENVIRONMENT = 25, slice(45, 47), slice(47, 49)


def differing(pid: int, program: str, argv: Sequence[str], environment: Collection[str]) -> str:
    """Describe why a process was not started as `program` with these words; "" if it was, or ends. Raises OSError."""
    try:
        stat = stat_fields(read_text(Path(f"/proc/{pid}/stat")))
        maps = lines_of(Path(f"/proc/{pid}/maps").read_text(errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return ""
    begins, ends = map(int, stat[_ARGUMENTS])
    if not begins:  # it has no memory any more, or the kernel does not report it to us
        return "the address of its command line could not be read" if maps else ""
    others_begin, others_end = map(int, stat[_ENVIRONMENT])
    stack = next((line.split()[0].partition("-") for line in maps if line.endswith("[stack]")), ("0", "", "0"))
    if not int(stack[0], 16) <= int(stat[_START_STACK]) < begins:
        return "its command line was moved in its memory"
    # A last word of the kernel, which is zero, is above the path.
    top = int(stack[2], 16) - ctypes.sizeof(ctypes.c_void_p)
    if (ends, others_end + _size([program])) != (others_begin, top):
        return "its command line and its environment are not where they were at its start"
    if (ends - begins, others_end - others_begin) != (_size(argv), _size(environment)):
        return "it was started with another command line or environment, and has overwritten it"
    return ""


def _size(words: Collection[str]) -> int:
    return sum(len(word.encode()) + 1 for word in words)
