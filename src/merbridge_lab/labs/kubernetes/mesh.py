"""Istio and the pods of the walkthrough as a component of the lab."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from merbridge_lab import polling
from merbridge_lab.adapters import istioctl, kubernetes_api
from merbridge_lab.adapters.image_reference import full_name
from merbridge_lab.errors import LabError
from merbridge_lab.evidence import Reading, UnreadError
from merbridge_lab.labs.kubernetes import (
    cluster_wide,
    commands,
    diagnostics,
    manifests,
    node_exec,
    pods,
    rollout,
    topology,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from merbridge_lab.labs.kubernetes.connection import Access
    from merbridge_lab.labs.kubernetes.pods import Pod
    from merbridge_lab.labs.kubernetes.provider import OwningProvider
    from merbridge_lab.labs.kubernetes.settings import Settings
    from merbridge_lab.labs.kubernetes.workload import KubernetesWorkload

#: How long all sidecars may take to learn of each other, in seconds.
_SERVED = 30.0
_GONE = 60.0
#: How long istioctl may wait until what it applies is there, in seconds.
_APPLIED = 8.0


class MeshComponent:
    """What is installed in a cluster that merlab owns; with `keep`, `remove` uninstalls it, because the cluster stays.

    It changes the cluster for all of its users: for one that is lent, this is not the right component.
    """

    def __init__(
        self,
        access: Access,
        provider: OwningProvider,
        workloads: Callable[[], Sequence[KubernetesWorkload]],
        images_of_dataplane: Callable[[Settings], Sequence[str]],
        *,
        keep: bool,
    ) -> None:
        self._access, self._workloads, self._keep = access, workloads, keep
        self._provider, self._images = provider, provider.images
        self._images_of_dataplane = images_of_dataplane
        self._settings, self._kept, self._api, self._node = access.settings, access.kept, access.api, access.node

    # -- looking ----------------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Describe what differs from what `ensure` creates."""
        return (
            self._of_istio()
            or self._of_hands()
            or [sentence for one in self._workloads() for sentence in self._of(one)]
        )

    def _of_istio(self) -> list[str]:
        api, sentences = self._api(), []
        istiod = api.find(kubernetes_api.path("Deployment", "istiod", topology.ISTIO))
        if istiod is None:
            return ["Istio is not installed in the cluster"]
        if not rollout.is_done(istiod):
            sentences.append("istiod is not available")
        if not api.all("MutatingWebhookConfiguration", selector="app=sidecar-injector"):
            sentences.append("sidecar injection is disabled: its MutatingWebhookConfiguration is missing")
        kept = self._kept()
        if kept is None or not self._access.setup_complete():
            sentences.append("the last set-up did not finish")
        elif different := self._settings().differ_from(kept):
            sentences.append(f"the lab was made with other {', '.join(different)} than those asked for")
        labels = api.get(kubernetes_api.path("Namespace", topology.NAMESPACE))["metadata"].get("labels") or {}
        if labels.get("istio-injection") != "enabled":
            sentences.append(f"the namespace {topology.NAMESPACE} has no label istio-injection=enabled")
        strict = api.find(kubernetes_api.path("PeerAuthentication", "default"))
        if strict is None or (strict["spec"].get("mtls") or {}).get("mode") != "STRICT":
            sentences.append("no PeerAuthentication enforces STRICT mTLS")
        return sentences

    def _of_hands(self) -> list[str]:
        if self._access.find_node_exec() is not None:
            return []
        if (why := self._access.helpless) is not None:
            return [why.what]
        node = self._node().name
        return [f"the node {node} lacks iptables or nsenter, and Istio's image, which contains them"]

    def _of(self, workload: KubernetesWorkload) -> list[str]:
        found = pods.active_pods(self._api(), workload.spec)
        wanted = self._settings().sidecars
        if len(found) != 1:
            return [f"there are {len(found) or 'no'} pods of {workload.name}; there should be one"]
        pod = found[0]
        workload.see(pod)
        if pod.sidecar != wanted:
            return [f"{pod.name} has {f'a {pod.sidecar}' if pod.sidecar else 'no'} sidecar, not a {wanted} one"]
        if not pod.ready:
            return [f"{pod.name} is not ready"]
        if workload.rules.outstanding:
            return [
                f"the nat rules of {workload.name} are flushed (saved in {workload.rules.saved_at}): merlab restore"
            ]
        return self._of_rules(workload, pod)

    @staticmethod
    def _of_rules(workload: KubernetesWorkload, pod: Pod) -> list[str]:
        seen = workload.rules.snapshot()
        if unread := seen.unread:
            return [f"the rules of {pod.name}: {each}" for each in unread]
        if not seen.istio:
            return [f"there are no ISTIO rules in {pod.name}"]
        return [f"the ISTIO rules of {pod.name} {fault}"] if (fault := seen.fault()) else []

    def readings(self) -> tuple[Reading, ...]:
        """Return the pods."""
        told = []
        for workload in self._workloads() if self._access.find_node_exec() else ():
            with contextlib.suppress(LabError):
                pod = workload.pod
                said = f"{pod.name}, {pod.ip}, {pod.sidecar or 'no'} sidecar"
                told.append(Reading(f"pod:{workload.name}", "", None, said))
        return tuple(told)

    # -- making -----------------------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Install what is missing, repair what is broken, and wait until a request is served. Raises LabError."""
        settings, kept = self._settings(), self._kept()
        if self._of_hands():
            self._load_images(settings)  # among them the image of the pod that enters others
        for workload in self._workloads():
            workload.rules.restore()
        self._load_images(settings)
        changed = kept is not None and any(name != "images" for name in settings.differ_from(kept))
        every = changed or (kept is not None and not self._access.setup_complete())
        if self._of_istio():
            # Settings that were requested first stay requested until they are in place; after that, those in place
            # count.
            self._api().apply(manifests.configuration(kept or settings, finished=False))
            self._install(settings)
        cluster_wide.configure_namespace(self._provider.owned(), self._api(), settings)
        for name in manifests.WORKLOADS:
            for document in manifests.objects(name, settings):
                self._api().apply(document)
        self._renew(every=every)
        for spec in topology.WORKLOADS:
            rollout.wait(self._api(), spec.name, self._images)
        self._refuse_without_sidecar()
        self._await_served()
        self._api().apply(manifests.configuration(settings, finished=True))

    def _load_images(self, settings: Settings) -> None:
        """Copy the images that only this machine has, or that it has already, into the node.

        Those of the dataplane, too: together they take less time, as they share layers.
        """
        there = rollout.images_on(self._node())
        wanted = [*settings.pod_images(), *self._images_of_dataplane(settings)]
        missing = [ref for ref in wanted if full_name(ref) not in there]
        here = [ref for ref in missing if self._images.has(ref)]
        if here:
            self._images.load(here)

    def _install(self, settings: Settings) -> None:
        began, memory = time.monotonic(), diagnostics.Memory()

        def hopeless() -> LabError | None:
            found = self._api().all("Pod", topology.ISTIO)
            waited = time.monotonic() - began
            # istioctl applies first, which takes a few seconds: until then the pods are the earlier ones.
            seen = diagnostics.diagnose(found, waited - _APPLIED, self._images, memory=memory)
            if seen is None and not found:
                seen = diagnostics.refused("istiod", self._api().events(topology.ISTIO), waited, memory)
            return rollout.with_log(self._api(), topology.ISTIO, seen) if seen else None

        with polling.progress(f"istioctl installs Istio {settings.istio_tag} from {settings.istio_hub}"):
            istioctl.install(
                settings.istio(),
                kubeconfig=self._api().kubeconfig_file,
                look=hopeless,
                fetch_command=self._images.pull_command,
            )

    def _renew(self, *, every: bool) -> None:
        """Recreate pods that lack a sidecar, have the wrong kind of one, or have lost their rules.

        With `every`, recreate all, after a change of Istio: a pod keeps the sidecar that it was created with.
        """
        for workload in self._workloads():
            for pod in pods.active_pods(self._api(), workload.spec):
                workload.see(pod)
                wrong = pod.sidecar != self._settings().sidecars
                if every or wrong or (pod.ready and self._without_rules(workload)):
                    self._api().delete(kubernetes_api.path("Pod", pod.name), grace=1)
                    self._await_gone(pod, workload)

    @staticmethod
    def _without_rules(workload: KubernetesWorkload) -> bool:
        try:
            return bool(workload.rules.snapshot().fault())
        except (LabError, UnreadError):
            return False

    def _await_gone(self, old: Pod, workload: KubernetesWorkload) -> None:
        # Completely gone: until then the Deployment may still count the pod, and look complete.
        def is_gone() -> bool:
            found = self._api().find(kubernetes_api.path("Pod", old.name))
            return found is None or found["metadata"]["uid"] != old.uid

        gone = polling.poll_until(
            is_gone,
            timeout=_GONE,
            every=0.3,
            awaiting=f"the old pod of {workload.name} to go",
        )
        if not gone:
            raise LabError(
                f"the old pod of {workload.name} was not gone within {_GONE:.0f} s",
                hint=f"kubectl delete pod --force -l {workload.spec.selector}",
                stderr=diagnostics.told(self._api().events()) or None,
                id="removal.failed",
            )

    def renew(self) -> None:
        """Recreate every pod, and wait until all are ready. Raises LabError."""
        self._renew(every=True)
        for spec in topology.WORKLOADS:
            rollout.wait(self._api(), spec.name, self._images)
        self._refuse_without_sidecar()

    def warm(self) -> int:
        """Send requests until v1 and v2 have answered; return how many requests got another answer before."""
        return self._await_served()

    def _refuse_without_sidecar(self) -> None:
        for workload in self._workloads():
            for pod in pods.active_pods(self._api(), workload.spec):
                if not pod.sidecar:
                    raise LabError(
                        f"Istio injected no sidecar into {pod.name}, although its namespace enables injection",
                        hint="kubectl get mutatingwebhookconfigurations",
                        stderr=diagnostics.told(self._api().events()) or None,
                        id="sidecar.failed",
                    )

    def _await_served(self) -> int:
        sleep, *servers = self._workloads()
        for workload in (sleep, *servers):
            workload.found(refresh=True)
        answered: set[str] = set()
        last: list[str] = ["no request was sent"]
        cold = 0

        def served() -> bool:
            nonlocal cold
            exchange = sleep.ask("http://helloworld:5000/hello")
            last[0] = f"{exchange}"
            cold += not exchange.served
            answered.update(server.name for server in servers if exchange.served and server.name in exchange.body)
            return len(answered) == len(servers)

        if not polling.poll_until(served, timeout=_SERVED, awaiting="requests to be served by v1 and v2"):
            raise LabError(
                f"within {_SERVED:.0f} s sleep was answered by {' and '.join(answered) or 'nobody'} only: {last[0]}",
                hint="merlab status",
                stderr=diagnostics.told(self._api().events()) or None,
                id="pod.not_ready",
            )
        return cold

    # -- removing ---------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Uninstall everything if the cluster is ours and stays; otherwise it is removed with the cluster."""
        if self._keep and self._provider.state().usable:
            cluster_wide.purge_mesh(self._provider.owned(), self._api(), self._settings())

    # -- as a person would type it ----------------------------------------------------------------------------------

    def _is_helped(self) -> bool:
        with contextlib.suppress(LabError):
            return isinstance(self._access.find_node_exec(), node_exec.HelperPodExec)
        return False

    def shell_commands(self) -> list[str]:
        """Return the commands that a person would type to install it."""
        return commands.put_in(self._access.best_known_settings(), self._provider, helped=self._is_helped())
