"""`POST /v1/chat/completions`: a turn of a session, or an exchange of which nothing is kept."""

import msgspec

from turnkeeper.dialects.exchange import (
    Answer,
    Call,
    EventStream,
    Headers,
    Outcome,
    Parts,
    completed,
    encode_json,
    headers_of,
)
from turnkeeper.dialects.openai.completions.chunks import encode_chunks
from turnkeeper.dialects.openai.completions.request import Wanted, decode_wanted
from turnkeeper.dialects.openai.completions.shape import encode_completion
from turnkeeper.dialects.openai.completions.stored import encode_kept
from turnkeeper.dialects.openai.errors import NotMade, WrongParameter, encode_error
from turnkeeper.dialects.openai.ids import parse_conversation_id
from turnkeeper.dialects.openai.streaming import KEEP_ALIVE
from turnkeeper.domain import (
    ByAlias,
    ById,
    IdempotencyKey,
    Options,
    SessionChoice,
    choose_session,
)
from turnkeeper.errors import InvalidRequest, SessionNotFound, TurnEnded
from turnkeeper.reply import Reply, Taken

_SESSION = "metadata.session_id"


async def create_completion(parts: Parts, call: Call) -> Outcome:
    wanted, key = decode_wanted(call.body), call.key()
    if not wanted.is_kept:
        return await _answer_unkept(parts, call, wanted, key)
    taken = await _take(parts, call, wanted, key)
    if wanted.stream:
        return _stream(taken.reply, wanted, headers_of(taken))
    try:
        await completed(call, taken)
    except TurnEnded as ended:
        return encode_error(ended, keyed=key is not None)
    return _answer(taken.reply, headers_of(taken))


def _stream(reply: Reply, wanted: Wanted, headers: Headers) -> EventStream:
    encode = encode_chunks(reply.turn, custom=wanted.custom, include_usage=wanted.include_usage)
    return EventStream(reply.follow_log, encode, headers, KEEP_ALIVE)


def _answer(reply: Reply, headers: Headers) -> Answer:
    ended = reply.ended
    assert ended is not None  # noqa: S101
    body = encode_completion(ended.turn, ended.text, ended.items)
    return Answer(200, encode_json(body), headers)


# --- Nothing is kept ---------------------------------------------------------------------------


async def _answer_unkept(
    parts: Parts, call: Call, wanted: Wanted, key: IdempotencyKey | None
) -> Outcome:
    """A reply that is made as long as someone waits for it.

    With a session, and `store: false`, its history is read.
    """
    if key is not None:
        raise InvalidRequest(
            "An Idempotency-Key needs store: true or metadata.session_id: of this nothing is kept"
        )
    said, session = wanted.conversation, None
    items, options = said.items, wanted.options
    if wanted.session_id is not None:
        session = _choose(wanted.session_id)
        items, options = said.new, _instruct(options, said.instructions)
    reply = await parts.engine.answer_unkept(
        call.caller,
        parts.engine.check_items(items),
        model=wanted.model,
        options=options,
        before=session,
        verbatim=session is None,
    )
    if wanted.stream:
        return _stream(reply, wanted, ())
    try:
        await completed(call, Taken(reply))
    except TurnEnded as ended:
        raise NotMade(ended) from None
    return _answer(reply, ())


# --- A turn ------------------------------------------------------------------------------------


async def _take(parts: Parts, call: Call, wanted: Wanted, key: IdempotencyKey | None) -> Taken:
    said, session = wanted.conversation, None
    items = said.items
    options = msgspec.structs.replace(wanted.options, alone=True, overflow="error")
    if wanted.session_id is not None:
        session = _choose(wanted.session_id)
        items = said.new
        if said.has_history and not await _is_there(parts, call, session):
            items = said.said  # nobody has it yet
        options = _instruct(wanted.options, said.instructions)
    if not said.new:
        raise WrongParameter(
            "There is nothing to answer: the assistant has the last word", "messages"
        )
    return await parts.engine.take_items(
        call.caller,
        session,
        parts.engine.check_items(items),
        model=wanted.model,
        options=options,
        data=encode_kept(wanted.metadata, wanted.echo(), is_alone=session is None),
        bare=session is None,
        key=key,
    )


def _instruct(options: Options, instructions: str | None) -> Options:
    return msgspec.structs.replace(options, instructions=instructions)


def _choose(text: str) -> SessionChoice:
    """The session that a client names: `conv_…`, an id of ours, or an alias."""
    id_ = parse_conversation_id(text)
    if id_ is not None:
        return ById(id_)
    try:
        return choose_session(text)
    except InvalidRequest as error:
        raise WrongParameter(f"metadata.{error.sentence}", _SESSION) from None


async def _is_there(parts: Parts, call: Call, session: SessionChoice) -> bool:
    """Whether a session is there that has the history which a client sends again."""
    if isinstance(session, ById):
        return True
    try:
        await parts.sessions.get(call.caller, ByAlias(session.alias))
    except SessionNotFound:
        return False
    return True
