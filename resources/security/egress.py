"""Where the platform may connect to on behalf of a tenant: the guard against server-side request forgery.

A name is resolved once, every address of the answer is checked, and a checked address is what the socket connects to:
a second, different answer of the resolver (DNS rebinding) is never asked for. Refused are all addresses that are not
public, also where an IPv6 address only wraps one (mapped, compatible, NAT64, 6to4, Teredo, ISATAP), and the metadata
services of clouds. A tenant's openings allow more:

- an address or a network opens exactly itself, whatever it is;
- a name opens the private addresses (RFC 1918, CGNAT, unique local) it resolves to, and never loopback, link-local,
  multicast or a metadata service: whoever owns a name could point it there.

Only TLS is spoken unless an opening says `plaintext`.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from resources.runtime.errors import BareCountError, ErrorCode

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]
"""Host and port to addresses, as text."""

_METADATA = frozenset(map(ipaddress.ip_address, (
    "169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23",  # AWS
    "168.63.129.16",  # Azure, a public address
    "100.100.100.200", "192.0.0.192", "fd20:ce::254",  # Alibaba, Oracle, Google
)))
_PRIVATE = tuple(map(ipaddress.ip_network, (
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REFUSED = tuple((ipaddress.ip_network(network), what) for network, what in (
    ("0.0.0.0/8", "this network"), ("100.64.0.0/10", "shared address space (CGNAT)"),
    ("192.0.0.0/24", "protocol assignments"), ("192.88.99.0/24", "6to4 relay"), ("198.18.0.0/15", "benchmarking"),
    ("240.0.0.0/4", "reserved"), ("64:ff9b:1::/48", "local NAT64"), ("100::/64", "discard"),
    ("2001:2::/48", "benchmarking"), ("2001:10::/28", "ORCHID"), ("2001:20::/28", "ORCHID"),
    ("2001:db8::/32", "documentation"), ("3fff::/20", "documentation"), ("5f00::/16", "segment routing"),
    ("fec0::/10", "site-local"),
))


class EgressDenied(BareCountError):
    """A connection that the tenant's egress policy does not allow; nothing was sent."""

    def __init__(self, message: str) -> None:
        super().__init__(
            ErrorCode.EGRESS_DENIED, message,
            hint="public addresses over TLS are allowed; more is opened in spec.egress of contracts/tenants/<id>.yaml",
        )


@dataclass(frozen=True)
class Opening:
    """One entry of a tenant's allow-list: an address, a network in CIDR notation, or a name; any port without one."""

    target: str
    port: int | None = None
    plaintext: bool = False

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
        """The target as a network; None for a name."""
        return _network(self.target)

    def fits(self, host: str, address: Address, port: int) -> bool:
        """Whether it speaks of this connection."""
        if self.port is not None and self.port != port:
            return False
        network = self.network
        if network is not None:
            return address.version == network.version and address in network
        return host.rstrip(".").lower() == self.target.rstrip(".").lower()


@dataclass(frozen=True)
class EgressPolicy:
    """What one tenant may connect to besides public addresses over TLS."""

    openings: tuple[Opening, ...] = ()

    def problem(self, host: str, address: Address, port: int, *, plaintext: bool) -> str | None:
        """Why a connection is refused, or None."""
        fitting = [opening for opening in self.openings if opening.fits(host, address, port)]
        if plaintext and not any(opening.plaintext for opening in fitting):
            return "TLS is required"
        what = classify(address)
        if what is None or any(opening.network is not None for opening in fitting):
            return None
        if fitting and _is_private(address):
            return None
        return f"the address is {what}"


def classify(address: Address) -> str | None:
    """What kind of address it is when it is not a public one, in words; None for a public one."""
    if address in _METADATA:
        return "a metadata service of a cloud"
    inner = embedded(address)
    if inner is not None and (what := classify(inner)):
        return f"{what} inside an IPv6 address"
    for network, what in _REFUSED:
        if address.version == network.version and address in network:
            return what
    for what, holds in (
        ("unspecified", address.is_unspecified), ("loopback", address.is_loopback),
        ("link-local", address.is_link_local), ("multicast", address.is_multicast), ("private", address.is_private),
        ("reserved", address.is_reserved), ("not public", not address.is_global and inner is None),
    ):
        if holds and not (inner is not None and what in ("reserved", "private")):
            return what
    return None


def embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a transition mechanism finds inside an IPv6 address, if any."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    value = int(address)
    low = ipaddress.IPv4Address(value & 0xFFFF_FFFF)
    if address in _NAT64 or (value >> 32 == 0 and value > 1):
        return low
    if value >> 32 & 0xFFFF_FFFF in (0x0000_5EFE, 0x0200_5EFE):  # ISATAP
        return low
    return None


def system_resolver(host: str, port: int) -> list[str]:
    """The addresses the system's resolver gives."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def checked_addresses(
    host: str, port: int, policy: EgressPolicy, *, plaintext: bool, resolve: Resolver = system_resolver
) -> list[str]:
    """Resolve once, and refuse unless every address is allowed.

    Raises:
        EgressDenied: names the host and why, never the address it resolved to.
        OSError: the name does not resolve.
    """
    addresses = list(dict.fromkeys(found.partition("%")[0] for found in resolve(host, port)))
    if not addresses:
        raise OSError(f"{host} has no address")
    for text in addresses:
        problem = policy.problem(host, ipaddress.ip_address(text), port, plaintext=plaintext)
        if problem:
            raise EgressDenied(f"a connection to {host}:{port} is refused: {problem}")
    return addresses


def connect(
    host: str, port: int, policy: EgressPolicy, *, plaintext: bool, timeout: float,
    resolve: Resolver = system_resolver,
) -> socket.socket:
    """A TCP connection to a checked address of the host; the first that answers within `timeout` seconds in all.

    `plaintext`: whether the conversation will go on without TLS.

    Raises:
        EgressDenied, OSError (also TimeoutError).
    """
    addresses = checked_addresses(host, port, policy, plaintext=plaintext, resolve=resolve)
    until = time.monotonic() + timeout
    error: OSError | None = None
    for address in addresses:
        try:
            connection = socket.create_connection((address, port), timeout=max(until - time.monotonic(), 0.001))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError as failure:
            error = failure
    assert error is not None
    raise error


def _is_private(address: Address) -> bool:
    return address not in _METADATA and any(
        address.version == network.version and address in network for network in _PRIVATE)


@lru_cache(maxsize=1_000)
def _network(target: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(target)
    except ValueError:
        return None
