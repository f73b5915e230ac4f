"""An outside identity provider: what its tokens (JWT, RFC 7519) say, and the keys that prove it.

Which algorithms count is our decision, never the token's: `none` is never among them, and a secret
shared with the provider is never used where a public key is expected. Knows PyJWT and fetches
keys (JWKS, RFC 7517) with aiohttp; does not know users or the store.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
import jwt
import msgspec
from jwt.algorithms import get_default_algorithms

from turnkeeper.domain import ALL_SCOPES, USER_SCOPES, Identity, Scope, is_user_name
from turnkeeper.errors import ConfigError

if TYPE_CHECKING:
    from jwt.types import Options

log = logging.getLogger(__name__)

LEEWAY = 10  # seconds that the provider's clock may differ from ours

_FRESH = 600.0  # seconds after which known keys are fetched again, while they are still used
_GOOD = 86_400.0  # seconds that they are used if they cannot be fetched
_FETCH_EVERY = 30.0  # seconds between two fetches, whatever the tokens ask for
_FETCH_SECONDS = 5.0  # for one
_LONGEST = 1 << 20  # bytes of a set of keys
# To which kind of key an algorithm belongs.
_KINDS = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}

# Times are checked by our clock.
_OPTIONS: "Options" = {
    "require": ["exp", "iss", "aud"],
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_sub": False,
    "verify_jti": False,
    "enforce_minimum_key_length": True,
}


class IssuerRules(msgspec.Struct, frozen=True):
    """Whose tokens are taken, and what is read from them.

    Attributes:
        algorithms: by which they may be signed.
        user_claim: holds the user's name.
        scope_claim: holds scopes; None if all users have the same.
    """

    issuer: str
    audience: str
    algorithms: tuple[str, ...]
    user_claim: str = "sub"
    scope_claim: str | None = None


class Keys(Protocol):
    """Where the key is had from that a token is checked with."""

    async def find(self, kid: str | None, algorithm: str) -> Any | None:
        """The key of that id for an algorithm; None if there is none."""
        ...

    async def close(self) -> None: ...


class JwtIssuer:
    """`contracts.Issuer` for tokens in the form of JWT."""

    def __init__(self, rules: IssuerRules, keys: Keys, *, now: Callable[[], int]) -> None:
        """`now` is the time in ms since 1970."""
        self._rules = rules
        self._keys = keys
        self._now = now

    async def close(self) -> None:
        await self._keys.close()

    async def read(self, token: str) -> Identity | None:
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header["alg"], header.get("kid")
            if algorithm not in self._rules.algorithms:
                return None
            key = await self._keys.find(kid, algorithm)
            return None if key is None else self._identify(self._verify(token, key, algorithm))
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, RecursionError):
            return None  # nothing in it is worth telling: it might be anything

    def _verify(self, token: str, key: Any, algorithm: str) -> Mapping[str, Any]:
        """What it says, if it is signed, from that provider and meant for us."""
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=self._rules.audience,
            issuer=self._rules.issuer,
            options=_OPTIONS,
        )
        return claims

    def _identify(self, claims: Mapping[str, Any]) -> Identity | None:
        now = self._now() / 1000
        expires, begins = _seconds(claims["exp"]) + LEEWAY, claims.get("nbf")
        if now >= expires or (begins is not None and now < _seconds(begins) - LEEWAY):
            return None
        name = claims.get(self._rules.user_claim)
        if not isinstance(name, str) or not is_user_name(name):
            return None
        return Identity(name, self._scopes(claims), int(expires * 1000))

    def _scopes(self, claims: Mapping[str, Any]) -> frozenset[Scope]:
        if self._rules.scope_claim is None:
            return USER_SCOPES
        value = _claim(claims, self._rules.scope_claim)
        words = value.split() if isinstance(value, str) else value
        if not isinstance(words, list):
            return frozenset()
        return ALL_SCOPES.intersection(word for word in words if isinstance(word, str))


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("no time")
    return float(value)


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by the way to it, with dots: `realm_access.roles`."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


# --- Keys --------------------------------------------------------------------------------------


class StaticKey:
    """One key, which is known: a public key as PEM, or a secret shared with the provider."""

    def __init__(self, text: str, algorithms: tuple[str, ...]) -> None:
        """Raises ConfigError: it is no key for these algorithms."""
        self._by_algorithm: dict[str, Any] = {}
        known = get_default_algorithms()
        for algorithm in algorithms:
            try:
                key = known[algorithm].prepare_key(text)
                fits = known[algorithm].check_key_length(key) is None
            except (jwt.PyJWTError, ValueError, TypeError):
                continue
            if fits and not hasattr(key, "private_bytes"):
                self._by_algorithm[algorithm] = key
        if not self._by_algorithm:
            raise ConfigError(
                "The key for tokens (jwt_public_key or jwt_secret) is none for"
                f" {', '.join(algorithms)}: a public key in PEM, or a long secret for HS256"
            )

    async def find(self, kid: str | None, algorithm: str) -> Any | None:  # noqa: ARG002
        return self._by_algorithm.get(algorithm)

    async def close(self) -> None:
        pass


class FetchedKeys:
    """The public keys that a provider shows at an address, fetched when they are needed.

    A token with an unknown key has them fetched anew, but no more often than every 30 seconds.
    While they cannot be had, those that were known are used for a day.
    """

    def __init__(self, url: str, *, tick: Callable[[], float] = time.monotonic) -> None:
        """`tick` are seconds that never go back."""
        self._url = url
        self._tick = tick
        self._http: aiohttp.ClientSession | None = None
        self._by_id: dict[str | None, Mapping[str, Any]] = {}
        self._fetched_at = self._tried_at = -math.inf
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, kid: str | None, algorithm: str) -> Any | None:
        known = self._known(kid)
        if known is None:
            await self._fetch()
            known = self._known(kid)
        elif self._tick() - self._fetched_at > _FRESH:
            self._begin_fetch()  # nobody waits for it
        if known is None or known.get("kty") != _KINDS.get(algorithm[:2]):
            return None
        return jwt.PyJWK({**known, "alg": known.get("alg", algorithm)})

    def _known(self, kid: str | None) -> Mapping[str, Any] | None:
        if self._tick() - self._fetched_at > _GOOD:
            return None
        if kid is None and len(self._by_id) == 1:
            return next(iter(self._by_id.values()))
        return self._by_id.get(kid) if isinstance(kid, str) else None

    async def _fetch(self) -> None:
        fetching = self._begin_fetch()
        if fetching is not None:
            await asyncio.shield(fetching)

    def _begin_fetch(self) -> "asyncio.Task[None] | None":
        """The fetch that is going on, or begins; None if it is too early for another."""
        if self._fetching is None or self._fetching.done():
            if self._tick() - self._tried_at < _FETCH_EVERY:
                return None
            self._tried_at = self._tick()
            self._fetching = asyncio.get_running_loop().create_task(self._fetch_now())
        return self._fetching

    async def _fetch_now(self) -> None:
        try:
            keys = msgspec.json.decode(await self._read())["keys"]
            self._by_id = {
                key.get("kid"): key
                for key in keys
                if key.get("kty") in _KINDS.values() and key.get("use", "sig") == "sig"
            }
            self._fetched_at = self._tick()
        except (
            aiohttp.ClientError,
            OSError,
            TimeoutError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
        ) as error:
            log.warning("The keys of the identity provider cannot be had: %s", _said(error))

    async def _read(self) -> bytes:
        """What is at the address; not where that may point to."""
        if self._http is None:
            timeout = aiohttp.ClientTimeout(total=_FETCH_SECONDS)
            self._http = aiohttp.ClientSession(timeout=timeout, trust_env=False)
        async with self._http.get(self._url, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"it answers with {response.status}")
            body = bytearray()
            async for piece in response.content.iter_chunked(65_536):
                body += piece
                if len(body) > _LONGEST:
                    raise ValueError("it answers with more than a set of keys")
            return bytes(body)

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})
        if self._http is not None:
            await self._http.close()


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
