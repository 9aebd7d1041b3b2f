"""Read the trace of one request.

Three things to notice: the app's connect() is intercepted, the sidecar asks where the app wanted to go, and bytes are
moved from socket to socket. Both ends run at the same time on several CPUs, so their lines may come in another order.
If a dataplane writes no line for the second, its map shows it. Below each line of the kernel is what it means.
"""

from merbridge_lab.api import DATAPLANE, TRACE, Kind, Lab, Observation, Step, value_of
from merbridge_lab.checks import mesh, trace


def act(lab: Lab) -> Observation:
    sleep = lab.workload("sleep")
    with lab.typing(sleep.request_command()) as typed:
        seen = lab.observe(sleep, count=1, trace=True)
        typed.prints(seen.exchanges[0].answer)
    with lab.typing(lab.trace_command()) as typed:
        events = value_of(seen.trace)
        typed.prints("\n".join(_with_meaning(event.raw, event.sentence()) for event in events))
        for kind in ("connect", "original_dst", "redirect"):
            for event in [each for each in events if each.kind == kind][:1]:
                typed.notice(event.sentence())
    return seen


def _with_meaning(raw: str, sentence: str) -> str:
    """Return the line as the kernel wrote it, followed by a marked line with its meaning."""
    return raw if sentence == raw else f"{raw}\n  = {sentence}"


def commands(lab: Lab) -> list[str]:
    return [lab.trace_command(), lab.workload("sleep").request_command()]


step = Step(
    number=5,
    kind=Kind.DEMONSTRATE,
    act=act,
    verify=(mesh.served(), trace.tells_the_request()),
    commands=commands,
    needs=frozenset({DATAPLANE, TRACE}),
)
