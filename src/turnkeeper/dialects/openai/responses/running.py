"""Responses being made: from what is asked to a reply that can be followed, or that is over.

Knows nothing of how it is sent: over HTTP, as a stream of events, over a socket.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from turnkeeper.blueprint import fill_in, is_deployment_name, sampling_of
from turnkeeper.contracts import StoredReply
from turnkeeper.dialects.exchange import Parts
from turnkeeper.dialects.openai.errors import WrongParameter
from turnkeeper.dialects.openai.ids import response_id
from turnkeeper.dialects.openai.items import check_items, resolve_items
from turnkeeper.dialects.openai.responses.events import OPENED, Fold, Frame, Opened, as_sse
from turnkeeper.dialects.openai.responses.request import Template, Wanted, no_previous
from turnkeeper.dialects.openai.responses.shape import (
    Kept,
    decode_kept,
    encode_echo,
    encode_kept,
    encode_output,
    encode_response,
)
from turnkeeper.domain import (
    Blueprint,
    ById,
    IdempotencyKey,
    Item,
    KeptItem,
    MessageRef,
    Sampling,
    SessionChoice,
    ToolCall,
    ToolResult,
    TurnRef,
    TurnStatus,
    divide,
)
from turnkeeper.errors import (
    DeploymentNotFound,
    InvalidRequest,
    NotNewest,
    RevisionNotFound,
    SessionNotFound,
    TurnNotFound,
)
from turnkeeper.events import ReplyEvent
from turnkeeper.reply import LogFollower, Reply


class Running(msgspec.Struct, frozen=True):
    """A response, made or still being made.

    Attributes:
        echo: what it tells of its request, encoded.
        custom: the names of its tools that take any text.
        queued: as `Kept.queued`.
        is_kept: whether it can be asked for later.
        asked: what it answers, all of that which is stored nowhere.
        repeated: an earlier request under the same idempotency key had begun it.
    """

    reply: Reply
    echo: bytes
    custom: frozenset[str] = frozenset()
    queued: bool = False
    is_kept: bool = True
    repeated: bool = False
    asked: tuple[Item, ...] = ()

    @property
    def id(self) -> str:
        return response_id(self.reply.turn.ref)

    def encode(self) -> bytes:
        """The Response as it is now."""
        return encode_response(self.reply.turn, encode_output(self.reply), self.echo)

    def follow(self) -> "Follower":
        """Follow it from its beginning; what is told is for `fold` alone."""
        return Follower(self.reply.follow_log())

    def fold(self, after: int = -1, frame: Frame = as_sse) -> Fold:
        """What makes events of that, those behind number `after`."""
        return Fold(
            self.reply.turn,
            self.reply.first_position,
            self.echo,
            custom=self.custom,
            queued=self.queued,
            after=after,
            frame=frame,
        )


class Follower:
    """A place in a reply's log, before which there is always an `OPENED`."""

    def __init__(self, follower: LogFollower) -> None:
        self._follower = follower
        self._is_open = False
        self.finished = False

    async def next(self) -> Sequence[ReplyEvent | Opened]:
        if not self._is_open:
            self._is_open = True
            return [OPENED]
        events = await self._follower.next()
        self.finished = self._follower.finished
        return events

    def nudge(self) -> None:
        self._follower.nudge()

    def close(self) -> None:
        self._follower.close()
        self.finished = True


# --- Beginning ---------------------------------------------------------------------------------


async def begin(
    parts: Parts, caller: str, wanted: Wanted, key: IdempotencyKey | None = None
) -> Running:
    """Begin the response that is wanted; once it is stored, if it is to be.

    Raises:
        WrongParameter: something it names is not there, or does not go together.
        InvalidRequest: there is a `key`, and nothing is to be stored.
        And as `Engine.take_items` and `Engine.answer_unkept`.
    """
    if key is not None and not wanted.store:
        raise InvalidRequest("An Idempotency-Key needs store: true: of this nothing is kept")
    wanted = await _use_template(parts, wanted)
    new = check_items(parts, await resolve_items(parts, caller, wanted.items), "input")
    items = (*wanted.remembered, *new)
    await _check_results(parts, caller, wanted, items)
    if wanted.store:
        return await _take(parts, caller, wanted, items, key)
    try:
        reply = await parts.engine.answer_unkept(
            caller,
            new,
            model=wanted.model,
            options=wanted.options,
            before=wanted.previous or wanted.session,
            said=wanted.remembered,
        )
    except (SessionNotFound, TurnNotFound) as error:
        raise not_there(wanted, error) from None
    session_id = wanted.session.id if isinstance(wanted.session, ById) else None
    return Running(
        reply,
        encode_echo(wanted.echo, session_id),
        _custom_of(wanted.echo),
        is_kept=False,
        asked=items,
    )


async def _take(
    parts: Parts,
    caller: str,
    wanted: Wanted,
    items: tuple[Item, ...],
    key: IdempotencyKey | None,
) -> Running:
    kept = Kept(len(items), wanted.session is not None, echo=wanted.echo)
    session, previous = wanted.session, wanted.previous
    if previous is not None:
        session = ById(previous.session_id)

    async def take(session: SessionChoice | None, after: TurnRef | None) -> Running:
        taken = await parts.engine.take_items(
            caller,
            session,
            items,
            model=wanted.model,
            options=wanted.options,
            after=after,
            data=encode_kept(kept),
            key=key,
        )
        if taken.repeated:
            running = await find(parts, caller, taken.reply.turn.ref)
            return msgspec.structs.replace(running, repeated=True)
        return await _begun(parts, caller, taken.reply, kept)

    try:
        return await take(session, previous)
    except NotNewest:
        assert previous is not None  # noqa: S101
    except (SessionNotFound, TurnNotFound) as error:
        raise not_there(wanted, error) from None
    # The conversation has gone on since: it goes on anew from there.
    fork = (await parts.sessions.fork(caller, ById(previous.session_id), previous)).thing
    try:
        running = await take(ById(fork.id), None)
    except BaseException:
        await parts.sessions.delete(caller, ById(fork.id))
        raise
    return running


async def _begun(parts: Parts, caller: str, reply: Reply, kept: Kept) -> Running:
    ref = reply.turn.ref
    if reply.turn.status is TurnStatus.QUEUED:
        kept = msgspec.structs.replace(kept, queued=True)
        await parts.engine.set_turn_data(caller, ref, encode_kept(kept))
    return _running(reply, kept)


def _running(reply: Reply, kept: Kept) -> Running:
    session_id = reply.turn.ref.session_id if kept.in_conversation else None
    return Running(reply, encode_echo(kept.echo, session_id), _custom_of(kept.echo), kept.queued)


def _custom_of(echo: Mapping[str, Any]) -> frozenset[str]:
    tools = echo.get("tools", ())
    return frozenset(tool["name"] for tool in tools if tool["type"] == "custom")


def not_there(wanted: Wanted, error: SessionNotFound | TurnNotFound) -> Exception:
    if wanted.previous is not None:
        return no_previous(response_id(wanted.previous))
    if wanted.session is not None and isinstance(error, SessionNotFound):
        return SessionNotFound("Conversation not found.")
    return error


# --- What is to be answered ----------------------------------------------------------------------


_LOOKED_THROUGH = 5  # pages of a session for the call that a result is of
_PAGE = 100


async def _check_results(parts: Parts, caller: str, wanted: Wanted, items: Sequence[Item]) -> None:
    """Raises WrongParameter if something is the result of a call that nobody has made."""
    called: set[str] = set()
    missing: set[str] = set()
    for item in items:
        if isinstance(item, ToolCall):
            called.add(item.call_id)
        elif isinstance(item, ToolResult) and item.call_id not in called:
            missing.add(item.call_id)
    if missing and (wanted.session or wanted.previous):
        try:
            missing -= await _calls_before(parts, caller, wanted, missing)
        except SessionNotFound as error:
            raise not_there(wanted, error) from None
    for call_id in missing:
        raise WrongParameter(
            f"No tool call found for function call output with call_id {call_id[:100]}.", "input"
        )


async def _calls_before(
    parts: Parts, caller: str, wanted: Wanted, looked_for: set[str]
) -> set[str]:
    """Which of these calls are among the newest items of what is to be gone on with."""
    session, after = wanted.session, None
    if wanted.previous is not None:
        ref = wanted.previous
        session, after = ById(ref.session_id), MessageRef(ref.session_id, ref.number + 1, 0)
    assert session is not None  # noqa: S101
    found: set[str] = set()
    for _ in range(_LOOKED_THROUGH):
        page = await parts.sessions.page_items(
            caller, session, after=after, limit=_PAGE, newest_first=True
        )
        calls = {listed.item.call_id for listed in page.items if isinstance(listed.item, ToolCall)}
        found |= calls & looked_for
        if found == looked_for or not page.more:
            break
        last = page.items[-1]
        after = MessageRef("", last.turn, last.position)
    return found


async def _use_template(parts: Parts, wanted: Wanted) -> Wanted:
    """What is wanted, with a deployment's prompt, model and sampling where it says nothing."""
    if wanted.template is None:
        return wanted
    blueprint = await _find_blueprint(parts, wanted.template)
    options = wanted.options
    sampling, own = options.sampling, sampling_of(blueprint)
    return msgspec.structs.replace(
        wanted,
        model=wanted.model or blueprint.model,
        options=msgspec.structs.replace(
            options,
            frame=fill_in(blueprint, wanted.template.variables),
            sampling=Sampling(
                own.temperature if sampling.temperature is None else sampling.temperature,
                own.top_p if sampling.top_p is None else sampling.top_p,
                own.max_tokens if sampling.max_tokens is None else sampling.max_tokens,
                own.stop,
            ),
        ),
    )


async def _find_blueprint(parts: Parts, template: Template) -> Blueprint:
    name, version = template.deployment, template.version
    if not is_deployment_name(name):
        raise DeploymentNotFound(f"Prompt with id '{name[:100]}' not found.")
    deployment = await parts.deployments.get(name)
    if version is None:
        return deployment.revision.blueprint
    for revision in await parts.deployments.list_revisions(name):
        if version in (revision.id, str(revision.number)):
            return revision.blueprint
    raise RevisionNotFound(f"Prompt '{name}' has no version '{version[:100]}'.")


# --- Finding -----------------------------------------------------------------------------------


async def find(parts: Parts, caller: str, ref: TurnRef) -> Running:
    """A response that was begun, of whatever dialect: any turn is one.

    Raises:
        TurnNotFound: no such turn, or someone else's.
    """
    stored = await parts.engine.read_turn(caller, ref)
    kept = kept_of(stored)
    if not stored.turn.status.terminal:
        return _running(await parts.engine.follow_turn(caller, ref), kept)
    made = [item for item in stored.items if item.position >= kept.asked]
    return _running(Reply.stored(caller, stored.turn, "", made, stored.cuts), kept)


def kept_of(stored: StoredReply) -> Kept:
    """What is kept with a turn, or would be, had it been asked for as a response."""
    kept = decode_kept(stored.data)
    return kept or Kept(_count_asked(stored.items), in_conversation=True)


def _count_asked(items: Sequence[KeptItem]) -> int:
    asked, made = divide(items)
    if made:
        return made[0].position
    return asked[-1].position + 1 if asked else 0
