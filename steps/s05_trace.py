"""Read the trace of one request.

Three events to look for: the app's connect() is intercepted, the sidecar asks where the app wanted to go (a dataplane
that writes no line for it has it in a map), and bytes are moved from socket to socket. Both ends run at the same time
on several CPUs, so their lines may come in another order. By hand, begin to read before the request, in a second
terminal.
"""

from merbridge_lab.api import DATAPLANE, TRACE, Excerpt, Kind, Lab, Observation, Step, value_of
from merbridge_lab.checks import mesh, trace


def act(lab: Lab) -> Observation:
    sleep = lab.workload("sleep")
    with lab.typing(sleep.request_command()) as typed:
        seen = lab.observe(sleep, count=1, trace=True)
        typed.prints(seen.exchanges[0].answer)
    with lab.typing(lab.trace_command()) as typed:
        told = [_with_meaning(event.raw, event.sentence()) for event in value_of(seen.trace)]
        typed.prints("\n".join(told), _three_events(seen))
    return seen


def _with_meaning(raw: str, sentence: str) -> str:
    """Return the line, followed by a marked line with its meaning."""
    return raw if sentence == raw else f"{raw}\n  = {sentence}"


def _three_events(seen: Observation) -> tuple[Excerpt, ...]:
    """Return the first line of the request for each of the three events, in its short form."""
    record = value_of(seen.interception.traced).get(seen.exchanges[0].nonce)
    events = record.events if record else ()
    kinds = ("connect", "original_dst", "redirect")
    first = [event for kind in kinds for event in [each for each in events if each.kind == kind][:1]]
    meanings = {
        "connect": "the app's connect() is intercepted",
        "original_dst": "the sidecar asks where the app wanted to go",
        "redirect": "bytes are moved from socket to socket",
    }
    return tuple(
        Excerpt(
            event.short,
            meanings[event.kind],
            len(_with_meaning(event.raw, event.sentence()).split("\n")),
        )
        for event in first
    )


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
