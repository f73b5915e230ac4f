"""People of an identity provider: which tokens are believed, and where its keys are had from."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from turnkeeper.domain import USER_SCOPES, Identity
from turnkeeper.errors import ConfigError
from turnkeeper.issuer import LEEWAY, FetchedKeys, IssuerRules, JwtIssuer, StaticKey

NOW = 1_700_000_000
SECRET = "shared-with-the-identity-provider"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
PUBLIC = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
PRIVATE = RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
ALL = ("RS256", "ES256", "EdDSA")
RULES = IssuerRules("https://login.example.org/", "chat", ALL)
GOOD = {"iss": RULES.issuer, "aud": "chat", "sub": "auth0|ann", "exp": NOW + 60}


def token(key: Any = RSA, algorithm: str = "RS256", kid: str | None = None, **claims: Any) -> str:
    """One with the good claims and these, of which None takes one away."""
    told = {name: value for name, value in (GOOD | claims).items() if value is not None}
    return jwt.encode(told, key, algorithm, headers={} if kid is None else {"kid": kid})


def an_issuer(*, rules: IssuerRules = RULES, now: float = NOW, keys: Any = None) -> JwtIssuer:
    keys = keys or StaticKey(PUBLIC, rules.algorithms)
    return JwtIssuer(rules, keys, now=lambda: round(now * 1000))


async def test_a_good_token_says_who_it_is_and_until_when() -> None:
    expected = Identity("auth0|ann", USER_SCOPES, (NOW + 60 + LEEWAY) * 1000)
    assert await an_issuer().read(token()) == expected
    assert await an_issuer().read(token(aud=["other", "chat"])) == expected


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example/"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"exp": None},
        {"exp": NOW - LEEWAY},
        {"nbf": NOW + LEEWAY + 1},
        {"sub": None},
        {"sub": 7},
        {"sub": ""},
        {"sub": "ann/bob"},
        {"sub": "a b"},
        {"sub": "x" * 129},
    ],
    ids=str,
)
async def test_any_other_is_not_believed(claims: dict[str, Any]) -> None:
    assert await an_issuer().read(token(**claims)) is None


@pytest.mark.parametrize("exp", ["soon", True, float("nan"), float("inf"), 1e400, {}])
async def test_a_time_that_is_none_is_not_believed(exp: Any) -> None:
    signed = jwt.api_jws.encode(json.dumps(GOOD | {"exp": exp}).encode(), RSA, "RS256")
    assert await an_issuer().read(signed) is None


async def test_clocks_may_differ_a_little() -> None:
    assert await an_issuer(now=NOW + 60 + LEEWAY - 0.1).read(token()) is not None
    assert await an_issuer(now=NOW + 60 + LEEWAY).read(token()) is None
    assert await an_issuer().read(token(nbf=NOW + LEEWAY)) is not None


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def forged(algorithm: str, key: bytes = b"") -> str:
    """Signed by our own hand, as the library refuses to: `none`, or HMAC with the public key."""
    signed = f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(GOOD)}"
    mac = hmac.new(key, signed.encode(), hashlib.sha256).digest() if key else b""
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


async def test_the_algorithm_is_ours_to_choose() -> None:
    for algorithm in ("none", "None", "NONE", "", "HS256", "RS256"):
        assert await an_issuer().read(forged(algorithm)) is None
        assert await an_issuer().read(forged(algorithm, PUBLIC.encode())) is None
    assert await an_issuer().read(token(algorithm="RS512")) is None
    shared = IssuerRules(RULES.issuer, "chat", ("HS256",))
    by_secret = an_issuer(rules=shared, keys=StaticKey(SECRET, ("HS256",)))
    assert await by_secret.read(token(SECRET, "HS256")) is not None
    assert await by_secret.read(token(SECRET + "x", "HS256")) is None
    assert await by_secret.read(token()) is None


async def test_someone_elses_signature_is_none() -> None:
    other = rsa.generate_private_key(65537, 2048)
    assert await an_issuer().read(token(other)) is None
    head, claims, signature = token().split(".")
    assert await an_issuer().read(f"{head}.{part(GOOD | {'sub': 'root'})}.{signature}") is None
    assert await an_issuer().read(f"{head}.{claims}.") is None


@pytest.mark.parametrize("odd", ["", "..", "a.b.c", "eyJ.eyJ.eyJ", "é.ü.ä", "\0.\0.\0", "x" * 9999])
async def test_odd_tokens_are_nobodys(odd: str) -> None:
    assert await an_issuer().read(odd) is None
    deep = base64.urlsafe_b64encode(b'{"alg":' + b"[" * 5000).decode()
    assert await an_issuer().read(f"{deep}.{odd}.") is None


@pytest.mark.parametrize(
    ("key", "algorithms"),
    [
        ("no key", ALL),
        (PRIVATE, ALL),
        (PUBLIC, ("HS256",)),
        (PUBLIC, ("ES256",)),
        ("x", ("HS256",)),
    ],
)
def test_what_is_no_key_for_these_is_refused(key: str, algorithms: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        StaticKey(key, algorithms)
    assert key not in str(refused.value) or len(key) < 8


@pytest.mark.parametrize(
    ("claim", "claims", "scopes"),
    [
        ("scope", {"scope": "chat read profile"}, {"chat", "read"}),
        ("scope", {"scope": ["admin", "chat", 7]}, {"admin", "chat"}),
        ("scope", {}, set()),
        ("scope", {"scope": {"chat": True}}, set()),
        ("realm_access.roles", {"realm_access": {"roles": ["documents"]}}, {"documents"}),
        ("realm_access.roles", {"realm_access": "roles"}, set()),
        ("https://a.example/scopes", {"https://a.example/scopes": ["read"]}, {"read"}),
    ],
)
async def test_scopes_are_read_from_their_claim(
    claim: str, claims: dict[str, Any], scopes: set[str]
) -> None:
    rules = IssuerRules(RULES.issuer, "chat", ALL, scope_claim=claim)
    found = await an_issuer(rules=rules).read(token(**claims))
    assert found is not None
    assert found.scopes == scopes


async def test_the_name_is_read_from_its_claim() -> None:
    rules = IssuerRules(RULES.issuer, "chat", ALL, user_claim="email")
    found = await an_issuer(rules=rules).read(token(email="ann+chat@example.org", sub=7))
    assert found is not None
    assert found.name == "ann+chat@example.org"


# --- Keys that are fetched ---------------------------------------------------------------------


def jwk(kid: str, key: Any, **fields: str) -> dict[str, Any]:
    kinds = {"RSA": jwt.algorithms.RSAAlgorithm, "EC": jwt.algorithms.ECAlgorithm}
    kind = "RSA" if isinstance(key, rsa.RSAPrivateKey) else "EC"
    to_jwk = kinds[kind].to_jwk
    if isinstance(key, ed25519.Ed25519PrivateKey):
        to_jwk = jwt.algorithms.OKPAlgorithm.to_jwk
    return json.loads(to_jwk(key.public_key())) | {"kid": kid} | fields


class Provider:
    """A real server that shows its keys, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: Any = {"keys": []}
        self.status = 200
        self.seconds = 0.0
        self.url = ""

    async def show(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.status == 302:
            return web.Response(status=302, headers={"Location": f"{self.url}-elsewhere"})
        text = self.answer if isinstance(self.answer, str) else json.dumps(self.answer)
        return web.Response(status=self.status, text=text)

    async def elsewhere(self, _: web.Request) -> web.Response:
        return web.json_response({"keys": [jwk("a", RSA)]})

    def keys(self) -> FetchedKeys:
        return FetchedKeys(self.url, tick=lambda: self.seconds)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    app = web.Application()
    app.router.add_get("/jwks", provider.show)
    app.router.add_get("/jwks-elsewhere", provider.elsewhere)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    provider.url = f"http://127.0.0.1:{port}/jwks"
    yield provider
    await runner.cleanup()


async def known(issuer: JwtIssuer, *tokens: str) -> list[bool]:
    return [await issuer.read(one) is not None for one in tokens]


async def test_keys_are_fetched_when_they_are_needed_and_then_known(provider: Provider) -> None:
    provider.answer = {"keys": [jwk("a", RSA), jwk("b", EC), jwk("c", ED)]}
    issuer = an_issuer(keys=provider.keys())
    tokens = (token(kid="a"), token(EC, "ES256", "b"), token(ED, "EdDSA", "c"))
    assert await known(issuer, *tokens, *tokens) == [True] * 6
    assert provider.asked == 1
    assert await known(issuer, token(kid="b"), token()) == [False, False]
    await issuer.close()


async def test_of_one_key_no_id_need_be_told(provider: Provider) -> None:
    provider.answer = {"keys": [jwk("a", RSA), jwk("e", EC, use="enc")]}
    issuer = an_issuer(keys=provider.keys())
    assert await known(issuer, token(), token(EC, "ES256", "e")) == [True, False]
    await issuer.close()


async def test_an_unknown_key_is_asked_for_but_not_again_and_again(provider: Provider) -> None:
    provider.answer = {"keys": [jwk("a", RSA)]}
    issuer = an_issuer(keys=provider.keys())
    assert await known(issuer, token(kid="a")) == [True]
    for number in range(50):  # anyone may make up ids
        assert await known(issuer, token(kid=f"made up {number}")) == [False]
    assert provider.asked == 1
    provider.answer = {"keys": [jwk("b", EC)]}
    provider.seconds = 30.0
    tokens = [token(EC, "ES256", "b")] * 20
    assert all(await asyncio.gather(*(issuer.read(one) for one in tokens)))
    assert provider.asked == 2  # all of them waited for the same
    assert await known(issuer, token(kid="a")) == [False]  # it is not theirs any more
    await issuer.close()


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (302, {}),
        (500, {"keys": []}),
        (200, "no JSON"),
        (200, []),
        (200, {"keys": 7}),
        (200, {"keys": [7]}),
        (200, "[" * 5000),
        (200, "x" * ((1 << 20) + 1)),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_while_keys_cannot_be_had_the_known_ones_are_used_for_a_day(
    provider: Provider, status: int, answer: Any
) -> None:
    provider.answer = {"keys": [jwk("a", RSA)]}
    keys = provider.keys()
    issuer = an_issuer(keys=keys)
    good = token(kid="a")
    assert await known(issuer, good) == [True]
    provider.status, provider.answer = status, answer
    provider.seconds = 3600.0
    assert await known(issuer, good) == [True]  # and meanwhile they are asked for
    assert keys._fetching is not None
    await keys._fetching
    assert provider.asked == 2
    assert await known(issuer, good) == [True]
    provider.seconds = 86_401.0
    assert await known(issuer, good) == [False]
    await issuer.close()


async def test_a_provider_that_is_not_there_lets_nobody_in() -> None:
    issuer = an_issuer(keys=FetchedKeys("http://127.0.0.1:9/jwks"))
    assert await known(issuer, token(kid="a")) == [False]
    await issuer.close()


async def test_a_secret_among_the_keys_is_no_key(provider: Provider) -> None:
    secret = base64.urlsafe_b64encode(SECRET.encode()).rstrip(b"=").decode()
    provider.answer = {"keys": [{"kty": "oct", "k": secret, "kid": "s", "alg": "HS256"}]}
    rules = IssuerRules(RULES.issuer, "chat", (*ALL, "HS256"))
    issuer = an_issuer(rules=rules, keys=provider.keys())
    assert await known(issuer, token(SECRET, "HS256", "s")) == [False]
    await issuer.close()
