"""The pages people see, each allowed nothing but its own style and script and this server."""

import base64
import hashlib
import re
from importlib import resources

from turnkeeper.dialects.exchange import Answer


def read_page(name: str) -> Answer:
    """The page of this file name, as the answer that serves it."""
    html = resources.files("turnkeeper.web.static").joinpath(name).read_bytes()
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none';"
        f" form-action 'none'; frame-ancestors 'none'; style-src {_hash(html, b'style')};"
        f" script-src {_hash(html, b'script')}"
    )
    headers = (
        (b"content-security-policy", policy.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=()"),
        (b"cache-control", b"no-cache"),
        (b"vary", b"Accept"),
    )
    return Answer(200, html, headers, b"text/html; charset=utf-8")


def _hash(html: bytes, tag: bytes) -> str:
    """What a policy calls the one inline `<tag>` of a page."""
    match = re.search(rb"<%b>(.*?)</%b>" % (tag, tag), html, re.DOTALL)
    content = match[1] if match else b""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
