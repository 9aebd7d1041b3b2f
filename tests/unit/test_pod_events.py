"""Events on pods, told to a server by real sockets and real TLS: which, how often, and that nobody waits for them."""

import dataclasses
import http.server
import json
import re
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from api_server import Keys

from merbridge_lab.adapters.cri_runtime import Sandbox
from merbridge_lab.agent import pod_events
from merbridge_lab.agent.pod_events import PodEvents
from merbridge_lab.agent.refusals import REFUSALS, Refusal
from merbridge_lab.agent.service_account import ServiceAccount
from merbridge_lab.agent.tracked_pod import TrackedPod
from merbridge_lab.dataplane import Endpoint, Sidecar
from merbridge_lab.polling import poll_until

POD = Sandbox(
    "1",
    "5060982b-b6f8-43c6-a4c4-ec8455b9fd2b",
    "shop",
    "web-0",
    ("10.0.0.1",),
    annotations={pod_events._INJECTED: "{}"},
)
SERVED = Endpoint("shop", "web-0", POD.uid, "10.0.0.1", Path("/netns"), Path("/proc"), Sidecar(7, 1337, 1337))
DIFFER = Refusal("rules_differ", "its rules are not those that its annotations imply: a port is missing")


def pod(what, sandbox=POD, **changes):
    """Return a pod that is served, or refused."""
    made = TrackedPod(dataclasses.replace(sandbox, **changes), 0.0, 0.0)
    made.endpoint, made.refusal = (what, None) if isinstance(what, Endpoint) else (None, what)
    return made


class Api:
    """An API server that takes events for its token, once for each name; or answers `status` instead."""

    def __init__(self, folder):
        self.keys, self.token, self.status, self.silent = Keys(folder), "secret", 0, threading.Event()
        self.silent.set()
        self.asked, self.events, self.at = [], {}, []
        self.told_by = []
        #: A namespace whose events fail, as by a webhook that does not answer.
        self.failing = ""
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.silent.wait(10)
                api.asked.append((self.path, told))
                api.at.append(time.monotonic())
                name = told["metadata"]["name"]
                allowed = self.headers["Authorization"] == f"Bearer {api.token}"
                broken = 500 if told["metadata"]["namespace"] == api.failing else 0
                code = api.status or broken or (401 if not allowed else 409 if name in api.events else 201)
                if code == 201:
                    api.events[name] = told
                self.send_response(code)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.keys.server)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.folder = folder / "account"
        self.folder.mkdir()
        (self.folder / "token").write_text("secret\n")
        (self.folder / "ca.crt").write_bytes(self.keys.ca.read_bytes())

    def account(self, port=None):
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1"}
        environ["KUBERNETES_SERVICE_PORT"] = str(port or self.server.server_port)
        return ServiceAccount(self.folder, environ)

    def reasons(self):
        return [told["reason"] for told in self.events.values()]


@pytest.fixture
def api(tmp_path, monkeypatch):
    for name, seconds in {"_LASTS": 0.3, "_STARTS": 0.6, "_OF_ONE": 0.0, "_OF_ALL": 0.0, "_AGAIN": 0.05}.items():
        monkeypatch.setattr(pod_events, name, seconds)
    made = Api(tmp_path)
    yield made
    made.silent.set()
    # Their threads go on: without anything to tell, and with no connection open when the server ends.
    for events in made.told_by:
        events.update([])
    quiet(made, 0.1)
    made.server.shutdown()
    made.server.server_close()


def telling(api):
    events = PodEvents(api.account())
    api.told_by.append(events)
    events.start()
    return events


def until(look, what):
    found = poll_until(look, timeout=10, every=0.01, awaiting=what)
    assert found, what
    return found


def quiet(api, seconds=0.5):
    """Return how many requests came, once none comes any more."""
    before = -1
    while before != len(api.asked):
        before = len(api.asked)
        poll_until(lambda known=before: len(api.asked) != known, timeout=seconds, awaiting="another request")
    return before


def test_that_a_pod_is_served_is_an_event_on_it(api):
    events = telling(api)
    events.update([pod(SERVED)])
    until(lambda: events.results["created"], "the event")
    ((path, told),) = api.asked
    assert path == "/apis/events.k8s.io/v1/namespaces/shop/events"
    assert told["regarding"] == {
        "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web-0", "uid": POD.uid
    }  # fmt: skip
    assert (told["type"], told["reason"], told["action"]) == ("Normal", "Served", "Serving")
    assert told["note"].startswith("eBPF serves it over Istio's rules: app sockets")
    assert (told["reportingController"], told["metadata"]["namespace"]) == ("merlab-agent", "shop")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", told["eventTime"])
    assert "series" not in told


def test_a_refusal_is_told_once_it_has_lasted(api):
    events = telling(api)
    began = time.monotonic()
    events.update([pod(DIFFER)])
    until(lambda: events.results["created"], "the event")
    assert api.at[0] - began >= 0.3
    ((_, told),) = api.asked
    assert (told["type"], told["reason"], told["action"]) == ("Warning", "RulesDiffer", "LeavingToRules")
    assert told["note"] == f"It is left to Istio's rules: {DIFFER.sentence}"
    for _ in range(3):
        events.update([pod(DIFFER)])
    assert quiet(api) == 1


def test_what_a_pod_goes_through_while_it_starts_is_not_told(api):
    events = telling(api)
    for id_ in ("unread", "no_sidecar", "no_listener"):
        events.update([pod(Refusal(id_, "not yet"))])
    events.update([pod(SERVED)])
    until(lambda: events.results["created"], "the event")
    events.update([pod(Refusal("no_listener", "its sidecar restarts"))])
    events.update([pod(SERVED)])
    assert quiet(api, 1.0) == 1
    assert api.reasons() == ["Served"]


def test_a_sidecar_that_never_listens_is_told(api):
    events = telling(api)
    events.update([pod(Refusal("no_listener", "nothing listens on port 15006 in it yet"))])
    until(lambda: api.reasons() == ["NoListener"], "the event")


def test_a_pod_that_stays_attached_while_its_sidecar_restarts_is_not_said_to_be_left_to_the_rules(api):
    events = telling(api)
    restarting = pod(Refusal("no_listener", "nothing listens on port 15006 in it yet"))
    restarting.endpoint = SERVED
    events.update([restarting])
    assert quiet(api, 1.0) == 0


def test_a_gateway_is_told_but_is_no_fault(api):
    events = telling(api)
    events.update([pod(Refusal("gateway", "it is a gateway"))])
    until(lambda: api.reasons() == ["Gateway"], "the event")
    assert next(iter(api.events.values()))["type"] == "Normal"


def test_pods_outside_of_the_mesh_get_none(api):
    events = telling(api)
    plain = {"annotations": {}}
    others = [
        pod(Refusal(id_, "x"), uid=id_, **plain)
        for id_ in ("host_network", "no_sidecar", "opted_out", "gateway", "unread")
    ]
    events.update([*others, pod(DIFFER, uid="rules", **plain), pod(Refusal("opted_out", "x"), uid="injected")])
    until(lambda: events.results["created"] == 2, "those of the mesh")
    quiet(api)
    assert sorted(api.reasons()) == ["OptedOut", "RulesDiffer"]
    assert {told["type"] for told in api.events.values() if told["reason"] == "OptedOut"} == {"Normal"}


def test_what_happens_again_is_counted(api):
    events = telling(api)
    for what, number in ((SERVED, 1), (DIFFER, 2), (SERVED, 3), (DIFFER, 4)):
        events.update([pod(what)])
        until(lambda known=number: events.results["created"] == known, "the event")
    assert api.reasons() == ["Served", "RulesDiffer"] * 2
    first, _, third, _ = api.events.values()
    assert third["series"]["count"] == 2
    assert third["eventTime"] == first["eventTime"] < third["series"]["lastObservedTime"]


def test_a_pod_that_changes_all_the_time_is_told_of_at_intervals_and_the_last_state_counts(api, monkeypatch):
    monkeypatch.setattr(pod_events, "_OF_ONE", 1.0)
    events = telling(api)
    events.update([pod(SERVED)])
    until(lambda: events.results["created"], "the event")
    for number in range(50):
        events.update(
            [
                pod(Refusal("not_attached", f"try {number}")),
            ]
        )
    until(lambda: events.results["created"] == 2, "the last one")
    assert quiet(api, 1.5) == 2
    assert api.at[1] - api.at[0] >= 0.9
    assert [told["note"] for _, told in api.asked][1].endswith("try 49")


def test_many_pods_are_told_of_one_after_another(api, monkeypatch):
    monkeypatch.setattr(pod_events, "_OF_ALL", 0.1)
    events = telling(api)
    events.update([pod(SERVED, uid=f"u{number}", name=f"web-{number}") for number in range(8)])
    until(lambda: events.results["created"] == 8, "all of them")
    assert all(later - earlier >= 0.08 for earlier, later in zip(api.at, api.at[1:], strict=False))


def test_the_next_agent_does_not_tell_it_again_but_what_happens_again(api):
    first, second = telling(api), telling(api)
    for number, what in enumerate((SERVED, DIFFER, SERVED), 1):
        first.update([pod(what)])
        until(lambda known=number: first.results["created"] == known, "the event")
    second.update([pod(SERVED)])
    until(lambda: second.results["repeated"] == 1, "the answer that it is there")
    assert quiet(api) == 4
    second.update([pod(DIFFER)])
    until(lambda: second.results["created"] == 1, "another state, although an agent has told it before")
    assert second.results["repeated"] == 2
    assert api.reasons() == ["Served", "RulesDiffer", "Served", "RulesDiffer"]
    assert list(api.events.values())[-1]["series"]["count"] == 2


def test_while_the_server_is_away_it_is_counted_and_told_later(api):
    api.status = 503
    events = telling(api)
    events.update([pod(SERVED)])
    until(lambda: events.results["failed"] >= 2, "two tries")
    api.status = 0
    until(lambda: events.results["created"], "the event")
    assert "series" not in next(iter(api.events.values()))


def test_a_pod_whose_event_always_fails_does_not_keep_others_from_theirs(api):
    api.failing = "broken"
    events = telling(api)
    events.update([pod(SERVED, namespace="broken", uid="first"), pod(SERVED), pod(SERVED, uid="u2", name="web-1")])
    until(lambda: len(api.events) == 2, "the events of the others")
    assert {told["metadata"]["namespace"] for told in api.events.values()} == {"shop"}
    assert events.results["failed"] >= 1


def test_nobody_waits_for_a_server_that_is_silent(api):
    api.silent.clear()
    events = telling(api)
    slowest = 0.0
    for number in range(200):
        began = time.monotonic()
        events.update([pod(SERVED), pod(DIFFER, uid=f"u{number}")])
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 0.2
    until(lambda: events.results["failed"], "its time limit")
    api.silent.set()
    until(lambda: "Served" in api.reasons(), "the event")


def test_where_nobody_listens_it_goes_on(api):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    events = PodEvents(api.account(port))
    events.start()
    events.update([pod(SERVED)])
    until(lambda: events.results["failed"] >= 2, "two tries")


def test_without_the_right_it_is_counted_and_not_tried_again(api):
    api.status = 403
    events = telling(api)
    events.update([pod(SERVED)])
    until(lambda: events.results["refused"], "the refusal")
    assert quiet(api) == 1


def test_the_token_is_read_again_as_it_is_renewed(api):
    events = telling(api)
    api.token = "renewed"  # noqa: S105
    events.update([pod(SERVED)])
    until(lambda: events.results["failed"], "the old one to be refused")
    (api.folder / "token").write_text("renewed\n")
    until(lambda: events.results["created"], "the event")


def test_without_a_token_nothing_is_told(tmp_path):
    events = PodEvents(ServiceAccount(tmp_path, {"KUBERNETES_SERVICE_HOST": "127.0.0.1"}))
    before = threading.active_count()
    events.start()
    events.update([pod(SERVED)])
    assert threading.active_count() == before
    assert not events._pods


def test_there_is_room_for_so_many_pods_and_those_that_are_gone_are_forgotten(api, monkeypatch):
    monkeypatch.setattr(pod_events, "_ROOM", 3)
    events = PodEvents(api.account())
    events.update([pod(SERVED, uid=f"u{number}") for number in range(5)])
    assert set(events._pods) == {"u0", "u1", "u2"}
    assert events.results["dropped"] == 2
    events.update([pod(SERVED, uid=f"u{number}") for number in range(5)])
    assert events.results["dropped"] == 2, "each is counted once"
    events.update([pod(SERVED, uid="u4")])
    assert set(events._pods) == {"u4"}


@pytest.mark.parametrize("id_", REFUSALS)
def test_every_event_is_as_the_api_takes_it(id_):
    long = pod(Refusal(id_, "ß" * 2000), name="web." + "x" * 248 + "-")
    told = pod_events.event(long, pod_events._note(long), 2, "first", "now")
    assert re.fullmatch(r"[A-Z][A-Za-z]+", told["reason"])
    assert len(told["reason"]) <= 128
    assert len(told["note"].encode()) <= 1024
    assert len(told["metadata"]["name"]) <= 253
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", told["metadata"]["name"])
    assert 0 < len(told["reportingInstance"]) <= 128
