"""Which addresses are of the public internet, and what a host resolves to. No torch."""

import ipaddress
import socket

# IANA's registries of special addresses, without what is globally reachable in them but serves nothing.
_NOT_PUBLIC_4 = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    )
)
_PUBLIC_6 = ipaddress.ip_network("2000::/3")
# Special purposes and Teredo; documentation; 6to4, which leads to any address of version 4.
_NOT_PUBLIC_6 = tuple(
    ipaddress.ip_network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
_EMBEDDED_4 = tuple(ipaddress.ip_network(network) for network in ("::ffff:0:0/96", "64:ff9b::/96"))
"""The last 32 bits are an address of version 4: mapped, and translated by NAT64."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, seen through what may be embedded in it.

    >>> [is_public(text) for text in ("93.184.216.34", "10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::5db8:d822")]
    [True, False, False, True]
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if any(found in network for network in _EMBEDDED_4):
            found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        else:
            return found in _PUBLIC_6 and not any(found in network for network in _NOT_PUBLIC_6)
    return not any(found in network for network in _NOT_PUBLIC_4)


def system_addresses(host: str, port: int) -> list[str]:
    """What the system's resolver knows of a host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
