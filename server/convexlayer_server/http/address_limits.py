"""The number of connections from each address."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import final

__all__ = ["AddressCounter"]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_V6_PREFIX = 64
"""Bits of the network that counts as one IPv6 address: providers assign at least so large a network to a customer."""


@final
class AddressCounter:
    """Counts connections by IPv4 address and IPv6 network.

    Loopback addresses and trusted proxies are exempt: they connect on behalf of many clients.

    Args:
        trusted_proxies: comma-separated addresses and networks; ``*`` trusts all.
        limit: connections from one address.
    """

    def __init__(self, trusted_proxies: str, limit: int) -> None:
        self._trust_all = trusted_proxies.strip() == "*"
        self._trusted = [] if self._trust_all else _networks(trusted_proxies)
        self._limit = limit
        self._counts: Counter[_Network] = Counter()

    def add(self, address: str) -> bool:
        """Count a new connection; return whether it is within the limit."""
        network = self._network(address)
        if network is None:
            return True
        self._counts[network] += 1
        return self._counts[network] <= self._limit

    def remove(self, address: str) -> None:
        """Count a connection as closed."""
        network = self._network(address)
        if network is not None:
            self._counts[network] -= 1
            if not self._counts[network]:
                del self._counts[network]

    def _network(self, address: str) -> _Network | None:
        """Return the network under which an address counts; None if it is exempt."""
        if self._trust_all:
            return None
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:  # a Unix domain socket
            return None
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        if ip.is_loopback or any(ip in network for network in self._trusted):
            return None
        prefix = _V6_PREFIX if isinstance(ip, ipaddress.IPv6Address) else ip.max_prefixlen
        return ipaddress.ip_network((ip.packed, prefix), strict=False)


def _networks(text: str) -> list[_Network]:
    """Parse addresses and networks; skip names, which uvicorn accepts too, but which no connection comes from."""
    networks = []
    for part in text.split(","):
        try:
            networks.append(ipaddress.ip_network(part.strip(), strict=False))
        except ValueError:
            continue
    return networks
