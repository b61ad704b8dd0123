# SPDX-License-Identifier: Apache-2.0
"""Manifests to objects: Kubernetes' defaults, kube-proxy's reading, and faults by name."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from dataplane.model.errors import BadInput
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    ContainerPort,
    EndpointSlice,
    Node,
    ObjectKey,
    Pod,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
)
from dataplane.sources.manifests import Manifests, merge, read, to_batch
from dataplane.sources.parsing import parse_text
from dataplane.sources.services import ServiceManifest


def load(text: str) -> Manifests:
    return merge([parse_text("x.yaml", text)])


def service_manifest(spec: str, *, labels: str = "", status: str = "{}") -> ServiceManifest:
    manifests = load(service_text(spec, labels=labels, status=status))
    assert not manifests.problems
    return manifests.services[0]


def service(spec: str, *, labels: str = "", status: str = "{}") -> Service:
    return service_manifest(spec, labels=labels, status=status).service


def service_text(spec: str, *, name: str = "web", labels: str = "", status: str = "{}") -> str:
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n"
        f"spec: {{{spec}}}\nstatus: {status}\n---\n"
    )


def problems(text: str) -> list[str]:
    return [str(problem) for problem in load(text).problems]


PORTS = "ports: [{port: 80}]"


# ---- Services ----


def test_service_gets_kubernetes_defaults() -> None:
    found = service_manifest(PORTS)
    assert found.service == Service(
        namespace="default",
        name="web",
        type=ServiceType.CLUSTER_IP,
        ports=(ServicePort("", Protocol.TCP, 80, 0, 80),),
    )
    assert (found.family_policy, found.load_balancer_ip) == ("", None)
    assert found.allocate_node_ports


def test_service_fields_are_kept() -> None:
    found = service_manifest(
        """
        type: LoadBalancer, clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, "fd00:10:96::7"],
        ipFamilies: [IPv4, IPv6], ipFamilyPolicy: RequireDualStack, externalIPs: [192.0.2.1],
        loadBalancerIP: 198.51.100.9, loadBalancerSourceRanges: [" 10.1.2.3/8 ", "2001:db8::/32"],
        externalTrafficPolicy: Local, internalTrafficPolicy: Local, healthCheckNodePort: 31000,
        sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}},
        publishNotReadyAddresses: true, allocateLoadBalancerNodePorts: false,
        selector: {app: web},
        ports: [{name: a, port: 53, protocol: UDP, targetPort: dns, nodePort: 30053},
                {name: b, port: 53, targetPort: 5353}]
        """,
        status="{loadBalancer: {ingress: [{ip: 198.51.100.9}]}}",
    )
    assert found.service == Service(
        namespace="default",
        name="web",
        type=ServiceType.LOAD_BALANCER,
        cluster_ips=(ip_address("10.96.0.7"), ip_address("fd00:10:96::7")),
        ports=(
            ServicePort("a", Protocol.UDP, 53, 30053, "dns"),
            ServicePort("b", Protocol.TCP, 53, 0, 5353),
        ),
        external_ips=(ip_address("192.0.2.1"),),
        load_balancer_ips=(ip_address("198.51.100.9"),),
        source_ranges=(ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")),
        internal_local=True,
        external_local=True,
        affinity_seconds=60,
        health_check_node_port=31000,
        publish_not_ready=True,
        selector={"app": "web"},
        families=(Family.V4, Family.V6),
    )
    assert found.family_policy == "RequireDualStack"
    assert found.load_balancer_ip == ip_address("198.51.100.9")
    assert not found.allocate_node_ports


def test_affinity_lasts_three_hours_by_default() -> None:
    assert service(f"sessionAffinity: ClientIP, {PORTS}").affinity_seconds == 10_800


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (f'clusterIP: "None", {PORTS}', ServiceType.HEADLESS),
        (f'clusterIPs: ["None"], {PORTS}', ServiceType.HEADLESS),
        ('clusterIP: "None"', ServiceType.HEADLESS),
        ("type: ExternalName, externalName: example.org", ServiceType.EXTERNAL_NAME),
    ],
)
def test_service_without_address_is_marked(spec: str, kind: ServiceType) -> None:
    assert service(spec).type is kind


@pytest.mark.parametrize(
    "label", ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"]
)
def test_service_of_another_proxy_is_marked(label: str) -> None:
    assert service(PORTS, labels=f'{label}: ""').skipped == label


@pytest.mark.parametrize(
    ("ingress", "kept"),
    [
        ("{ip: 198.51.100.1}", ["198.51.100.1"]),
        ("{ip: 198.51.100.1, ipMode: VIP}", ["198.51.100.1"]),
        ("{ip: 198.51.100.1, ipMode: Proxy}", []),
        ("{hostname: lb.example.org}", []),
        ("{ip: 198.51.100.1}, {ip: 198.51.100.1}", ["198.51.100.1"]),
    ],
)
def test_load_balancer_ingress_counts_with_ip_and_mode_vip(ingress: str, kept: list[str]) -> None:
    status = f"{{loadBalancer: {{ingress: [{ingress}]}}}}"
    found = service(f"type: LoadBalancer, {PORTS}", status=status)
    assert [str(a) for a in found.load_balancer_ips] == kept
    assert not service(f"type: NodePort, {PORTS}", status=status).load_balancer_ips


def test_external_policy_needs_something_external() -> None:
    assert not service(f"externalTrafficPolicy: Local, {PORTS}").external_local
    assert service(
        f"externalTrafficPolicy: Local, externalIPs: [192.0.2.1], {PORTS}"
    ).external_local
    assert service(f"externalTrafficPolicy: Local, type: NodePort, {PORTS}").external_local


def test_health_check_port_needs_a_local_load_balancer() -> None:
    port = "healthCheckNodePort: 31000"
    assert not service(f"type: LoadBalancer, {port}, {PORTS}").health_check_node_port
    local = f"type: LoadBalancer, externalTrafficPolicy: Local, {port}, {PORTS}"
    assert service(local).health_check_node_port == 31000


@pytest.mark.parametrize(
    ("spec", "where", "why"),
    [
        ('ports: [{port: "80"}]', "spec.ports[0].port", "is a string, not an integer"),
        ("ports: [{port: 80.5}]", "spec.ports[0].port", "is a number with a fraction"),
        ("ports: [{port: true}]", "spec.ports[0].port", "is a boolean"),
        ("ports: [{port: 70000}]", "spec.ports[0].port", "70000 is not from 1 to 65535"),
        ("ports: [{name: x}]", "spec.ports[0].port", "is missing"),
        ("ports: [80]", "spec.ports[0]", "is an integer, not an object"),
        ("ports: {port: 80}", "spec.ports", "is an object, not a list"),
        ("ports: [{port: 80, protocol: ICMP}]", "spec.ports[0].protocol", "is none of"),
        ("ports: [{port: 80, targetPort: a_b}]", "spec.ports[0].targetPort", "port name"),
        ("ports: [{port: 80, targetPort: 0x10000}]", "spec.ports[0].targetPort", "65536"),
        ("ports: [{port: 80}, {port: 81}]", "spec.ports[0].name", "is missing"),
        ("ports: [{port: 80, nodePort: 30000}]", "spec.ports[0].nodePort", "type ClusterIP"),
        ("type: ClusterIP", "spec.ports", "is missing"),
        (f"selector: [app], {PORTS}", "spec.selector", "is a list, not an object"),
        (f"selector: {{app: 1}}, {PORTS}", "spec.selector.app", "is an integer, not a string"),
        (f"type: Loadbalancer, {PORTS}", "spec.type", "is none of"),
        (f"clusterIP: 10.96.0.07, {PORTS}", "spec.clusterIP", "Leading zeros"),
        (f"clusterIP: 10.96.0.300, {PORTS}", "spec.clusterIP", "300"),
        (f'clusterIP: "::ffff:10.96.0.1", {PORTS}', "spec.clusterIP", "write 10.96.0.1"),
        (f'clusterIP: "fe80::1%eth0", {PORTS}', "spec.clusterIP", "zone"),
        (f"clusterIPs: [10.96.0.1, 10.96.0.2], {PORTS}", "spec.clusterIPs", "of a family"),
        (
            f"clusterIP: 10.96.0.2, clusterIPs: [10.96.0.1], {PORTS}",
            "spec.clusterIPs[0]",
            "differs",
        ),
        (f"clusterIP: 10.96.0.1, ipFamilies: [IPv6], {PORTS}", "spec.clusterIP", "ipFamilies[0]"),
        (f"ipFamilies: [IPv5], {PORTS}", "spec.ipFamilies[0]", "is none of"),
        (f'type: NodePort, clusterIP: "None", {PORTS}', "spec.clusterIP", "does not go with"),
        (f"sessionAffinity: Cookie, {PORTS}", "spec.sessionAffinity", "is none of"),
        (f"externalIPs: [127.0.0.1], {PORTS}", "spec.externalIPs[0]", "a loopback address"),
        (f"externalIPs: [010.0.0.1], {PORTS}", "spec.externalIPs[0]", "Leading zeros"),
        (f"publishNotReadyAddresses: yes please, {PORTS}", "spec.publishNotReadyAddresses", "true"),
        (
            f"loadBalancerSourceRanges: [10.0.0.1], {PORTS}",
            "spec.loadBalancerSourceRanges[0]",
            "/32",
        ),
    ],
)
def test_service_field_that_cannot_be_used_is_named(spec: str, where: str, why: str) -> None:
    (problem,) = load(service_text(spec)).problems[:1]
    assert problem.object == "Service default/web"
    assert problem.field == where
    assert why in problem.reason
    assert "(x.yaml:" in problem.reason


def test_problem_says_line_and_column() -> None:
    text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec:\n  ports:\n  - name: x\n    port: no\n"
    (problem,) = load(text).problems
    assert problem.reason.endswith("(x.yaml:8:5)")


def test_problem_in_json_says_line_and_column() -> None:
    text = '{"apiVersion": "v1", "kind": "Node",\n "metadata": {"name": "a"},\n "spec": 3}'
    (problem,) = merge([parse_text("x.json", text)]).problems
    assert problem.reason == "is an integer, not an object (x.json:3:2)"


def test_one_bad_port_leaves_the_others() -> None:
    manifests = load(service_text("ports: [{name: a, port: 0}, {name: b, port: 81}]"))
    assert [p.port for p in manifests.services[0].service.ports] == [81]
    assert len(manifests.problems) == 1


def test_misspelt_source_range_admits_nobody() -> None:
    manifests = load(
        service_text(f'loadBalancerSourceRanges: ["10.0.0.0/33", "fd00::/x"], {PORTS}')
    )
    ranges = manifests.services[0].service.source_ranges
    assert ranges == (ip_network("0.0.0.0/32"), ip_network("::/128"))
    assert len(manifests.problems) == 2


# ---- names, kinds, Lists ----


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b", "..", ".", "A", "-a", "a" * 64, "a.b", "a b", '"\\n"', "''"]
)
def test_name_that_would_leave_a_folder_is_refused(name: str) -> None:
    (problem,) = load(service_text(PORTS, name=name)).problems
    assert problem.field == "metadata.name"
    assert problem.object.startswith("Service '")


def test_namespace_that_would_leave_a_folder_is_refused() -> None:
    text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: ../b}\n"
    assert problems(text)[0].startswith("Pod 'a': metadata.namespace: '../b' is not")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("just words", "object"),
        ("- apiVersion: v1", "object"),
        ("replicaCount: 1", "kind"),
        ("kind: Service\nmetadata: {name: a}", "apiVersion"),
        ("apiVersion: v1\nkind: Service", "metadata.name"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {generateName: a-}", "metadata.name"),
        ("apiVersion: v1\nkind: [Pod]", "kind"),
        ("apiVersion: v1\nkind: Pod\nmetadata: 3", "metadata"),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}", "spec.template"),
    ],
)
def test_document_that_is_no_object_is_named(text: str, field: str) -> None:
    (problem,) = load(text).problems
    assert problem.field == field
    assert "x.yaml:" in problem.reason


def test_other_kinds_are_counted_and_named() -> None:
    manifests = load(
        """
apiVersion: v1
kind: ConfigMap
---
apiVersion: v1
kind: ConfigMap
---
apiVersion: batch/v1
kind: CronJob
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: hello}
---
apiVersion: v1
kind: Endpoints
"""
    )
    assert manifests.ignored == {
        "ConfigMap": 2,
        "CronJob": 1,
        "Endpoints": 1,
        "Service.serving.knative.dev": 1,
    }
    assert not manifests.problems


def test_lists_are_opened() -> None:
    manifests = load(
        """
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ServiceList
  items:
  - metadata: {name: a}
    spec: {ports: [{port: 80}]}
  - metadata: {name: b}
    spec: {ports: [{port: "x"}]}
- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}
"""
    )
    assert [m.service.name for m in manifests.services] == ["a", "b"]
    assert manifests.namespaces == ("shop",)
    assert manifests.problems[0].reason.endswith("(x.yaml:11:21)")


def test_list_in_itself_is_refused() -> None:
    assert "nested too deep" in problems("&a {apiVersion: v1, kind: List, items: [*a]}")[0]


def test_object_given_twice_is_named_and_the_first_counts() -> None:
    first = parse_text("a.yaml", service_text("ports: [{port: 80}]"))
    later = parse_text("b.yaml", service_text("ports: [{port: 81}]"))
    manifests = merge([first, later])
    assert [m.service.ports[0].port for m in manifests.services] == [80]
    assert "a.yaml:1:1 and b.yaml:1:1" in manifests.problems[0].reason


def test_standard_input_is_a_path() -> None:
    assert len(read(["-"], stdin=service_text(PORTS).encode()).services) == 1
    with pytest.raises(BadInput, match="<stdin>:1:1"):
        read(["-"], stdin=b"}")


# ---- pods, workloads, nodes ----

WORKLOAD = """
apiVersion: {api}
kind: {kind}
metadata: {{name: web, namespace: shop}}
spec:
  {spec}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web, tier: front}}}}
    spec:
      hostNetwork: {host}
      initContainers:
      - {{name: once, ports: [{{containerPort: 1}}]}}
      - {{name: beside, restartPolicy: Always, ports: [{{containerPort: 15001}}]}}
      containers:
      - name: a
        ports:
        - {{name: http, containerPort: 8080, hostPort: 80, hostIP: 192.0.2.1}}
        - {{containerPort: 53, protocol: UDP}}
"""


@pytest.mark.parametrize(
    ("api", "kind", "spec", "replicas"),
    [
        ("apps/v1", "Deployment", "", 1),
        ("apps/v1", "Deployment", "replicas: 3", 3),
        ("extensions/v1beta1", "Deployment", "replicas: 0", 0),
        ("apps/v1", "StatefulSet", "replicas: 2", 2),
        ("apps/v1", "ReplicaSet", "replicas: 2", 2),
        ("apps/v1", "DaemonSet", "", 1),
        ("batch/v1", "Job", "", 1),
        ("batch/v1", "Job", "parallelism: 5\n  completions: 3", 3),
        ("batch/v1", "Job", "suspend: true", 0),
    ],
)
def test_workload_says_how_many_pods(api: str, kind: str, spec: str, replicas: int) -> None:
    manifests = load(WORKLOAD.format(api=api, kind=kind, spec=spec, host="false"))
    (workload,) = manifests.workloads
    assert (workload.kind, workload.namespace, workload.replicas) == (kind, "shop", replicas)
    assert workload.template.labels == {"app": "web", "tier": "front"}
    assert workload.template.ports == (
        ContainerPort(8080, Protocol.TCP, "http", 80, ip_address("192.0.2.1")),
        ContainerPort(53, Protocol.UDP),
        ContainerPort(15001),
    )


def test_host_network_pod_has_no_host_ports_to_translate() -> None:
    text = WORKLOAD.format(api="apps/v1", kind="DaemonSet", spec="", host="true")
    (workload,) = load(text).workloads
    assert workload.template.host_network
    assert not any(port.host_port for port in workload.template.ports)


def test_workload_whose_selector_misses_its_pods_is_refused() -> None:
    text = WORKLOAD.format(api="apps/v1", kind="Deployment", spec="", host="false")
    text = text.replace("matchLabels: {app: web}", "matchLabels: {app: other}")
    assert "lack app=other" in problems(text)[0]


@pytest.mark.parametrize("spec", ["replicas: -1", "replicas: many", "replicas: 99999999999"])
def test_impossible_replicas_are_named(spec: str) -> None:
    text = WORKLOAD.format(api="apps/v1", kind="Deployment", spec=spec, host="false")
    assert problems(text)[0].startswith("Deployment shop/web: spec.replicas: ")


POD = """
apiVersion: v1
kind: Pod
metadata: {{name: a, labels: {{app: web}}}}
spec: {spec}
status: {status}
---
"""


@pytest.mark.parametrize(
    ("status", "ready"),
    [
        ("{podIP: 10.1.0.1}", True),
        ("{podIP: 10.1.0.1, conditions: [{type: Ready, status: 'True'}]}", True),
        ("{podIP: 10.1.0.1, conditions: [{type: Ready, status: 'False'}]}", False),
        ("{podIP: 10.1.0.1, conditions: [{type: Initialized, status: 'True'}]}", False),
    ],
)
def test_pod_is_as_ready_as_its_condition(status: str, ready: bool) -> None:
    (pod,) = load(POD.format(spec="{nodeName: n}", status=status)).pods
    assert pod.addresses == (ip_address("10.1.0.1"),)
    assert (pod.node_name, pod.ready) == ("n", ready)


def test_finished_pod_has_no_address() -> None:
    (pod,) = load(POD.format(spec="{}", status="{phase: Succeeded, podIP: 10.1.0.1}")).pods
    assert pod.addresses == ()


def test_pod_without_one_bad_address_keeps_the_other() -> None:
    status = '{podIPs: [{ip: 10.01.0.1}, {ip: "fd00::1"}]}'
    manifests = load(POD.format(spec="{}", status=status))
    assert manifests.pods[0].addresses == (ip_address("fd00::1"),)
    assert manifests.problems[0].field == "status.podIPs[0].ip"


def test_node_is_read() -> None:
    manifests = load(
        """
apiVersion: v1
kind: Node
metadata:
  name: node-1.example
  labels: {topology.kubernetes.io/zone: a}
spec:
  podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]
  taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]
status:
  addresses:
  - {type: Hostname, address: node-1}
  - {type: InternalIP, address: 192.0.2.1}
  - {type: InternalIP, address: "2001:db8::1"}
  - {type: ExternalIP, address: 203.0.113.1}
"""
    )
    assert manifests.nodes == (
        Node(
            "node-1.example",
            (ip_address("192.0.2.1"), ip_address("2001:db8::1")),
            (ip_address("203.0.113.1"),),
            (ip_network("10.244.1.0/24"), ip_network("fd00:10:244:1::/64")),
            "a",
            True,
        ),
    )


# ---- EndpointSlices ----

SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web{labels}}}}}
addressType: {family}
ports: [{{name: http, port: 8080}}, {{port: null}}, {{port: 53, protocol: UDP}}]
endpoints:
{endpoints}
---
"""


def endpoints(text: str, family: str = "IPv4", labels: str = "") -> tuple[SliceEndpoint, ...]:
    manifests = load(SLICE.format(endpoints=text, family=family, labels=labels))
    assert not manifests.problems
    return manifests.slices[0].endpoints


def test_absent_conditions_mean_ready_and_serving() -> None:
    (found,) = endpoints("- {addresses: [10.1.0.1, 10.1.0.2], conditions: {ready: null}}")
    assert found == SliceEndpoint(ip_address("10.1.0.1"))


def test_endpoint_fields_are_kept() -> None:
    (found,) = endpoints(
        """
- addresses: [10.1.0.1]
  conditions: {ready: false, serving: true, terminating: true}
  nodeName: node-1
  zone: a
  hints: {forZones: [{name: a}, {name: b}], forNodes: [{name: node-1}]}
  targetRef: {kind: Pod, namespace: default, name: web-0}
"""
    )
    assert found == SliceEndpoint(
        ip_address("10.1.0.1"), False, True, True, "node-1", "a", ("a", "b"), ("node-1",),
        "default/web-0",
    )  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [r'namespace: default, name: "web\e[31m"', r'namespace: "a\nb", name: web-0', "name: web-0"],
)
def test_a_target_that_no_pod_is_called_is_left_out(names: str) -> None:
    (found,) = endpoints(f"- {{addresses: [10.1.0.1], targetRef: {{kind: Pod, {names}}}}}")
    assert found == SliceEndpoint(ip_address("10.1.0.1"))


def test_slice_ports_have_defaults_and_no_null() -> None:
    manifests = load(SLICE.format(endpoints="- {addresses: [10.1.0.1]}", family="IPv4", labels=""))
    ports = [(p.name, p.protocol, p.port) for p in manifests.slices[0].ports]
    assert ports == [("http", Protocol.TCP, 8080), ("", Protocol.UDP, 53)]


def test_slice_of_another_proxy_has_no_endpoints_for_us() -> None:
    assert (
        endpoints("- {addresses: [10.1.0.1]}", labels=", service.kubernetes.io/headless: ''") == ()
    )


@pytest.mark.parametrize(
    ("endpoint", "family", "where", "why"),
    [
        ("{addresses: [10.1.0.01]}", "IPv4", "endpoints[0].addresses[0]", "Leading zeros"),
        ("{addresses: ['::ffff:10.1.0.1']}", "IPv6", "endpoints[0].addresses[0]", "IPv4-mapped"),
        ("{addresses: ['fd00::1']}", "IPv4", "endpoints[0].addresses[0]", "addressType"),
        ("{addresses: [169.254.1.1]}", "IPv4", "endpoints[0].addresses[0]", "link-local"),
        ("{addresses: []}", "IPv4", "endpoints[0].addresses", "is empty"),
        ("{addresses: [10.1.0.1], conditions: {ready: 'no'}}", "IPv4",
         "endpoints[0].conditions.ready", "not true or false"),
        ("{addresses: [example.org]}", "FQDN", "addressType", "is none of IPv4, IPv6"),
    ],
)  # fmt: skip
def test_bad_endpoint_is_named(endpoint: str, family: str, where: str, why: str) -> None:
    text = SLICE.format(
        endpoints=f"- {endpoint}\n- {{addresses: [10.1.0.9]}}", family=family, labels=""
    )
    problem = load(text).problems[0]
    assert (problem.object, problem.field) == ("EndpointSlice default/web-1", where)
    assert why in problem.reason


def test_slice_without_service_is_named() -> None:
    text = SLICE.format(endpoints="- {addresses: [10.1.0.1]}", family="IPv4", labels="").replace(
        "service-name", "other"
    )
    assert problems(text)[0].split(":")[1] == " metadata.labels['kubernetes.io/service-name']"


# ---- batches ----

CLUSTER_IP = "clusterIP: 10.96.0.1, selector: {app: web}"


def test_service_without_slices_gets_its_pods() -> None:
    batch = to_batch(
        load(
            service_text(f"{CLUSTER_IP}, ports: [{{port: 80, targetPort: http}}]")
            + POD.format(
                spec="{nodeName: n, containers: [{ports: [{name: http, containerPort: 8080}]}]}",
                status="{podIP: 10.1.0.1}",
            )
        )
    )
    slices = [o for o in batch.upserts if isinstance(o, EndpointSlice)]
    assert [(e.address, e.node_name, e.target) for s in slices for e in s.endpoints] == [
        (ip_address("10.1.0.1"), "n", "default/a")
    ]
    assert [p.port for s in slices for p in s.ports] == [8080]
    assert batch.synced
    assert not batch.problems


def test_service_with_slices_uses_those_alone() -> None:
    batch = to_batch(
        load(
            service_text(f"{CLUSTER_IP}, {PORTS}")
            + SLICE.format(endpoints="- {addresses: [10.9.0.9]}", family="IPv4", labels="")
            + POD.format(spec="{}", status="{podIP: 10.1.0.1}")
        )
    )
    names = [o.key.name for o in batch.upserts if o.key.kind_name == "EndpointSlice"]
    assert names == ["web-1"]


def test_named_port_that_no_pod_has_is_named() -> None:
    batch = to_batch(
        load(
            service_text(f"{CLUSTER_IP}, ports: [{{port: 80, targetPort: nope}}]")
            + POD.format(spec="{}", status="{podIP: 10.1.0.1}")
        )
    )
    assert [(p.field, p.object) for p in batch.problems] == [
        ("spec.ports[0].targetPort", "Service default/web")
    ]


def test_service_without_cluster_ip_is_named_and_left_out() -> None:
    batch = to_batch(load(service_text(PORTS)))
    assert not batch.upserts
    assert batch.problems[0].field == "spec.clusterIP"


def test_batch_holds_the_difference() -> None:
    one = service_text(f"{CLUSTER_IP}, {PORTS}")
    two = service_text(f"clusterIP: 10.96.0.2, {PORTS}", name="two")
    changed = service_text(f"{CLUSTER_IP}, ports: [{{port: 81}}]")
    before = load(one + two)
    batch = to_batch(load(changed), before)
    assert [o.key.name for o in batch.upserts if o.key.kind_name == "Service"] == ["web"]
    assert batch.deletes == (ObjectKey("Service", "default", "two"),)
    assert not to_batch(before, before).upserts


def test_pods_are_told_too() -> None:
    batch = to_batch(load(POD.format(spec="{}", status="{}")))
    assert batch.upserts == (Pod("default", "a", labels={"app": "web"}),)
