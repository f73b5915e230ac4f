"""What an operator decides about turns."""

import msgspec


class Policy(msgspec.Struct, frozen=True):
    """What an operator decides about turns.

    Attributes:
        deployment: whose those sessions are that are made without naming one.
        message_limit: characters of one message.
        reply_limit: characters of one reply; a longer one is broken off and fails.
        queue_limit: turns that may wait in one session.
        queue_timeout: seconds that they may wait there.
        checkpoint_seconds: between two checkpoints of a reply; 0 for none.
        retry_delay: seconds before a provider is called a second time, doubling; its own
            Retry-After goes before it, up to `patience` seconds. Longer, and the turn fails at
            once.
    """

    deployment: str = "default"
    message_limit: int = 100_000
    reply_limit: int = 1_000_000
    queue_limit: int = 32
    queue_timeout: float = 300.0
    checkpoint_seconds: float = 1.0
    retry_delay: float = 0.5
    patience: float = 10.0
