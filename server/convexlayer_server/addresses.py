"""How many connections each address has."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import final

__all__ = ["Addresses"]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_V6_PREFIX = 64
"""Who has one IPv6 address has a network of so many bits of them."""


@final
class Addresses:
    """Counts connections by IPv4 address and IPv6 network.

    This machine's own addresses and trusted proxies are not limited: who connects from there, connects for others.

    Args:
        trusted_proxies: addresses and networks, comma-separated; ``*`` is any.
        most: connections that one may have.
    """

    def __init__(self, trusted_proxies: str, most: int) -> None:
        self._anybody = trusted_proxies.strip() == "*"
        self._trusted = [] if self._anybody else _networks(trusted_proxies)
        self._most = most
        self._counts: Counter[_Network] = Counter()

    def add(self, address: str) -> bool:
        """Count in one more connection; whether it is within the limit."""
        network = self._network(address)
        if network is None:
            return True
        self._counts[network] += 1
        return self._counts[network] <= self._most

    def remove(self, address: str) -> None:
        """Count a connection no longer."""
        network = self._network(address)
        if network is not None:
            self._counts[network] -= 1
            if not self._counts[network]:
                del self._counts[network]

    def _network(self, address: str) -> _Network | None:
        """Whose connection it is; None of those that are not limited."""
        if self._anybody:
            return None
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:  # a socket in the file system
            return None
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        if ip.is_loopback or any(ip in network for network in self._trusted):
            return None
        prefix = _V6_PREFIX if isinstance(ip, ipaddress.IPv6Address) else ip.max_prefixlen
        return ipaddress.ip_network((ip.packed, prefix), strict=False)


def _networks(text: str) -> list[_Network]:
    """Those that are addresses or networks; uvicorn takes names, too, which no connection comes from."""
    networks = []
    for part in text.split(","):
        try:
            networks.append(ipaddress.ip_network(part.strip(), strict=False))
        except ValueError:
            continue
    return networks
