"""temporary"""

from typing import Any

from turnkeeper.dialects.exchange import Answer, encode_json, error_answer
from turnkeeper.domain import Failure
from turnkeeper.errors import InvalidRequest, TurnkeeperError


class WrongParameter(InvalidRequest):
    def __init__(self, sentence: str, param: str | None = None) -> None:
        super().__init__(sentence)
        self.param = param


def error_object(error: TurnkeeperError) -> dict[str, Any]:
    return {
        "message": error.sentence,
        "type": "invalid_request_error",
        "param": getattr(error, "param", None),
        "code": error.code,
    }


def encode_error(error: TurnkeeperError) -> Answer:
    return error_answer(error, {"error": error_object(error)})


def encode_failure(failure: Failure) -> bytes:
    body = {
        "message": failure.sentence,
        "type": "server_error",
        "param": None,
        "code": failure.code,
    }
    return b'data: {"error":%b}\n\n' % encode_json(body)
