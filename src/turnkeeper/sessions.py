"""Sessions as things one can hold: made, listed, read, changed, forked, cleared, deleted.

What is said in them is the engine's. Knows the store by its contract, and the engine to stop what
runs in a session that goes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import msgspec

from turnkeeper import prompt
from turnkeeper.blueprint import find_deployment
from turnkeeper.contracts import ItemPage, Made, MessagePage, NewSession, SessionPage, Store
from turnkeeper.domain import (
    Basis,
    ChatConfig,
    IdempotencyKey,
    Item,
    Kept,
    ListedItem,
    Message,
    MessageRef,
    Session,
    SessionChange,
    SessionChoice,
    SessionFilter,
    SessionSummary,
    TurnRef,
    Version,
    check_text,
)
from turnkeeper.engine import Engine
from turnkeeper.errors import InvalidRequest, MessageNotFound, SessionNotFound
from turnkeeper.gate import Gate
from turnkeeper.plans import Plans
from turnkeeper.validation import explain

TITLE_LIMIT = 200  # characters
METADATA_LIMIT = 16_384  # bytes of JSON
METADATA_DEPTH = 100  # objects and lists within each other
VARIABLES_LIMIT = 1_000
PAGE_LIMIT = 100  # sessions
MESSAGE_PAGE_LIMIT = 1_000


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message of a conversation that was had elsewhere."""

    role: Literal["system", "user", "assistant"]
    content: str


class SessionRequest(msgspec.Struct, frozen=True):
    """What a session is to be like; everything may be left out."""

    deployment: str | None = None
    title: str | None = None
    model: str | None = None
    variables: Mapping[str, str] = {}
    metadata: Mapping[str, Any] = {}
    messages: tuple[Said, ...] = ()


class Sessions:
    """Every operation on sessions that is not a turn. Owners never meet."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        plans: Plans,
        default_deployment: str,
        gate: Gate,
        *,
        now: Callable[[], int],
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._engine = engine
        self._plans = plans
        self._default = default_deployment
        self._gate = gate
        self._now = now
        self._new_id = new_id

    async def create(
        self,
        owner: str,
        request: SessionRequest,
        *,
        items: Sequence[Item] = (),
        key: IdempotencyKey | None = None,
    ) -> Made[Session]:
        """A new session, of the newest revision of its deployment.

        `items` come behind the messages of the request.

        Raises:
            DeploymentNotFound, UnknownModel, KeyReused
            SessionNotFound: what was made under the key before is gone.
            InvalidRequest: a title, variable, message or metadata that cannot be kept.
            ContextTooLong: the prompt alone, with these variables, is larger than the model's
                window.
        """
        draft = self.draft(owner, request)
        said = (*draft.items, *self._engine.check_items(items))
        new = msgspec.structs.replace(draft, items=said, key=key)
        session = await self._store.create_session(new)
        return Made(session, repeated=session.id != new.id)

    def draft(
        self, owner: str, request: SessionRequest, *, section: str | None = None
    ) -> NewSession:
        """A session to create, which nothing speaks against as yet; raises as `create`.

        `section` is the section whose chat it is to be.
        """
        messages = tuple(
            Message(said.role, _check_said(said, number))
            for number, said in enumerate(request.messages)
        )
        return NewSession(
            owner=owner,
            id=self._new_id(),
            deployment=find_deployment(request.deployment or self._default),
            title=_check_title(request.title),
            model=self._engine.check_model(request.model),
            variables=_check_variables(request.variables),
            metadata=_check_metadata(request.metadata),
            items=messages,
            check=self._check_prompt,
            now=self._now(),
            section=section,
            quotas=self._gate.quotas(owner),
        )

    def _check_prompt(self, basis: Basis) -> None:
        """A prompt that fills the window would have every turn refused."""
        plan = self._plans.make(basis)
        first = plan.candidates[0]
        room = first.room + plan.frame_weight
        weight, rate = plan.frame_weight + 1, first.bytes_per_token
        prompt.check_room(first.offer.model, room, weight, rate, "prompt")

    async def get(self, owner: str, session: SessionChoice, *, scope: str | None = None) -> Session:
        """A session; with `scope` only one of that deployment.

        Raises:
            SessionNotFound: no such session, or someone else's, or another deployment's.
        """
        found = await self._store.get_session(owner, session)
        if scope is not None and found.deployment != scope:
            raise SessionNotFound("Session not found")
        return found

    async def list_all(self, owner: str) -> Sequence[SessionSummary]:
        """The owner's sessions that hold a message, oldest first."""
        return await self._store.list_sessions(owner)

    async def page(
        self,
        owner: str,
        wanted: SessionFilter,
        after: str | None,
        limit: int,
        *,
        oldest_first: bool = False,
    ) -> SessionPage:
        """The owner's next sessions in either order; see `Store.page_sessions`."""
        limit = min(limit, PAGE_LIMIT)
        return await self._store.page_sessions(
            owner, wanted, after, limit, oldest_first=oldest_first
        )

    async def page_messages(
        self,
        owner: str,
        session: SessionChoice,
        *,
        after: MessageRef | None = None,
        before: MessageRef | None = None,
        limit: int = MESSAGE_PAGE_LIMIT,
    ) -> MessagePage:
        """Messages of a session in order; see `Store.page_messages`."""
        return await self._store.page_messages(
            owner,
            session,
            after=_place(after),
            before=_place(before),
            limit=min(limit, MESSAGE_PAGE_LIMIT),
        )

    async def update(
        self,
        owner: str,
        session: SessionChoice,
        change: SessionChange,
        *,
        if_stamp: Collection[str] | None = None,
    ) -> Session:
        """Change a session's title, model, metadata, whether it is pinned or archived.

        Raises:
            SessionNotFound, UnknownModel
            PreconditionFailed: its stamp is none of `if_stamp`.
            InvalidRequest: a title or metadata that cannot be kept.
        """
        if isinstance(change.title, str):
            title = _check_title(change.title)
            change = msgspec.structs.replace(change, title=title)
        if isinstance(change.model, str):
            model = self._engine.check_model(change.model)
            change = msgspec.structs.replace(change, model=model)
        if change.metadata is not msgspec.UNSET:
            _check_metadata(change.metadata)
        return await self._store.update_session(
            owner, session, change, self._now(), if_stamp=if_stamp
        )

    async def fork(
        self,
        owner: str,
        session: SessionChoice,
        at: MessageRef | TurnRef | None,
        *,
        key: IdempotencyKey | None = None,
    ) -> Made[Session]:
        """A session of its own that holds what this one does, up to a message or a turn.

        Raises:
            SessionNotFound, MessageNotFound, KeyReused
            TurnNotFound: the turn is not in the session.
            SessionBusy: it is not over.
        """
        id_ = self._new_id()
        fork = await self._store.fork_session(
            owner, session, at, id_, self._now(), key=key, quotas=self._gate.quotas(owner)
        )
        return Made(fork, repeated=fork.id != id_)

    async def clear(self, owner: str, session: SessionChoice) -> None:
        """Forget everything said in a session; turns in it stop. Nothing if there is none."""
        self._engine.stop_gone(await self._store.clear_session(owner, session, self._now()))

    async def delete(
        self,
        owner: str,
        session: SessionChoice,
        *,
        scope: str | None = None,
        if_stamp: Collection[str] | None = None,
    ) -> None:
        """Remove a session and everything that belongs to it; turns in it stop.

        Raises:
            SessionNotFound: as for `get`.
            PreconditionFailed: its stamp is none of `if_stamp`.
        """
        if scope is not None:
            await self.get(owner, session, scope=scope)
        gone = await self._store.delete_session(owner, session, if_stamp=if_stamp)
        self._engine.stop_gone(gone)

    async def add_items(
        self,
        owner: str,
        session: SessionChoice,
        items: Sequence[Item],
        *,
        key: IdempotencyKey | None = None,
    ) -> Sequence[ListedItem]:
        """Put items at the end of a session, which nobody answers; one at least.

        Raises:
            SessionNotFound, MessageTooLong, InvalidRequest, KeyReused
        """
        said = self._engine.check_items(items)
        return await self._store.append_items(owner, session, said, self._now(), key=key)

    async def page_items(
        self,
        owner: str,
        session: SessionChoice,
        *,
        after: MessageRef | None,
        limit: int,
        newest_first: bool,
    ) -> ItemPage:
        """Items of a session in either order; see `Store.page_items`."""
        return await self._store.page_items(
            owner, session, after=_place(after), limit=limit, newest_first=newest_first
        )

    async def get_item(self, owner: str, place: MessageRef) -> ListedItem:
        """An item of a session. Raises SessionNotFound, MessageNotFound."""
        return await self._store.get_item(owner, place)

    async def delete_item(self, owner: str, place: MessageRef) -> Session:
        """Remove an item for good; its session as it is then.

        Raises:
            SessionNotFound, MessageNotFound
            SessionBusy: it belongs to a turn that is not over.
        """
        return await self._store.delete_item(owner, place, self._now())

    async def list_words(self, owner: str, ref: TurnRef) -> Sequence[ListedItem]:
        """What was said in a turn, listed or not; see `Store.list_words`."""
        return await self._store.list_words(owner, ref)

    async def list_versions(
        self, owner: str, session: SessionChoice, message: MessageRef
    ) -> Sequence[Version]:
        """What was said at the place of a message, oldest first; see `Store.list_versions`."""
        return await self._store.list_versions(owner, session, message)

    async def select_version(
        self, owner: str, session: SessionChoice, message: MessageRef, number: int
    ) -> Session:
        """List version `number` of a message, counted from 1, with what had followed it.

        Raises:
            SessionNotFound, SessionBusy
            MessageNotFound: there is no such message or version, or its place is not listed.
        """
        versions = await self.list_versions(owner, session, message)
        if not 0 < number <= len(versions):
            raise MessageNotFound("The message has no such version")
        turn = versions[number - 1].turn
        return await self._store.select_version(owner, session, message, turn, self._now())


def _place(message: MessageRef | None) -> tuple[int, int] | None:
    return None if message is None else (message.turn, message.position)


# --- What can be kept --------------------------------------------------------------------------


def _check_said(said: Said, number: int) -> str:
    if not said.content.strip():
        raise InvalidRequest(f"messages[{number}].content must not be blank")
    return check_text(said.content, f"messages[{number}].content")


def _check_title(title: str | None) -> str | None:
    """The title without white space around it; None if nothing is left."""
    if title is None:
        return None
    if len(title) > TITLE_LIMIT:
        raise InvalidRequest(f"title must have at most {TITLE_LIMIT} characters")
    return check_text(title, "title").strip() or None


def _check_variables(variables: Mapping[str, str]) -> Mapping[str, str]:
    if len(variables) > VARIABLES_LIMIT:
        raise InvalidRequest(f"There can be at most {VARIABLES_LIMIT} variables")
    for name, value in variables.items():
        if not name.strip():
            raise InvalidRequest("The name of a variable must not be blank")
        check_text(name, "The name of a variable")
        check_text(value, f"The value of {name[:100]}")
    return variables


def check_kept(
    config: Mapping[str, Any] | None, context_documents: Sequence[str] | None
) -> tuple[Kept | None, ChatConfig]:
    """What is to be kept with a session, None if nothing is; and what of it acts on its turns.

    Raises:
        InvalidRequest: it is too large, or what acts cannot be.
    """
    if config is None and context_documents is None:
        return None, ChatConfig()
    if context_documents is not None:
        _check_object(context_documents, "context_documents")
    return Kept(config, context_documents), _check_config(config or {})


def _check_config(config: Mapping[str, Any]) -> ChatConfig:
    _check_object(config, "config")
    try:
        acting = msgspec.convert(config, ChatConfig)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"config.{explain(str(error))}") from error
    check_text(acting.instructions or "", "config.instructions")
    check_text(acting.detailed_instructions or "", "config.detailedInstructions")
    return acting


def _check_metadata(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    _check_object(metadata, "metadata")
    return metadata


def _check_object(value: Mapping[str, Any] | Sequence[str], name: str) -> None:
    _check_depth(value, name)  # first: what is too deep cannot even be encoded
    if len(msgspec.json.encode(value)) > METADATA_LIMIT:
        raise InvalidRequest(f"{name} must have at most {METADATA_LIMIT} bytes of JSON")


def _check_depth(value: Any, name: str) -> None:
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > METADATA_DEPTH:
            raise InvalidRequest(f"{name} must have at most {METADATA_DEPTH} levels")
        level = [inner for outer in level for inner in _inside(outer) if _is_nest(inner)]


def _inside(nest: Any) -> Collection[Any]:
    return nest.values() if isinstance(nest, dict) else nest


def _is_nest(value: Any) -> bool:
    return isinstance(value, dict | list)
