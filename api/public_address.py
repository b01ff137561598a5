"""Where a webhook may go: to public addresses, and to those that the operator opened (LORAQ_WEBHOOK_ALLOW).

Looked at twice: the URL when a spec is submitted, and the address that a name stands for when it is connected to.
The connection is made to the very address that was looked at: a name that means another one a moment later changes
nothing.
"""

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from jobs.errors import LoraqError

Address = IPv4Address | IPv6Address

_GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291, all that is handed out; loopback, ULA, multicast lie outside
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address
_TUNNELS = (IPv6Network("2001::/32"), IPv6Network("2002::/16"))  # Teredo and 6to4: they hide an IPv4 address
_NOT_PUBLIC = (  # though older Pythons, or all of them, call them global
    IPv4Network("168.63.129.16/32"),  # Azure's wire server
    IPv4Network("192.0.0.0/24"),  # RFC 6890; Oracle's metadata service
    IPv4Network("192.88.99.0/24"),  # RFC 7526: relays of 6to4, no more in use
)

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


class ForbiddenAddress(LoraqError):
    """A webhook may not go there."""

    code = "address_not_allowed"


@dataclass(frozen=True)
class Target:
    """Host and port that a URL names."""

    scheme: str
    host: str  # lower case, without brackets or a dot at the end
    port: int


class Allowed:
    """What the operator opened besides the public addresses.

    Args:
        entries: names of hosts, and addresses or networks: hooks.internal, 10.1.2.3, fd00::/8.

    Raises:
        ValueError: an entry is none of these.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        self._hosts: set[str] = set()
        for entry in entries:
            try:
                self._networks.append(ip_network(entry, strict=False))
            except ValueError:
                self._hosts.add(_named_host(entry))

    def __call__(self, host: str, address: Address) -> bool:
        """Whether `host`, which stands for `address` now, may be connected to."""
        return is_public(address) or host in self._hosts or any(address in network for network in self._networks)


def is_public(address: Address) -> bool:
    """Whether this is an address of the open internet, also after what it embeds is unwrapped."""
    if isinstance(address, IPv4Address):
        special = address.is_multicast or address.is_reserved or any(address in network for network in _NOT_PUBLIC)
        return address.is_global and not special
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(address.packed[-4:]))
    return address in _GLOBAL_UNICAST and address.is_global and not any(address in tunnel for tunnel in _TUNNELS)


def check_url(url: str, allowed: Allowed) -> Target:
    """What the URL names, if it is one that a webhook may have. A name is not resolved.

    Raises:
        ForbiddenAddress: it is malformed, holds a password, or names an address that is not public and not opened.
    """
    if re.search(r"[\x00-\x20\x7f-\uffff\\]", url) or any(ord(char) > 0xFFFF for char in url):
        raise ForbiddenAddress("holds characters that no URL has: write it in ASCII, percent-encoded.")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise ForbiddenAddress(f"is not a URL: {error}.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ForbiddenAddress("is not http://host/… or https://host/….")
    if parts.username is not None or parts.password is not None:
        raise ForbiddenAddress("holds a user's name or password: leave it out; every message is signed.")
    if "#" in url:
        raise ForbiddenAddress("has a fragment (#…), which is never sent: leave it out.")
    try:
        target = Target(parts.scheme, _named_host(host), port or (443 if parts.scheme == "https" else 80))
    except ValueError as error:
        raise ForbiddenAddress(f"{error}.") from None
    if (address := _literal(target.host)) is not None:
        choose(target.host, [address], allowed)
    return target


def choose(host: str, addresses: list[Address], allowed: Allowed) -> list[Address]:
    """Those of a host's addresses that may be connected to.

    Raises:
        ForbiddenAddress: none of them. A name that stands for nothing gets the same words as one that stands for an
            address inside: which names there are inside is nobody's business outside.
    """
    chosen = [address for address in addresses if allowed(host, address)]
    if not chosen:
        raise ForbiddenAddress(
            f"names {host}, which has no public address. An operator can open others: LORAQ_WEBHOOK_ALLOW."
        )
    return chosen


def _named_host(host: str) -> str:
    """The host in its one spelling.

    Raises:
        ValueError: it is neither a name nor an address as people write it.
    """
    plain = host.lower().removesuffix(".")
    if _literal(plain) is not None:
        return plain
    if len(plain) > 253 or not all(_LABEL.fullmatch(label) for label in plain.split(".")):
        raise ValueError(f"names {host!r}, which is no host")
    try:
        packed = socket.inet_aton(plain)  # 0x7f.1, 2130706433, 127.1: to C's resolver they are addresses
    except OSError:
        return plain
    raise ValueError(f"names {host!r}: write {IPv4Address(packed)}")


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
