"""Where a tenant's deliveries may connect to, whatever the names resolve to."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from resources.security import egress
from resources.security.egress import EgressDenied, EgressPolicy, Opening

PUBLIC = ("93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8", "64:ff9b::808:808",
          "2002:808:808::1")
REFUSED = {
    "10.0.0.1": "private", "172.16.5.4": "private", "192.168.1.1": "private", "127.0.0.1": "loopback",
    "127.8.8.8": "loopback", "0.0.0.0": "this network", "169.254.1.1": "link-local",
    "169.254.169.254": "metadata", "168.63.129.16": "metadata", "100.100.100.200": "metadata", "100.64.0.1": "CGNAT",
    "192.0.0.1": "protocol", "192.0.2.1": "private", "198.18.0.1": "benchmarking", "198.51.100.7": "private",
    "203.0.113.9": "private",
    "224.0.0.1": "multicast", "240.0.0.1": "reserved", "255.255.255.255": "reserved",
    "::": "unspecified", "::1": "loopback", "fe80::1": "link-local", "fec0::1": "site-local", "fc00::1": "private",
    "fd00:ec2::254": "metadata", "ff02::1": "multicast", "2001:db8::1": "documentation", "100::1": "discard",
    # IPv4 inside IPv6: mapped, compatible, NAT64, local NAT64, 6to4, Teredo (the client's address inverted), ISATAP
    "::ffff:127.0.0.1": "loopback inside", "::ffff:169.254.169.254": "metadata service of a cloud inside",
    "::7f00:1": "loopback inside", "64:ff9b::a9fe:a9fe": "metadata service of a cloud inside",
    "64:ff9b:1::a9fe:a9fe": "local NAT64", "2002:7f00:1::": "loopback inside", "2002:a00:1::5": "private inside",
    "2001:0:4136:e378:8000:63bf:80ff:fffe": "loopback inside", "2a00::5efe:a00:1": "private inside",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_connected_to(address: str) -> None:
    assert egress.checked_addresses("hooks.example", 443, EgressPolicy(), plaintext=False,
                                    resolve=lambda host, port: [address]) == [address]


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    with pytest.raises(EgressDenied, match=REFUSED[address]):
        egress.checked_addresses("hooks.example", 443, EgressPolicy(), plaintext=False,
                                 resolve=lambda host, port: [address])


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "localhost"])
def test_loopback_is_refused_however_it_is_written(host: str) -> None:
    with pytest.raises(EgressDenied):
        egress.checked_addresses(host, 443, EgressPolicy(), plaintext=False)


def test_one_bad_address_among_good_ones_refuses_the_name() -> None:
    with pytest.raises(EgressDenied):
        egress.checked_addresses("hooks.example", 443, EgressPolicy(), plaintext=False,
                                 resolve=lambda host, port: ["8.8.8.8", "10.0.0.1"])


def test_the_refusal_does_not_tell_where_a_name_leads() -> None:
    with pytest.raises(EgressDenied) as denied:
        egress.checked_addresses("hooks.example", 443, EgressPolicy(), plaintext=False,
                                 resolve=lambda host, port: ["10.1.2.3"])
    assert "10.1.2.3" not in denied.value.message


def test_the_address_that_was_checked_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter((["8.8.8.8"], ["169.254.169.254"]))  # DNS rebinding: the second answer is another one
    asked: list[str] = []
    connected: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    class Connection:
        def setsockopt(self, *arguments: object) -> None:
            """Nothing to set."""

    def create_connection(address: tuple[str, int], timeout: float) -> Connection:
        connected.append(address[0])
        return Connection()

    monkeypatch.setattr(socket, "create_connection", create_connection)
    egress.connect("rebind.example", 443, EgressPolicy(), plaintext=False, timeout=1, resolve=resolve)
    assert (asked, connected) == (["rebind.example"], ["8.8.8.8"])


@pytest.mark.parametrize(("opening", "host", "address", "port", "allowed"), [
    (Opening("127.0.0.1", 8080), "127.0.0.1", "127.0.0.1", 8080, True),
    (Opening("127.0.0.1", 8080), "127.0.0.1", "127.0.0.1", 8081, False),
    (Opening("127.0.0.1"), "anything.example", "127.0.0.1", 1, True),
    (Opening("10.20.0.0/16"), "jira.internal", "10.20.3.4", 443, True),
    (Opening("10.20.0.0/16"), "jira.internal", "10.21.3.4", 443, False),
    (Opening("jira.internal"), "JIRA.internal.", "10.20.3.4", 443, True),
    (Opening("jira.internal"), "jira.internal", "fd12::5", 443, True),
    (Opening("jira.internal"), "other.internal", "10.20.3.4", 443, False),
    (Opening("jira.internal"), "jira.internal", "127.0.0.1", 443, False),
    (Opening("jira.internal"), "jira.internal", "169.254.169.254", 443, False),
    (Opening("jira.internal"), "jira.internal", "100.100.100.200", 443, False),
    (Opening("jira.internal"), "jira.internal", "::ffff:127.0.0.1", 443, False),
    (Opening("fd00::/8"), "jira.internal", "fd12::5", 443, True),
])
def test_an_opening_opens_itself_and_nothing_else(
    opening: Opening, host: str, address: str, port: int, allowed: bool
) -> None:
    problem = EgressPolicy((opening,)).problem(host, ipaddress.ip_address(address), port, plaintext=False)
    assert (problem is None) == allowed


def test_plaintext_is_spoken_only_where_an_opening_says_so() -> None:
    address = ipaddress.ip_address("8.8.8.8")
    assert EgressPolicy().problem("hooks.example", address, 80, plaintext=True) == "TLS is required"
    assert EgressPolicy((Opening("hooks.example"),)).problem("hooks.example", address, 80, plaintext=True)
    policy = EgressPolicy((Opening("hooks.example", 80, plaintext=True),))
    assert policy.problem("hooks.example", address, 80, plaintext=True) is None
    assert policy.problem("hooks.example", address, 81, plaintext=True) == "TLS is required"
