"""The reasons why a pod is left to Istio's rules, by their ids, which are counted; who refuses writes the sentence."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

RefusalId: TypeAlias = Literal[
    # what the pod is
    "opted_out",
    "namespace_opted_out",
    "namespace_unknown",
    "host_network",
    "sandboxed_runtime",
    "ambient",
    "interception_mode",
    "annotation",
    "addresses",
    # what the kernel shows of it
    "shared_netns",
    "cgroup",
    "no_sidecar",
    "no_rules",
    "rules_differ",
    "gateway",
    "listener_foreign",
    "listener_user",
    "sidecar_user",
    # what it waits for
    "no_listener",
    "unread",
    # what failed
    "not_attached",
]
REFUSALS: tuple[RefusalId, ...] = get_args(RefusalId)
#: With these the pod is not refused: it is served as soon as this has changed.
PENDING = frozenset({"no_listener", "unread"})


class Refusal(NamedTuple):
    """Why one pod is left to the rules: `id` is counted, `sentence` is for people."""

    id: RefusalId
    sentence: str

    @property
    def is_pending(self) -> bool:
        """Report whether the pod only waits for something."""
        return self.id in PENDING
