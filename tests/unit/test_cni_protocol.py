# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from dataplane.cni import protocol
from dataplane.cni.protocol import CniError, Wiring
from dataplane.model.errors import BadEnvironment, BadInput, Contradiction

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "0123abc",
    "CNI_NETNS": "/run/netns/a",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;IP=10.0.0.9,fd00::9",
}
CONFIG = {"cniVersion": "1.0.0", "name": "podlane", "type": "podlane-cni"}
WIRING = Wiring(
    host_interface="pl0",
    host_mac="0a:70:6c:00:00:02",
    interface="eth0",
    mac="0e:00:00:00:00:01",
    netns="/run/netns/a",
    mtu=1450,
    addresses=(ip_address("10.0.0.9"), ip_address("fd00::9")),
    gateways=(ip_address("169.254.1.1"), ip_address("fe80::1")),
)


def code(env: dict[str, str], config: object = CONFIG) -> int:
    with pytest.raises(CniError) as caught:
        protocol.parse(env, config)
    return caught.value.code


def test_add_says_pod_namespace_and_addresses() -> None:
    request = protocol.parse(ENV, CONFIG)
    assert (request.command, request.version) == ("ADD", "1.0.0")
    assert (request.container_id, request.interface) == ("0123abc", "eth0")
    assert request.netns == "/run/netns/a"
    assert request.pod == "shop/cart-0"
    assert request.addresses == (ip_address("10.0.0.9"), ip_address("fd00::9"))


def test_a_pod_without_kubernetes_is_named_by_its_container() -> None:
    assert protocol.parse({**ENV, "CNI_ARGS": ""}, CONFIG).pod == "0123abc"


def test_delete_needs_no_namespace_and_looks_at_no_arguments() -> None:
    request = protocol.parse(
        {**ENV, "CNI_COMMAND": "DEL", "CNI_NETNS": "", "CNI_ARGS": "IP=nonsense"}, CONFIG
    )
    assert request.netns is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"CNI_COMMAND": "JUMP"}, protocol.BAD_ENVIRONMENT),
        ({"CNI_CONTAINERID": ""}, protocol.BAD_ENVIRONMENT),
        ({"CNI_CONTAINERID": "../x"}, protocol.BAD_ENVIRONMENT),
        ({"CNI_IFNAME": ""}, protocol.BAD_ENVIRONMENT),
        ({"CNI_IFNAME": "a name"}, protocol.BAD_ENVIRONMENT),
        ({"CNI_IFNAME": "a/b"}, protocol.BAD_ENVIRONMENT),
        ({"CNI_IFNAME": ".."}, protocol.BAD_ENVIRONMENT),
        ({"CNI_IFNAME": "sixteen-bytes-xx"}, protocol.BAD_ENVIRONMENT),
        ({"CNI_NETNS": ""}, protocol.BAD_ENVIRONMENT),
        ({"CNI_ARGS": "IP=10.0.0"}, protocol.BAD_ENVIRONMENT),
        ({"CNI_ARGS": "IP=10.0.0.1,10.0.0.2"}, protocol.BAD_ENVIRONMENT),
    ],
)
def test_a_bad_environment_has_its_code(change: dict[str, str], expected: int) -> None:
    assert code({**ENV, **change}) == expected


def test_a_version_that_we_do_not_speak_has_its_code() -> None:
    assert code(ENV, {**CONFIG, "cniVersion": "9.0.0"}) == protocol.UNSUPPORTED_VERSION
    check = {**ENV, "CNI_COMMAND": "CHECK"}
    assert code(check, {**CONFIG, "cniVersion": "0.3.1"}) == protocol.UNSUPPORTED_VERSION
    status = {**ENV, "CNI_COMMAND": "STATUS"}
    assert code(status, CONFIG) == protocol.UNSUPPORTED_VERSION


def test_a_configuration_that_is_no_object_has_its_code() -> None:
    assert code(ENV, ["no", "object"]) == protocol.DECODE_FAILED


def test_version_works_without_a_configuration() -> None:
    request = protocol.parse({"CNI_COMMAND": "VERSION"}, None)
    assert protocol.versions(request)["supportedVersions"] == list(protocol.VERSIONS)


@pytest.mark.parametrize("version", protocol.VERSIONS)
def test_the_result_has_the_form_of_the_configurations_version(version: str) -> None:
    request = protocol.parse(ENV, {**CONFIG, "cniVersion": version})
    result = protocol.result(request, WIRING)
    assert result["cniVersion"] == version
    old = version.startswith("0.")
    expected: list[dict[str, Any]] = [
        {"interface": 1, "address": "10.0.0.9/32", "gateway": "169.254.1.1"},
        {"interface": 1, "address": "fd00::9/128", "gateway": "fe80::1"},
    ]
    if old:
        expected[0]["version"], expected[1]["version"] = "4", "6"
    assert result["ips"] == expected
    assert result["routes"] == [
        {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
        {"dst": "::/0", "gw": "fe80::1"},
    ]
    pod_side = result["interfaces"][1]
    assert (pod_side["name"], pod_side["sandbox"]) == ("eth0", "/run/netns/a")
    assert ("mtu" in pod_side) == (version == "1.1.0")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (CniError(protocol.TRY_LATER, "pod", "later"), protocol.TRY_LATER),
        (BadInput("config", "bad"), protocol.BAD_CONFIG),
        (BadEnvironment("netns", "gone"), protocol.IO_FAILED),
        (Contradiction("x", "y"), protocol.INTERNAL),
        (KeyError("x"), protocol.INTERNAL),
    ],
)
def test_one_table_from_errors_to_codes(failure: Exception, expected: int) -> None:
    answer = protocol.error(failure, "0.4.0")
    assert (answer["code"], answer["cniVersion"]) == (expected, "0.4.0")
    assert answer["msg"]
