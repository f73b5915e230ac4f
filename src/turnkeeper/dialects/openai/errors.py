"""What went wrong, as OpenAI's clients know it: `{"error": {message, type, param, code}}`.

They send a request again by themselves on 408, 409, 429 and from 500 on, unless `x-should-retry`
says otherwise. So whatever fails once a turn is stored says that, lest one outage of a provider
store the same message three times; what fails before may be sent again.
"""

from collections.abc import Mapping

import msgspec

from turnkeeper.dialects.exchange import (
    STATUSES,
    Answer,
    encode_json,
    error_answer,
)
from turnkeeper.domain import Failure
from turnkeeper.errors import InvalidRequest, SessionBusy, TurnEnded, TurnkeeperError


class WrongParameter(InvalidRequest):
    """Something is wrong with one parameter, whose path is `param`; `word` says what kind of."""

    def __init__(
        self, sentence: str, param: str | None = None, word: str = "invalid_value"
    ) -> None:
        super().__init__(sentence)
        self.param = param
        self.word = word


class NotMade(TurnkeeperError):
    """There is no reply, nor anything else that came of the request: it may be sent again."""

    def __init__(self, ended: TurnEnded) -> None:
        super().__init__(ended.sentence)
        self.code = ended.code
        self.retry_after = ended.retry_after


class ErrorBody(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class _Row(msgspec.Struct, frozen=True):
    """What differs from the ordinary for one of our codes; None for what does not."""

    status: int | None = None
    code: str | None = None
    param: str | None = None
    message: str | None = None


_LOCKED = (
    "Another process is currently operating on this conversation. Please retry in a few seconds."
)

_ROWS: Mapping[str, _Row] = {
    # 409, which it is elsewhere, would be sent again at once.
    "session_busy": _Row(400, "conversation_locked", "conversation", _LOCKED),
    "not_newest": _Row(400, "conversation_locked", "previous_response_id"),
    "unknown_model": _Row(404, "model_not_found", "model"),
    "message_too_long": _Row(400, "string_above_max_length"),
    "session_not_found": _Row(code="not_found"),
    "turn_not_found": _Row(code="not_found"),
    "message_not_found": _Row(code="not_found"),
    "deployment_not_found": _Row(code="not_found"),
    "revision_not_found": _Row(code="not_found"),
    "unauthenticated": _Row(code="invalid_api_key"),
    "provider_rate_limited": _Row(code="rate_limit_exceeded"),
    "too_many_attempts": _Row(code="rate_limit_exceeded"),
}
_ORDINARY = _Row()


def _type_of(status: int) -> str:
    if status >= 500:
        return "server_error"
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_exceeded"}
    return kinds.get(status, "invalid_request_error")


def status_of(code: str) -> int:
    return _ROWS.get(code, _ORDINARY).status or STATUSES[code]


def error_body(error: TurnkeeperError | Failure) -> ErrorBody:
    """The object that tells of it, in an answer or in a stream."""
    row = _ROWS.get(error.code, _ORDINARY)
    param, code = row.param, row.code or error.code
    if isinstance(error, WrongParameter):
        param, code = error.param, error.word
    return ErrorBody(row.message or error.sentence, _type_of(status_of(error.code)), param, code)


def encode_error(error: TurnkeeperError, *, keyed: bool = False) -> Answer:
    """The answer to a request that failed.

    One that began a turn may be sent again only if it is `keyed`: under an idempotency key.
    """
    answer = error_answer(error, {"error": error_body(error)})
    headers = answer.headers
    if isinstance(error, TurnEnded) and not keyed:
        headers = (*headers, (b"x-should-retry", b"false"))
    if isinstance(error, SessionBusy):
        headers = (*headers, (b"busy-turn-id", error.turn_id.encode()))
    return msgspec.structs.replace(answer, status=status_of(error.code), headers=headers)


def encode_failure(failure: Failure) -> bytes:
    """The event by which a stream tells that it broke off: an SDK raises it."""
    return b"data: %b\n\n" % encode_json({"error": error_body(failure)})
