"""The native surface: what none of the seeds has, for what any of them made."""

from turnkeeper.dialects.exchange import Dialect
from turnkeeper.dialects.native import access, deployments, me, sessions, turns, usage

DIALECT = Dialect(
    routes=(
        *turns.ROUTES,
        *sessions.ROUTES,
        *deployments.ROUTES,
        *access.ROUTES,
        *me.ROUTES,
        *usage.ROUTES,
    ),
    encode_error=sessions.encode_error,
    prefixes=("/api",),
)
