# SPDX-License-Identifier: Apache-2.0
"""What the lab's control plane gives: the same again when applied again, and refusals by name."""

from __future__ import annotations

import json
from collections import Counter
from ipaddress import ip_address
from pathlib import Path

import pytest

from dataplane.lab.cluster import Wish
from dataplane.lab.controlplane import FAMILIES, Assigned, assign, draining
from dataplane.lab.controlplane_objects import to_manifests
from dataplane.lab.controlplane_services import LOAD_BALANCER_RANGES, NODE_PORTS, SERVICE_RANGES
from dataplane.model.errors import BadInput
from dataplane.model.net import Family, IPAddress, Protocol, family_of
from dataplane.model.objects import EndpointSlice, Object, Pod, Service
from dataplane.sources.manifests import Manifests, merge, objects, read, to_batch
from dataplane.sources.parsing import parse_text

EXAMPLE = Path(__file__).parents[2] / "examples"
TCP, UDP = Protocol.TCP, Protocol.UDP


def load(text: str) -> Manifests:
    return merge([parse_text("x.yaml", text)])


def underlay(nodes: int, family: str = "dual") -> list[list[IPAddress]]:
    """192.0.2.1 and 2001:db8::1 for the first node, and so on."""
    found = []
    for number in range(1, nodes + 1):
        both = [ip_address(f"192.0.2.{number}"), ip_address(f"2001:db8::{number:x}")]
        found.append([a for a in both if family_of(a) in FAMILIES[family]])
    return found


def lab(
    text: str | Manifests, nodes: int = 3, family: str = "dual", previous: Assigned | None = None
) -> Assigned:
    manifests = text if isinstance(text, Manifests) else load(text)
    return assign(manifests, underlay(nodes, family), family, previous)


def workload(
    kind: str = "Deployment", name: str = "web", spec: str = "replicas: 1", ports: str = "",
    pod: str = "",
) -> str:  # fmt: skip
    api = "batch/v1" if kind == "Job" else "apps/v1"
    return f"""
apiVersion: {api}
kind: {kind}
metadata: {{name: {name}}}
spec:
  {spec}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec: {{containers: [{{name: c, ports: [{ports}]}}]{pod}}}
---
"""


def service(name: str = "web", spec: str = "", ports: str = "{port: 80}") -> str:
    start = f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
    selector = "" if "selector" in spec else f"selector: {{app: {name}}}, "
    return f"{start}spec: {{{selector}{spec + ', ' if spec else ''}ports: [{ports}]}}\n---\n"


def find(assigned: Assigned, name: str) -> Service:
    return next(s for s in assigned.services if s.name == name)


def pod(assigned: Assigned, name: str) -> Pod:
    return next(p for p in assigned.pods if p.name == name)


def slices(assigned: Assigned, name: str, family: Family = Family.V4) -> list[EndpointSlice]:
    return [s for s in assigned.slices if s.service == name and s.family is family]


def problems(assigned: Assigned) -> list[tuple[str, str]]:
    return [(p.object, p.field) for p in assigned.problems]


# ---- pods ----


def test_pods_are_spread_and_addressed() -> None:
    found = lab(workload(spec="replicas: 4"))
    assert [(p.name, p.node_name, [str(a) for a in p.addresses]) for p in found.pods] == [
        ("web-0", "node-1", ["10.244.1.2", "fd00:10:244:1::2"]),
        ("web-1", "node-2", ["10.244.2.2", "fd00:10:244:2::2"]),
        ("web-2", "node-3", ["10.244.3.2", "fd00:10:244:3::2"]),
        ("web-3", "node-1", ["10.244.1.3", "fd00:10:244:1::3"]),
    ]


def test_nodes_have_addresses_and_pod_ranges() -> None:
    found = lab("apiVersion: v1\nkind: Node\nmetadata: {name: node-2, labels: "
                "{topology.kubernetes.io/zone: b}}\n---\n"
                "apiVersion: v1\nkind: Node\nmetadata: {name: elsewhere}\n", nodes=2)  # fmt: skip
    assert [(n.name, str(n.addresses[0]), str(n.addresses[1]), n.zone) for n in found.nodes] == [
        ("node-1", "192.0.2.1", "2001:db8::1", ""),
        ("node-2", "192.0.2.2", "2001:db8::2", "b"),
    ]
    assert [str(c) for c in found.nodes[1].pod_cidrs] == ["10.244.2.0/24", "fd00:10:244:2::/64"]
    assert "elsewhere" in found.notes[0]


def test_kinds_that_nobody_here_uses_are_named_and_counted() -> None:
    account = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %s}\n"
    cron_job = "---\napiVersion: batch/v1\nkind: CronJob\nmetadata: {name: c}\n"
    found = lab(account % "a" + "---\n" + account % "b" + cron_job)
    assert found.notes == ("Objects of other kinds are not used: CronJob (1), ServiceAccount (2)",)


@pytest.mark.parametrize(("family", "versions"), [("ipv4", [4]), ("ipv6", [6]), ("dual", [4, 6])])
def test_lab_has_the_families_asked_for(family: str, versions: list[int]) -> None:
    found = lab(workload() + service(), family=family)
    assert [a.version for a in found.pods[0].addresses] == versions
    assert [a.version for a in found.services[0].cluster_ips] == versions
    assert [c.version for c in found.nodes[0].pod_cidrs] == versions
    assert [int(s.family) for s in found.slices] == versions


def test_daemon_set_has_one_pod_a_node() -> None:
    found = lab(workload("DaemonSet", spec="x: 1"), nodes=4)
    assert [(p.name, p.node_name) for p in found.pods] == [
        (f"web-{number}", f"node-{number + 1}") for number in range(4)
    ]


def test_stateful_set_pods_carry_their_names() -> None:
    found = lab(
        workload("StatefulSet", "db", "replicas: 2\n  ordinals: {start: 5}")
        + service("one", "selector: {statefulset.kubernetes.io/pod-name: db-6}")
    )
    assert [p.name for p in found.pods] == ["db-5", "db-6"]
    assert [e.target for e in slices(found, "one")[0].endpoints] == ["default/db-6"]


def test_job_has_its_parallelism() -> None:
    assert len(lab(workload("Job", spec="parallelism: 3")).pods) == 3


def test_host_network_pod_has_its_nodes_addresses() -> None:
    found = lab(workload("DaemonSet", spec="x: 1", ports="{containerPort: 9100}",
                         pod=", hostNetwork: true") + service(ports="{port: 9100}"))  # fmt: skip
    assert [p.addresses for p in found.pods] == [n.addresses for n in found.nodes]
    assert [e.address for e in slices(found, "web")[0].endpoints] == [
        n.addresses[0] for n in found.nodes
    ]
    assert [found.stand_in_ports(p) for p in found.pods] == [((TCP, 9100),)] * 3


def test_host_ports_of_one_node_are_given_once() -> None:
    found = lab(workload(spec="replicas: 4", ports="{containerPort: 80, hostPort: 8080}"))
    assert sorted(p.node_name for p in found.pods) == ["node-1", "node-2", "node-3"]
    assert problems(found) == [("Deployment default/web", "spec.replicas")]
    assert "node-1's port 8080/TCP is Pod default/web-0's" in found.problems[0].reason


def test_more_pods_than_addresses_names_the_range() -> None:
    found = lab(workload(spec="replicas: 1000000000") + workload(name="late"), nodes=2)
    assert len(found.pods) == 2 * 253
    first, late = found.problems
    assert first.object == "Deployment default/web"
    assert first.reason.startswith(f"{1_000_000_000 - 506} pods have no place: ")
    assert "10.244.1.0/24" in first.reason
    assert "10.244.2.0/24" in first.reason
    assert late.reason.startswith("1 pods have no place")


def test_pod_goes_to_the_node_that_it_names() -> None:
    found = lab(workload(pod=", nodeName: node-3") + workload(name="lost", pod=", nodeName: mars"))
    assert [(p.name, p.node_name) for p in found.pods] == [("web-0", "node-3")]
    assert "node 'mars' is none of node-1" in found.problems[0].reason


def test_workloads_of_one_name_keep_apart() -> None:
    found = lab("apiVersion: v1\nkind: Pod\nmetadata: {name: web-1}\n---\n"
                + workload(spec="replicas: 2") + workload("StatefulSet", spec="replicas: 1"))  # fmt: skip
    assert [p.name for p in found.pods] == [
        "web-1",
        "web-deployment-0",
        "web-deployment-1",
        "web-0",
    ]


def test_dump_of_a_cluster_does_not_double_its_pods() -> None:
    owner = "ownerReferences: [{kind: %s, name: %s, controller: true, apiVersion: x, uid: y}]"
    replica_set = workload("ReplicaSet", "web-5d", "replicas: 1").replace(
        "name: web-5d}\nspec", f"name: web-5d, {owner % ('Deployment', 'web')}}}\nspec"
    )
    dumped = (
        f"apiVersion: v1\nkind: Pod\nmetadata: {{name: web-5d-x, {owner % ('ReplicaSet', 'web-5d')}}}"
        "\nspec: {nodeName: far-away}\nstatus: {podIP: 10.1.2.3}\n"
    )
    found = lab(workload() + replica_set + dumped)
    assert [p.name for p in found.pods] == ["web-0"]
    assert not found.problems


# ---- Services ----


def test_services_get_addresses_of_their_ranges() -> None:
    found = lab(service("a") + service("b", "type: NodePort") + service("c", "type: LoadBalancer"))
    for one in found.services:
        for address in one.cluster_ips:
            assert address in SERVICE_RANGES[family_of(address)]
    addresses = [a for s in found.services for a in s.cluster_ips]
    assert len(set(addresses)) == 6
    assert find(found, "a").ports[0].node_port == 0
    ports = [find(found, name).ports[0].node_port for name in "bc"]
    assert all(port in NODE_PORTS for port in ports)
    assert len(set(ports)) == 2
    for address in find(found, "c").load_balancer_ips:
        assert address in LOAD_BALANCER_RANGES[family_of(address)]
    assert len(find(found, "c").load_balancer_ips) == 2


def test_given_values_are_kept_and_given_to_no_other() -> None:
    """The Services that ask for nothing come first, and would get just these."""
    asked = "type: NodePort, clusterIPs: [10.96.1.1, 'fd00:10:96::101']"
    found = lab(service("a", "type: NodePort") + service("b", asked, "{port: 80, nodePort: 30086}"))
    assert [str(a) for a in find(found, "b").cluster_ips] == ["10.96.1.1", "fd00:10:96::101"]
    assert find(found, "b").ports[0].node_port == 30086
    assert find(found, "a").ports[0].node_port == 30087
    assert not found.problems


def test_two_services_with_one_cluster_ip_leave_the_later_out() -> None:
    found = lab(
        service("a", "clusterIP: 10.96.0.9") + service("b", "clusterIP: 10.96.0.9") + service("c")
    )
    assert [s.name for s in found.services] == ["a", "c"]
    assert problems(found) == [("Service default/b", "spec.clusterIP")]
    assert "10.96.0.9 is Service default/a's" in found.problems[0].reason


@pytest.mark.parametrize(
    "address", ["10.97.0.1", "192.0.2.1", "10.96.0.0", "'2001:db8::1'", "'fd00:10:96::1:0'"]
)
def test_cluster_ip_outside_the_range_is_left_out(address: str) -> None:
    found = lab(service("a", f"clusterIP: {address}") + service("b"))
    assert [s.name for s in found.services] == ["b"]
    assert problems(found) == [("Service default/a", "spec.clusterIP")]
    assert "is outside the Service range" in found.problems[0].reason


def test_service_left_out_gives_back_what_it_had() -> None:
    found = lab(
        service("a", "type: NodePort, clusterIP: 10.96.0.9", "{port: 80, nodePort: 29999}")
        + service("b", "clusterIP: 10.96.0.9")
    )
    assert [s.name for s in found.services] == ["b"]
    assert problems(found) == [("Service default/a", "spec.ports[0].nodePort")]


def test_node_port_is_one_services() -> None:
    spec, port = "type: NodePort", "{port: 80, nodePort: 30080}"
    found = lab(service("a", spec, port) + service("b", spec, port))
    assert "30080 is Service default/a's" in found.problems[0].reason


def test_tcp_and_udp_of_one_port_share_a_node_port() -> None:
    ports = "{name: t, port: 53}, {name: u, port: 53, protocol: UDP}, {name: m, port: 54}"
    found = lab(service(spec="type: NodePort", ports=ports))
    tcp, udp, other = (p.node_port for p in find(found, "web").ports)
    assert tcp == udp != other


def test_local_load_balancer_gets_a_health_check_port() -> None:
    found = lab(service(spec="type: LoadBalancer, externalTrafficPolicy: Local"))
    assert find(found, "web").health_check_node_port in NODE_PORTS
    assert find(found, "web").health_check_node_port != find(found, "web").ports[0].node_port


def test_load_balancer_without_node_ports() -> None:
    found = lab(service(spec="type: LoadBalancer, allocateLoadBalancerNodePorts: false"))
    assert find(found, "web").ports[0].node_port == 0
    assert find(found, "web").load_balancer_ips


def test_load_balancer_ip_is_given_if_it_can_be() -> None:
    found = lab(
        service("a", "type: LoadBalancer")
        + service("b", "type: LoadBalancer, loadBalancerIP: 198.51.100.1")
        + service("c", "type: LoadBalancer, loadBalancerIP: 203.0.113.1")
    )
    assert str(find(found, "b").load_balancer_ips[0]) == "198.51.100.1"
    assert len({s.load_balancer_ips[0] for s in found.services}) == 3
    assert any("203.0.113.1" in note for note in found.notes)


@pytest.mark.parametrize(
    ("spec", "family", "versions"),
    [
        ("", "dual", [4, 6]),
        ("ipFamilies: [IPv6]", "dual", [6, 4]),
        ("ipFamilyPolicy: PreferDualStack", "dual", [4, 6]),
        ("ipFamilyPolicy: PreferDualStack", "ipv6", [6]),
        ("ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv4, IPv6]", "ipv6", [6]),
        ("ipFamilyPolicy: SingleStack", "dual", [4]),
        ("ipFamilyPolicy: SingleStack, ipFamilies: [IPv6]", "dual", [6]),
        ("ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4]", "dual", [6, 4]),
        ("ipFamilyPolicy: SingleStack, clusterIP: 'fd00:10:96::9'", "dual", [6]),
        ("ipFamilies: [IPv4]", "ipv4", [4]),
    ],
)
def test_dual_stack_fields_are_followed(spec: str, family: str, versions: list[int]) -> None:
    found = lab(service(spec=spec), family=family)
    assert [a.version for a in find(found, "web").cluster_ips] == versions
    assert not found.problems


@pytest.mark.parametrize(
    ("spec", "family", "field"),
    [
        ("ipFamilyPolicy: RequireDualStack", "ipv4", "spec.ipFamilyPolicy"),
        ("ipFamilies: [IPv6]", "ipv4", "spec.ipFamilies"),
        ("ipFamilies: [IPv4, IPv6]", "ipv4", "spec.ipFamilies"),
        ("ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6]", "ipv4", "spec.ipFamilies"),
        ("ipFamilyPolicy: SingleStack, ipFamilies: [IPv4, IPv6]", "dual", "spec.ipFamilyPolicy"),
    ],
)
def test_families_that_the_lab_lacks_are_named(spec: str, family: str, field: str) -> None:
    found = lab(service(spec=spec) + service("other"), family=family)
    assert problems(found) == [("Service default/web", field)]
    assert [s.name for s in found.services] == ["other"]


def test_dual_stack_by_default_is_said() -> None:
    text = service("a") + service("b", "ipFamilyPolicy: SingleStack")
    assert lab(text).notes == (
        "1 Services without ipFamilyPolicy are PreferDualStack: the lab is dual-stack",
    )
    assert not lab(text, family="ipv4").notes


def test_service_range_that_is_used_up_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.lab.controlplane_services.NODE_PORTS", range(30_000, 30_002))
    monkeypatch.setattr("dataplane.lab.controlplane_services._FIRST_NODE_PORT", 30_001)
    found = lab("".join(service(name, "type: NodePort") for name in "abc"))
    assert [s.ports[0].node_port for s in found.services] == [30_001, 30_000]
    assert "all of 30000-30001 is taken" in found.problems[0].reason


def test_external_name_is_left_as_it_is() -> None:
    text = "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {type: ExternalName}\n"
    found = lab(text)
    assert not found.services[0].cluster_ips
    assert not found.slices


# ---- slices ----


def test_named_ports_are_found_on_each_pod() -> None:
    """Two Deployments behind one Service call different numbers by one name."""
    found = lab(
        workload(name="a", ports="{name: http, containerPort: 8080}").replace("app: a", "app: web")
        + workload(name="b", ports="{name: http, containerPort: 9090}").replace(
            "app: b", "app: web"
        )
        + workload(name="c").replace("app: c", "app: web")
        + service(ports="{port: 80, targetPort: http}")
    )
    made = {
        endpoint.target: [port.port for port in piece.ports]
        for piece in slices(found, "web")
        for endpoint in piece.endpoints
    }
    assert made == {"default/a-0": [8080], "default/b-0": [9090], "default/c-0": []}
    assert len({s.name for s in found.slices}) == len(found.slices) == 6
    assert not found.problems


def test_named_port_that_no_pod_has_is_named() -> None:
    """A name counts for one protocol only."""
    found = lab(
        workload(ports="{name: dns, containerPort: 53, protocol: UDP}, {name: x, containerPort: 1}")
        + service(ports="{name: a, port: 53, targetPort: dns}, {name: b, port: 80}")
    )
    assert problems(found) == [("Service default/web", "spec.ports[0].targetPort")]
    assert "no selected pod has a TCP port named 'dns'; they have x" in found.problems[0].reason
    assert [p.port for p in slices(found, "web")[0].ports] == [80]


def test_headless_service_has_slices_only() -> None:
    found = lab(workload("StatefulSet") + service(spec='clusterIP: "None"'))
    assert not find(found, "web").cluster_ips
    assert [len(s.endpoints) for s in found.slices] == [1, 1]


def test_selectorless_service_keeps_its_own_slices() -> None:
    own = (
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n"
        "metadata: {name: mine, labels: {kubernetes.io/service-name: %s}}\n"
        "ports: [{port: 443}]\nendpoints: [{addresses: [203.0.113.1]}]\n---\n"
    )
    found = lab(service(spec="selector: {}") + own % "web")
    assert [s.name for s in found.slices] == ["mine"]
    taken = lab(workload() + service() + own % "web")
    assert [s.name for s in taken.slices] == ["web-ipv4", "web-ipv6"]
    assert "EndpointSlices of Services with a selector" in taken.notes[-1]


def test_service_without_pods_has_empty_slices() -> None:
    found = lab(service())
    assert [s.endpoints for s in found.slices] == [(), ()]


def test_stand_ins_answer_on_all_ports_that_anything_names() -> None:
    found = lab(
        workload(ports="{containerPort: 8080}, {containerPort: 53, protocol: UDP}")
        + service(
            ports="{name: a, port: 80, targetPort: 8080}, {name: b, port: 81, targetPort: 9000}"
        )
        + service("other", "selector: {app: web}", "{port: 53, protocol: UDP}")
    )
    assert found.stand_in_ports(found.pods[0]) == ((TCP, 8080), (TCP, 9000), (UDP, 53))


# ---- applied again ----

SHOP = (
    workload(spec="replicas: 4", ports="{containerPort: 8080}")
    + workload("DaemonSet", "agent", "x: 1")
    + service(
        spec="type: LoadBalancer, externalTrafficPolicy: Local",
        ports="{port: 80, targetPort: 8080}",
    )
    + service("agent", "type: NodePort")
)


def test_applied_again_nothing_changes() -> None:
    first = lab(SHOP)
    assert lab(SHOP, previous=first) == first


def test_what_stays_keeps_all_that_it_had() -> None:
    """New objects come before the old ones in the file, and would be first in turn."""
    first = lab(SHOP)
    later = lab(
        workload(name="new", spec="replicas: 5") + service("new", "type: LoadBalancer") + SHOP,
        previous=first,
    )
    assert {p.key: p for p in first.pods}.items() <= {p.key: p for p in later.pods}.items()
    assert {s.key: s for s in first.services}.items() <= {s.key: s for s in later.services}.items()
    addresses = [a for p in later.pods for a in p.addresses]
    assert len(addresses) == len(set(addresses))


def test_freed_address_is_not_given_at_once() -> None:
    first = lab(workload(spec="replicas: 6"))
    later = lab(
        workload(spec="replicas: 2") + workload(name="new", spec="replicas: 3"), previous=first
    )
    given = {a for p in later.pods if p.name.startswith("new") for a in p.addresses}
    assert given.isdisjoint(a for p in first.pods for a in p.addresses)


def test_newcomer_cannot_take_what_another_has() -> None:
    first = lab(service("old"))
    held = find(first, "old").cluster_ips[0]
    later = lab(service("new", f"clusterIP: {held}") + service("old"), previous=first)
    assert [s.name for s in later.services] == ["old"]
    assert problems(later) == [("Service default/new", "spec.clusterIP")]


def test_more_replicas_fill_the_emptiest_nodes() -> None:
    first = lab(workload(spec="replicas: 2"))
    later = lab(workload(spec="replicas: 6"), previous=first)
    assert set(Counter(p.node_name for p in later.pods).values()) == {2}


def test_pods_that_go_drain_first() -> None:
    old = lab(workload(spec="replicas: 3") + service())
    new = lab(workload(spec="replicas: 1") + service(), previous=old)
    between = draining(old, new)
    assert [
        (e.target, e.ready, e.serving, e.terminating) for e in slices(between, "web")[0].endpoints
    ] == [
        ("default/web-0", True, True, False),
        ("default/web-1", False, True, True),
        ("default/web-2", False, True, True),
    ]
    assert len(between.pods) == 3
    assert draining(new, new) == new


# ---- what agents read ----


@pytest.mark.parametrize("family", FAMILIES)
def test_agents_read_back_what_was_assigned(family: str) -> None:
    found = lab(read([EXAMPLE]), family=family)
    assert not found.problems
    again, _ = objects(read_back(found))
    given: tuple[Object, ...] = (*found.nodes, *found.services, *found.slices, *found.pods)
    assert again == {value.key: value for value in given}


def read_back(assigned: Assigned) -> Manifests:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": to_manifests(assigned)})
    return merge([parse_text("lab.json", text)])


def test_agents_read_draining_pods_back() -> None:
    old = lab(SHOP)
    between = draining(old, lab(workload(spec="replicas: 1"), previous=old))
    batch = to_batch(read_back(between))
    assert {p.name for p in batch.upserts if isinstance(p, Pod) and p.terminating} == {
        p.name for p in old.pods if p.name != "web-0"
    }
    assert not batch.problems


def test_example_shows_each_kind_of_service() -> None:
    found = lab(read([EXAMPLE]))
    assert {s.type.value for s in found.services} == {
        "ClusterIP", "Headless", "LoadBalancer", "NodePort"
    }  # fmt: skip
    assert {port.protocol for s in found.services for port in s.ports} == {TCP, UDP}


@pytest.mark.parametrize(("nodes", "family"), [(0, "dual"), (251, "dual"), (3, "both")])
def test_impossible_labs_are_refused(nodes: int, family: str) -> None:
    with pytest.raises(BadInput):
        assign(Manifests(), [[]] * nodes, family)


@pytest.mark.parametrize("number", [-1, 0, 251, 1_000_000])
def test_a_number_of_nodes_that_can_not_be_is_refused(number: int) -> None:
    wish = Wish(paths=(), nodes=number, mode="vxlan", family="dual")
    with pytest.raises(BadInput, match=f"--nodes: {number} is not from 1 to 250"):
        wish.underlay()
