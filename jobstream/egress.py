"""Egress: which addresses a URL given by a client may lead to. What connects to them is the workers' affair."""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self

from jobstream.errors import ConfigurationError, TaskError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All the IPv6 that is routed on the internet (RFC 4291, IANA's registry)."""

NAT64 = IPv6Network("64:ff9b::/96")
"""IPv4 for hosts that have only IPv6: the last 32 bits are the real destination (RFC 6052)."""

NOT_PUBLIC = tuple(map(ip_network, ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "3fff::/20")))
"""What `is_global` lets through and should not: two clouds' metadata (Azure's WireServer, 192.0.0.192), 6to4 relays,
documentation. The other clouds' metadata is link-local, unique-local or shared address space."""

HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.ASCII)


class AddressRefused(TaskError):
    """The address is not public, and no setting allows it"""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, status=422, code="address-refused")


@dataclass(frozen=True)
class EgressPolicy:
    """Public addresses may be reached, and what is listed here although it is private."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, allowed: str) -> Self:
        """Read `"10.0.0.0/8, fd00::/8, example.org"`: networks, addresses and exact host names, between commas.

        Raises ConfigurationError for anything else.
        """
        networks: list[Network] = []
        hosts: set[str] = set()
        for part in filter(None, map(str.strip, allowed.lower().split(","))):
            try:
                networks.append(ip_network(part))
            except ValueError as error:
                if not HOST_NAME.fullmatch(part):
                    raise ConfigurationError(f"{part!r} is no network, address or host name: {error}") from None
                hosts.add(part.rstrip("."))
        return cls(tuple(networks), frozenset(hosts))

    def allows(self, address: Address) -> bool:
        """Whether the address may be connected to."""
        target = embedded(address)
        return is_public(target) or any(each in network for network in self.networks for each in (address, target))

    async def resolve(self, host: str, port: int) -> tuple[Address, ...]:
        """The host's addresses, in the resolver's order; connect to these, and never resolve the name again.

        Raises AddressRefused if any of them may not be reached (one bad answer spoils them all), OSError if there
        are none. Every spelling of an address (`0x7f.1`, `2130706433`) is judged by what the resolver makes of it.
        """
        try:
            answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise OSError(f"{host!r} is not a host name") from error
        addresses = tuple(dict.fromkeys(ip_address(answer[4][0]) for answer in answers))
        if not addresses:
            raise OSError(f"{host} has no address")
        if host.lower().rstrip(".") not in self.hosts and not all(map(self.allows, addresses)):
            # Which address it was is no business of whoever sent the URL: it maps the network behind the worker.
            raise AddressRefused(f"{host} does not lead to a public address, and no setting allows it")
        return addresses


def embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 address is a wrapping of (mapped, 6to4, NAT64), else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def is_public(address: Address) -> bool:
    """Whether the address belongs to one host on the internet."""
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast and not any(address in network for network in NOT_PUBLIC)
