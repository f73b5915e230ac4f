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
        routes: the paths that other pages may ask for, `/api/*` being all that begin with `/api/`;
            empty for every path. The server's own page is not concerned.
        guarded: whether what is foreign is refused; else hosts do not matter, nothing but
            `allowed` is ours, and a foreign page is only not helped.
    """

    hosts: frozenset[str]
    any_address: bool
    allowed: Sequence[str]
    guarded: bool = True
    routes: Sequence[str] = ()

    def host_is_ours(self, host: str) -> bool:
        if not self.guarded:
            return True
        name = _host_name(host)
        return name in self.hosts or _is_loopback(name) or (self.any_address and _is_address(name))

    def origin_is_ours(self, origin: str, host: str, path: str) -> bool:
        """Whether a page from `origin` may ask for `path`; `host` is what the request called us."""
        scheme, _, page_host = origin.partition("://")
        if self.guarded and page_host == host and scheme in ("http", "https"):
            return True
        return self._is_open(path) and self._is_allowed(origin, scheme, page_host)

    def _is_open(self, path: str) -> bool:
        """Whether pages of other origins may ask for the path at all."""
        return not self.routes or any(
            path.startswith(route[:-1]) if route.endswith("/*") else path == route
            for route in self.routes
        )

    def _is_allowed(self, origin: str, scheme: str, page_host: str) -> bool:
        if "*" in self.allowed or origin in self.allowed:
            return True
        is_local = scheme in ("http", "https") and _is_loopback(_host_name(page_host))
        return self.guarded and not self.allowed and is_local


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
