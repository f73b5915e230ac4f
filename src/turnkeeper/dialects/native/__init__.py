"""The native surface: what none of the seeds has, for what any of them made."""

from turnkeeper.dialects.exchange import Dialect, encode_error
from turnkeeper.dialects.native import turns

DIALECT = Dialect(routes=turns.ROUTES, encode_error=encode_error, prefixes=("/api",))
