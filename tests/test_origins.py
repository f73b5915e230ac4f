"""Which hosts and pages are ours."""

from typing import Any

import pytest

from turnkeeper.randomness import Randomness
from turnkeeper.web.origins import Origins
from turnkeeper.web.request import Request, origin_of

LOOPBACK = Origins(frozenset({"127.0.0.1"}), any_address=False, allowed=())
OPEN = Origins(frozenset({"0.0.0.0", "chat.lan"}), any_address=True, allowed=())
LISTED = Origins(frozenset(), any_address=False, allowed=("https://app.example",))
ANY = Origins(frozenset(), any_address=False, allowed=("*",))


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:5000",
        "LOCALHOST",
        "app.localhost:1",
        "127.0.0.1",
        "127.8.9.10:80",
        "[::1]",
        "[::1]:5000",
        "localhost.",
    ],
)
def test_loopback_is_ours_by_any_of_its_names(host: str) -> None:
    assert LOOPBACK.host_is_ours(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.168.0.7",
        "notlocalhost",
        "::1",
        "user@evil.example",
        "[::1",
        "localhost:5000:80",
        "0.0.0.0",
    ],
)
def test_other_names_are_not(host: str) -> None:
    assert not LOOPBACK.host_is_ours(host)


@pytest.mark.parametrize("host", ["192.168.0.7:5000", "[fe80::1]", "chat.lan", "localhost"])
def test_a_server_on_all_addresses_may_be_called_by_any(host: str) -> None:
    assert OPEN.host_is_ours(host)
    assert not OPEN.host_is_ours("evil.example")


@pytest.mark.parametrize(
    ("origins", "origin", "ours"),
    [
        (LOOPBACK, "http://localhost:3000", True),
        (LOOPBACK, "https://127.0.0.1", True),
        (LOOPBACK, "http://[::1]:8080", True),
        (LOOPBACK, "https://evil.example", False),
        (LOOPBACK, "http://localhost.evil.example", False),
        (LOOPBACK, "null", False),
        (LOOPBACK, "file://localhost", False),
        (LOOPBACK, "http://[bad", False),
        (LISTED, "https://app.example", True),
        (LISTED, "https://app.example.evil.example", False),
        (LISTED, "http://app.example", False),
        (LISTED, "http://localhost:3000", False),
        (LISTED, "http://localhost:5000", True),  # the page that this server itself serves
        (ANY, "https://anywhere.example", True),
        (ANY, "null", True),
    ],
)
def test_pages(origins: Origins, origin: str, ours: bool) -> None:
    assert origins.origin_is_ours(origin, "localhost:5000", "/api/chat") is ours


ROUTES = ("/api/*", "/invoke")
SOME_ROUTES = Origins(
    frozenset(), any_address=False, allowed=("https://app.example",), routes=ROUTES
)
LOCAL_ROUTES = Origins(frozenset(), any_address=False, allowed=(), routes=ROUTES)
ANY_TO_SOME = Origins(frozenset(), any_address=False, allowed=("*",), routes=ROUTES, guarded=False)


@pytest.mark.parametrize(
    ("path", "open_"),
    [
        ("/api/chat", True),
        ("/api/chat-sessions/s1/messages", True),
        ("/invoke", True),
        ("/invoke/more", False),
        ("/api", False),
        ("/apis/x", False),
        ("/", False),
        ("/login", False),
        ("/metrics", False),
    ],
)
def test_other_pages_may_use_the_routes_that_are_listed(path: str, open_: bool) -> None:
    assert SOME_ROUTES.origin_is_ours("https://app.example", "localhost:5000", path) is open_
    assert LOCAL_ROUTES.origin_is_ours("http://localhost:3000", "localhost:5000", path) is open_
    assert ANY_TO_SOME.origin_is_ours("https://any.example", "chat.example", path) is open_
    assert not SOME_ROUTES.origin_is_ours("https://evil.example", "localhost:5000", path)
    assert LOCAL_ROUTES.origin_is_ours("http://localhost:5000", "localhost:5000", path)


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("", "10.0.0.1"),
        ("192.0.2.7", "192.0.2.7"),
        ("198.51.100.1, 192.0.2.7", "192.0.2.7"),  # the first is what the client itself wrote
        ("192.0.2.7, 10.0.0.2", "192.0.2.7"),
        ("nonsense, 10.0.0.2", "10.0.0.2"),
        ("192.0.2.7, nonsense", "10.0.0.1"),
        ("2001:DB8::1", "2001:db8::1"),
        (",", "10.0.0.1"),
        ("192.0.2.7, ::ffff:10.0.0.2", "192.0.2.7"),
    ],
)
def test_proxies_of_ours_say_where_a_request_comes_from(forwarded: str, address: str) -> None:
    assert origin_of("10.0.0.1", forwarded, {"10.0.0.1", "10.0.0.2"}) == address


def test_nobody_else_is_believed() -> None:
    assert origin_of("192.0.2.7", "127.0.0.1", {"10.0.0.1"}) == "192.0.2.7"


@pytest.mark.parametrize("peer", ["10.0.0.1", "::ffff:10.0.0.1"])
def test_a_proxy_may_go_on_in_a_line_of_its_own(peer: str) -> None:
    """And is known where a socket is for IPv4 and IPv6 both, which calls it by the long name."""
    lines = ("198.51.100.1, 192.0.2.7", "10.0.0.2")
    assert address_of(peer, *lines) == "192.0.2.7"


def address_of(peer: str, *forwarded: str) -> str:
    async def nothing(*_: Any) -> Any: ...

    scope = {
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [(b"x-forwarded-for", line.encode()) for line in forwarded],
        "client": (peer, 1),
    }
    proxies = {"10.0.0.1", "10.0.0.2"}
    return Request(scope, nothing, nothing, Randomness(), proxies).address
