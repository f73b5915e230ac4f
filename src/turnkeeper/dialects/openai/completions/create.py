"""`POST /v1/chat/completions`: a turn of a session, or an exchange of which nothing is kept."""

from collections.abc import Sequence

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
from turnkeeper.dialects.openai.items import check_items
from turnkeeper.dialects.openai.streaming import KEEP_ALIVE
from turnkeeper.domain import (
    ByAlias,
    ById,
    IdempotencyKey,
    Item,
    Options,
    SessionChoice,
    choose_session,
)
from turnkeeper.errors import InvalidRequest, SessionNotFound, TurnEnded
from turnkeeper.reply import Reply, Taken

_SESSION = "metadata.session_id"


async def create_completion(parts: Parts, call: Call) -> Outcome:
    wanted = decode_wanted(call.body)
    if b"session-id" in call.headers:
        call, wanted = _enter_session(call, wanted)
    call = call.on_behalf_of(wanted.user)
    key = call.key()
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


def _enter_session(call: Call, wanted: Wanted) -> tuple[Call, Wanted]:
    """The same, in the session that a header names: some clients can say nothing in the body.

    It is part of what is asked, and so of what an idempotency key stands for.
    """
    named = call.header(b"session-id")
    if wanted.session_id not in (None, named):
        raise WrongParameter("The header Session-Id names another session", _SESSION)
    return (
        msgspec.structs.replace(call, line=f"{call.line} {named}"),
        msgspec.structs.replace(wanted, session_id=named),
    )


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
    options = wanted.options
    if wanted.session_id is not None:
        session = _choose(wanted.session_id)
        options = _instruct(options, said.instructions())
    reply = await parts.engine.answer_unkept(
        call.caller,
        check_items(parts, said.items() if session is None else said.new(), "messages"),
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
    said = wanted.conversation
    new = said.new()
    if not new:
        raise WrongParameter(
            "There is nothing to answer: the assistant has the last word", "messages"
        )

    async def take(session: SessionChoice | None, items: Sequence[Item], options: Options) -> Taken:
        is_alone = session is None
        return await parts.engine.take_items(
            call.caller,
            session,
            check_items(parts, items, "messages"),
            model=wanted.model,
            options=options,
            data=encode_kept(wanted.metadata, wanted.echo(), is_alone=is_alone),
            bare=is_alone,
            key=key,
        )

    if wanted.session_id is None:
        options = msgspec.structs.replace(wanted.options, alone=True, overflow="error")
        return await take(None, said.items(), options)
    session, options = _choose(wanted.session_id), _instruct(wanted.options, said.instructions())
    if isinstance(session, ByAlias) and said.has_history:
        try:
            return await take(ByAlias(session.alias), new, options)
        except SessionNotFound:  # so nobody has that history yet
            return await take(session, said.said(), options)
    return await take(session, new, options)


def _instruct(options: Options, instructions: str | None) -> Options:
    if instructions is None:
        return options
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
