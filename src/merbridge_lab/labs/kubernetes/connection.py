"""The connection to the cluster: its API, node, and settings of the lab. Found once, and again after a change."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from merbridge_lab import signals
from merbridge_lab.adapters import kubernetes_api
from merbridge_lab.adapters.image_reference import full_name
from merbridge_lab.errors import LabError
from merbridge_lab.labs.kubernetes import node_exec, rollout, topology
from merbridge_lab.labs.kubernetes.settings import Settings, versions

if TYPE_CHECKING:
    from merbridge_lab.adapters.kubernetes_api import Api
    from merbridge_lab.labs.kubernetes.node_exec import NodeExec
    from merbridge_lab.labs.kubernetes.provider import ClusterProvider, ClusterState, Node
    from merbridge_lab.labs.options import Options


class Access:
    """What is known so far of the cluster that `provider` brings."""

    def __init__(self, provider: ClusterProvider, options: Options) -> None:
        self.provider, self._options = provider, options
        self._api: Api | None = None
        self._node: Node | None = None
        self._node_exec: NodeExec | None = None
        self._helper: node_exec.HelperPodExec | None = None
        self.helpless: LabError | None = None
        self._settings: Settings | None = None
        #: What was chosen because nothing was requested, and differs from the usual, one sentence each.
        self.choices: list[str] = []

    def forget(self) -> None:
        """Look it up again the next time: the cluster was created or started meanwhile, with other keys and ports."""
        self._api, self._node, self._node_exec = None, None, None

    def api(self) -> Api:
        """Return the cluster's API. Raise LabError if there is no cluster."""
        if self._api is None:
            self.node()  # if there is none, this reports it in plain words
            self._api = kubernetes_api.Api(self.provider.credentials())
        return self._api

    def node(self) -> Node:
        """Return the node that the lab's pods are on: the first of the cluster. Raise LabError if there is none."""
        if self._node is None:
            found = self.provider.state().nodes
            if not found:
                raise LabError("no lab is up", hint="merlab up", id="lab.not_up")
            self._node = found[0]
        return self._node

    def answers(self) -> bool:
        """Report whether the cluster is the lab's, its nodes run, and its API answers.

        Raise LabError if that cannot be determined.
        """
        if not self.provider.state().up:
            return False
        try:
            return self.api().ready()
        except LabError:  # its set-up did not finish: there is no connection to it yet
            return False

    def find_node_exec(self) -> NodeExec | None:
        """Return what enters pods, or None if there is nothing. Raise LabError without a lab.

        If the node has no tools, that is a pod that exists as long as this merlab runs, once its image is on the node.
        """
        if self._node_exec is None:
            api, node = self.api(), self.node()
            if node_exec.have_tools(node):
                self._node_exec = node_exec.NodeToolsExec(node)
            else:
                self._help(api, node)
        return self._node_exec

    def _help(self, api: Api, node: Node) -> None:
        """Create a helper; if that fails, `node_exec` explains why."""
        settings = self.best_known_settings()
        self.helpless = None
        try:
            if full_name(settings.proxy_image) in rollout.images_on(node):
                self._node_exec = self._helper = node_exec.make(api, node, settings, self.provider.images)
        except LabError as error:
            self.helpless = error

    def close(self) -> None:
        """Remove the helper that was created, and those of merlabs that were killed."""
        helper, self._helper = self._helper, None
        # If the cluster is gone, the helper is gone, too. If the cluster does not answer, the next merlab removes it.
        if helper is not None:
            with signals.shielded(), contextlib.suppress(LabError):
                self._node_exec = None
                if self.provider.state().usable:
                    node_exec.remove(helper.api, helper.pod)
                    node_exec.sweep(helper.api)

    def node_exec(self) -> NodeExec:
        """Return what enters pods. Raises LabError."""
        found = self.find_node_exec()
        if found is None:
            node = self.node().name
            raise self.helpless or LabError(
                f"the node {node} lacks iptables or nsenter, and Istio's image, which contains them",
                hint="merlab up",
                id="node.no_tools",
            )
        return found

    def kept(self) -> Settings | None:
        """Return the settings of the lab that are stored in the cluster; None if it has none. Raises LabError."""
        found = self.api().find(kubernetes_api.path("ConfigMap", topology.SETTINGS))
        return Settings.from_json((found.get("data") or {}).get("settings.json", "")) if found else None

    def setup_complete(self) -> bool:
        """Report whether the lab's set-up, or its last change, finished."""
        found = self.api().find(kubernetes_api.path("ConfigMap", topology.SETTINGS))
        return found is not None and (found.get("data") or {}).get("finished") == "true"

    def settings(self) -> Settings:
        """Return the desired settings: those of the lab, else the table's, changed by what was requested.

        Raise LabError if the cluster exists and cannot be read: unknown settings must not be replaced.
        """
        return self._settings or self._settings_of(self.provider.state())

    def _settings_of(self, cluster: ClusterState) -> Settings:
        kept = self.kept() if cluster.usable else None
        settings = (kept or Settings.default()).asked(self._options)
        if kept is None:
            settings = replace(settings, dataplane=self._default_dataplane(settings))
        image = cluster.nodes[0].image if cluster.usable else ""
        self._settings = replace(settings, kind_image=image or settings.kind_image)
        return self._settings

    def _default_dataplane(self, settings: Settings) -> str:
        """Return the dataplane of a lab that has none yet: what was requested, else the first whose image is here."""
        if self._options.dataplane:
            return self._options.dataplane
        first = settings.dataplane
        for name in map(str, versions()["dataplanes"]):
            # Whoever names an image means its dataplane.
            with contextlib.suppress(LabError):
                if name in self._options.images or self.provider.images.has(settings.images[name]):
                    if name != first:
                        self.choices.append(
                            f"dataplane: {name}, as the image of {first}, {settings.images[first]}, is not on this"
                            f" machine (--dataplane {first} pulls it)"
                        )
                    return name
        return first

    def context_commands(self) -> list[str]:
        """Return the commands that make the cluster's context known to kubectl; nothing if it knows it."""
        return self.provider.context_commands(lambda entry: self.api().is_at(entry))

    def best_known_settings(self) -> Settings:
        """Return the same, or the best guess if the cluster cannot be read now; never create anything with a guess.

        If a cluster exists but does not answer, do not require anything for a dataplane that it may not have.
        """
        if self._settings is not None:
            return self._settings
        exists = False
        try:
            found = self.provider.state()
            exists = bool(found.nodes)
            if not exists or (found.up and self.api().ready()):
                return self._settings_of(found)
        except LabError:
            self.forget()
        guess = Settings.default().asked(self._options)
        return replace(guess, dataplane=self._options.dataplane or "none") if exists else guess
