"""Which addresses a model may have fetched: web pages of the public internet, and nothing behind the user's own door.

The ranges are those of IANA's special-purpose registries (RFC 6890 and what came after it). They are written out because
``ipaddress.is_global`` means different ones in different versions of Python.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import quote, urlsplit

Resolve = Callable[[str, int], Sequence[str]]
"""The IP addresses of a host name."""

_CLOSED_V4 = tuple(
    IPv4Network(each)
    for each in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # Azure's metadata, in public space
    )
)  # fmt: skip
_OPEN_V6 = IPv6Network("2000::/3")
_CLOSED_V6 = tuple(
    # Teredo and 6to4 (in the first and third) carry addresses of the other kind inside.
    IPv6Network(each)
    for each in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)
_TRANSLATED = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))  # an IPv4 address in the last 32 bits
_CLOSED_NAMES = ("localhost", "local", "localdomain", "internal", "intranet", "lan", "home", "corp", "private", "arpa")
_PORTS = {80, 443, 8080, 8443}
SAFE = "%/?#[]@!$&'()*+,;=:~-._"
"""What an address holds beside letters and digits; anything else in it is written as the bytes of UTF-8, in per cent."""
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class AddressError(Exception):
    """An address that is not fetched: one sentence that says why."""


@dataclass(frozen=True)
class Target:
    """Where a request goes: ``addresses`` are what ``host`` resolved to, once; nothing looks it up again."""

    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]

    @property
    def authority(self) -> str:
        """The host as a request names it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address belongs to the public internet, an IPv4 address inside an IPv6 one included."""
    if isinstance(address, IPv6Address):
        if any(address in network for network in _TRANSLATED):
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        return address in _OPEN_V6 and not any(address in network for network in _CLOSED_V6)
    return not any(address in network for network in _CLOSED_V4)


def target_of(url: str, resolve: Resolve, named_by_user: bool = False) -> Target:
    """Take ``url`` apart and look its host up.

    Args:
        named_by_user: the user gave this address, so it may lie in the user's own network.

    Raises:
        AddressError: no http or https, something that readers of URLs disagree on, or an address that is not public.
    """
    if re.search(r"[\x00-\x20\x7f\\]", url) or len(url) > 4000:
        raise AddressError("the address holds spaces, backslashes or control characters, or is too long.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise AddressError(f"the address cannot be read ({error}).") from error
    if parts.scheme not in ("http", "https") or not host:
        raise AddressError("only http:// and https:// addresses are fetched.")
    if "@" in parts.netloc:
        raise AddressError("an address with a user name in it is not fetched.")
    if "[" in parts.netloc and ":" not in host:
        raise AddressError("only IPv6 addresses stand in brackets.")
    host = _plain_host(host)
    port = (443 if parts.scheme == "https" else 80) if port is None else port
    if not named_by_user and port not in _PORTS:
        raise AddressError(f"port {port} is not one of web pages.")
    if not named_by_user and host.rpartition(".")[2] in _CLOSED_NAMES:
        raise AddressError(f"{host} is a name of the local network.")
    try:
        found = tuple(resolve(host, port))
    except (OSError, UnicodeError) as error:
        raise AddressError(f"the host {host} is not known ({error}).") from error
    if not found:
        raise AddressError(f"the host {host} has no address.")
    # One address that is not public is enough: which of them a connection would take is not ours to guess.
    if not named_by_user and not all(is_public(_address(each)) for each in found):
        raise AddressError(f"{host} is not an address of the public internet.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port, quote(path, safe=SAFE, errors="replace"), found)


def system_resolve(host: str, port: int) -> list[str]:
    """The addresses that the system's resolver gives."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def _address(text: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(text)  # with a zone (fe80::1%eth0) it is link-local anyway
    except ValueError as error:
        raise AddressError(f"{text} is no IP address.") from error


def _plain_host(host: str) -> str:
    """A host in the one spelling that every reader agrees on.

    Raises:
        AddressError: IPv4 in decimal, octal, hexadecimal or with parts left out, or letters that no host name has.
    """
    if ":" in host:
        address = _address(host)
        if getattr(address, "scope_id", None):
            raise AddressError("an IPv6 address with a zone is not fetched.")
        return str(address)
    try:
        # Other digits and dots become plain ones here (NFKC), as they would in a resolver.
        plain = host.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError as error:
        raise AddressError("the host's name cannot be read.") from error
    labels = plain.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise AddressError("the host's name cannot be read.")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(plain))
        except ValueError as error:
            raise AddressError("an IPv4 address is written as four decimal numbers.") from error
    return plain
