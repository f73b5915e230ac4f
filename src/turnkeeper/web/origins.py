"""Which hosts and pages may talk to the server.

In access mode `off` everyone who reaches the server is the user `local`, so a web page open in
that user's browser must not reach it unasked: neither by a request from its own origin, nor by
pointing a name of its own at this machine. In mode `keys` credentials decide (`auth`), and what is
left here is which pages may read the answers.
"""

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache

import msgspec

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Origins(msgspec.Struct, frozen=True):
    """The rules in force.

    Attributes:
        hosts: names that requests may give as `Host`, beside those of this machine's loopback.
        any_address: whether `Host` may be any IP address: for a server that listens on all of
            them. An address, unlike a name, cannot be pointed elsewhere.
        allowed: origins that other pages may come from, or `*`; empty for any port of localhost.
        guarded: whether what is foreign is refused; else hosts do not matter, nothing but
            `allowed` is ours, and a foreign page is only not helped.
    """

    hosts: frozenset[str]
    any_address: bool
    allowed: Sequence[str]
    guarded: bool = True

    def host_is_ours(self, host: str) -> bool:
        if not self.guarded:
            return True
        name = _host_name(host)
        return name in self.hosts or _is_loopback(name) or (self.any_address and _is_address(name))

    def origin_is_ours(self, origin: str, host: str) -> bool:
        """Whether a page from `origin` may talk to us; `host` is what the request called us."""
        if "*" in self.allowed or origin in self.allowed:
            return True
        if not self.guarded:
            return False
        scheme, _, page_host = origin.partition("://")
        if scheme not in ("http", "https"):
            return False
        return page_host == host or (not self.allowed and _is_loopback(_host_name(page_host)))


_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+?)\.?)(?::[0-9]{1,5})?")


@lru_cache(1024)  # the same few, on every request
def _host_name(host: str) -> str:
    """A `Host` header without its port, in lower case; empty if it is not one."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).lower() if match else ""


@lru_cache(1024)
def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
