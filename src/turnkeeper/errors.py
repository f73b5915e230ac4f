"""Failures a caller may be told about: a code, a sentence, no HTTP status.

Each dialect has one table from code to status. Whatever is not a `TurnkeeperError` is a bug:
logged whole, answered with little.

    TurnkeeperError
    ├── Refused             the request cannot be accepted; nothing was stored
    │   ├── InvalidRequest      a field is missing, of the wrong type, or holds what cannot be kept
    │   ├── BlankMessage        a message of nothing but white space
    │   ├── BlankContent        a section's new text of nothing but white space
    │   ├── MessageTooLong      longer than the server's limit
    │   ├── ContextTooLong      the newest message alone is larger than the model's window
    │   ├── UnknownModel
    │   ├── Unauthenticated     credentials are asked for, and these are none that are known
    │   ├── MissingScope        the credentials are known, and not good for this
    │   ├── WrongPassword       no such user, or not this password: the caller cannot tell which
    │   ├── TooManyAttempts     at a password; later ones may succeed
    │   ├── HostRefused         the request names a host, or comes from a page, that is not ours
    │   ├── BodyTooLarge
    │   ├── HeadersTooLarge     as are the next two: before there was a request to look at
    │   ├── UrlTooLong
    │   ├── RequestTimeout      the request did not come to its end in time
    │   ├── NotFound            no such path
    │   ├── MethodNotAllowed    the path is there, for other methods
    │   ├── SessionNotFound     unknown, or someone else's: the caller cannot tell which
    │   ├── TurnNotFound
    │   ├── MessageNotFound
    │   ├── DeploymentNotFound
    │   ├── RevisionNotFound
    │   ├── DocumentNotFound    unknown, or someone else's
    │   ├── SectionNotFound     unknown, or not in this document
    │   ├── AccessDenied        the document is someone else's, and the caller may know that
    │   ├── DeploymentExists
    │   ├── DeploymentReadOnly  the configuration defines it, so only that can change it
    │   ├── UserNotFound        for commands and admins: no one else is told who exists
    │   ├── UserExists
    │   ├── UserNotEmpty        there are still sessions or documents of the user's
    │   ├── KeyNotFound
    │   ├── PreconditionFailed  the session or document is not any more as the caller knows it
    │   ├── SessionBusy         a turn of the session is queued or running
    │   ├── NotRetryable        the turn is not over, went well, or was tried again already
    │   ├── NotNewest           something else was said since the turn that is answered to
    │   ├── KeyReused           the idempotency key belongs to another request
    │   ├── SecretNotKept       it belongs to this one, whose answer held a secret
    │   ├── QueueFull           too many turns already wait in this session
    │   ├── RateLimited         as much is used up, or under way, as the caller may
    │   │   ├── QuotaExceeded       of what is not there again soon: costs, sessions
    │   │   └── Overloaded          as the whole server can do
    │   └── ServerStopping
    ├── ProviderError       the model could not be reached or did not answer properly
    ├── QueueTimeout        the turn waited too long in its session's queue
    ├── TurnEnded           the turn waited for failed, was cancelled or interrupted
    ├── StoreUnavailable    the database cannot be read or written just now
    │   └── StoreDamaged        what is asked for lies where it is damaged
    └── ConfigError         a setting is wrong; the program cannot start
"""

from typing import ClassVar, Literal

ProviderFault = Literal[
    "provider_unreachable",
    "provider_timeout",
    "provider_refused",
    "provider_rate_limited",
    "provider_failed",
    "provider_malformed",
    "provider_cut_off",
    "provider_empty_reply",
    "provider_resting",
    "context_length_exceeded",
]


class TurnkeeperError(Exception):
    """A failure with a `code` (one word) and a sentence for the caller."""

    code: str
    retry_after: float | None = None  # seconds, where it is known when trying again makes sense

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class Refused(TurnkeeperError):
    """The request cannot be accepted; nothing was stored."""


class InvalidRequest(Refused):
    code = "invalid_request"


class BlankMessage(Refused):
    code = "blank_message"


class BlankContent(Refused):
    code = "blank_content"


class MessageTooLong(Refused):
    code = "message_too_long"


class ContextTooLong(Refused):
    code = "context_length_exceeded"


class UnknownModel(Refused):
    code = "unknown_model"


class SessionNotFound(Refused):
    code = "session_not_found"


class TurnNotFound(Refused):
    code = "turn_not_found"


class MessageNotFound(Refused):
    code = "message_not_found"


class DeploymentNotFound(Refused):
    code = "deployment_not_found"


class RevisionNotFound(Refused):
    code = "revision_not_found"


class DocumentNotFound(Refused):
    code = "document_not_found"


class SectionNotFound(Refused):
    code = "section_not_found"


class AccessDenied(Refused):
    code = "access_denied"


class DeploymentExists(Refused):
    code = "deployment_exists"


class DeploymentReadOnly(Refused):
    code = "deployment_read_only"


class Unauthenticated(Refused):
    code = "unauthenticated"


class MissingScope(Refused):
    code = "insufficient_scope"


class WrongPassword(Refused):
    code = "wrong_password"


class TooManyAttempts(Refused):
    code = "too_many_attempts"

    def __init__(self, sentence: str, retry_after: float) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


class UserNotFound(Refused):
    code = "user_not_found"


class UserExists(Refused):
    code = "user_exists"


class UserNotEmpty(Refused):
    code = "user_not_empty"


class KeyNotFound(Refused):
    code = "key_not_found"


class HostRefused(Refused):
    code = "forbidden"


class BodyTooLarge(Refused):
    code = "body_too_large"


class HeadersTooLarge(Refused):
    code = "headers_too_large"


class UrlTooLong(Refused):
    code = "url_too_long"


class RequestTimeout(Refused):
    code = "request_timeout"


class NotFound(Refused):
    code = "not_found"


class MethodNotAllowed(Refused):
    code = "method_not_allowed"


class PreconditionFailed(Refused):
    code = "precondition_failed"


class SessionBusy(Refused):
    """`turn_id` is the turn that is queued or running."""

    code = "session_busy"
    retry_after = 1.0

    def __init__(self, sentence: str, turn_id: str) -> None:
        super().__init__(sentence)
        self.turn_id = turn_id


class NotRetryable(Refused):
    code = "not_retryable"


class NotNewest(Refused):
    code = "not_newest"


class KeyReused(Refused):
    code = "idempotency_key_reused"


class SecretNotKept(Refused):
    """The request was done before, and its answer held a secret; `id` is that of what it made."""

    code = "secret_not_kept"

    def __init__(self, id_: str) -> None:
        super().__init__(
            "This Idempotency-Key was used before, and the secret in the answer was not kept"
        )
        self.id = id_


class QueueFull(Refused):
    code = "queue_full"
    retry_after = 1.0


class RateLimited(Refused):
    """`retry_after` is None where waiting does not help."""

    code = "rate_limit_exceeded"

    def __init__(self, sentence: str, retry_after: float | None) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


class QuotaExceeded(RateLimited):
    code = "insufficient_quota"


class Overloaded(RateLimited):
    code = "overloaded"


class QueueTimeout(TurnkeeperError):
    code = "queue_timeout"
    retry_after = 1.0


class ServerStopping(Refused):
    code = "server_stopping"
    retry_after = 1.0


class ProviderError(TurnkeeperError):
    """The model could not be reached, or what it answered was not a reply.

    Attributes:
        code: which of the `ProviderFault`s it was.
        retryable: whether the same call may succeed a moment later.
        retry_after: seconds the provider asked us to wait, if it did.
        prompt_tokens, context_window: where the prompt was longer than the model's context, its
            length and the model's window as the provider counts, if it said so.
    """

    RETRYABLE: ClassVar[frozenset[ProviderFault]] = frozenset(
        {
            "provider_unreachable",
            "provider_timeout",
            "provider_rate_limited",
            "provider_failed",
            "provider_malformed",
            "provider_cut_off",
            "provider_empty_reply",
            "provider_resting",
        }
    )

    def __init__(
        self,
        code: ProviderFault,
        sentence: str,
        retry_after: float | None = None,
        *,
        prompt_tokens: int | None = None,
        context_window: int | None = None,
    ) -> None:
        super().__init__(sentence)
        self.code = code
        self.retryable = code in self.RETRYABLE
        self.retry_after = retry_after
        self.prompt_tokens = prompt_tokens
        self.context_window = context_window


class TurnEnded(TurnkeeperError):
    """The turn a caller waited for ended without a whole reply; what came of it is stored.

    `repeated` is true where an earlier request had begun it.
    """

    repeated = False

    def __init__(
        self, turn_id: str, session_id: str, code: str, sentence: str, retry_after: float | None
    ) -> None:
        super().__init__(sentence)
        self.turn_id = turn_id
        self.session_id = session_id
        self.code = code
        self.retry_after = retry_after


class StoreUnavailable(TurnkeeperError):
    code = "store_unavailable"
    retry_after = 1.0


class StoreDamaged(StoreUnavailable):
    """What is asked for lies where the database is damaged: trying again does not help."""


class ConfigError(TurnkeeperError):
    code = "wrong_setting"
