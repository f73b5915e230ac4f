"""The store exam, on sessions as things one can hold, deployments and versions."""

import asyncio

import msgspec
import pytest

from tests.contracts.test_store import NOW, a_turn, completed, new_id, publish, say
from turnkeeper.contracts import BegunTurn, NewSession, NewVersion, Store
from turnkeeper.domain import (
    Basis,
    Blueprint,
    ByAlias,
    ById,
    Ending,
    Example,
    Item,
    ListedItem,
    Message,
    MessageRef,
    ModelChoice,
    SessionChange,
    SessionChoice,
    SessionFilter,
    TurnStatus,
    item_weight,
)
from turnkeeper.errors import (
    ContextTooLong,
    DeploymentExists,
    DeploymentNotFound,
    DeploymentReadOnly,
    InvalidRequest,
    MessageNotFound,
    PreconditionFailed,
    RevisionNotFound,
    SessionBusy,
    SessionNotFound,
)

S = ByAlias("s")
PLENTY = 1_000_000


def a_session(
    *items: Item, deployment: str = "default", owner: str = "ann", **fields: object
) -> NewSession:
    new = NewSession(
        owner=owner,
        id=new_id(),
        deployment=deployment,
        title=None,
        model=None,
        variables={},
        metadata={},
        items=items,
        check=lambda _: None,
        now=NOW,
    )
    return msgspec.structs.replace(new, **fields)


def anew(
    session: SessionChoice = S,
    message: MessageRef | None = None,
    words: str | None = None,
    owner: str = "ann",
) -> NewVersion:
    return NewVersion(
        owner=owner,
        session=session,
        message=message,
        words=Message("user", words) if words else None,
        model=None,
        choose=lambda _, __: ModelChoice("default", PLENTY),
        revisions={},
        now=NOW,
    )


async def answer(store: Store, begun: BegunTurn, reply: str) -> int:
    """End a turn with a reply; its number."""
    await store.end_turn(begun.turn.ref, completed(reply), NOW)
    return begun.turn.ref.number


async def listed(store: Store, session: SessionChoice = S) -> list[ListedItem]:
    return list((await store.page_messages("ann", session, limit=1000)).messages)


def words(messages: list[ListedItem]) -> str:
    return " ".join(m.item.text for m in messages if isinstance(m.item, Message))


async def prompted(store: Store, session: SessionChoice = S) -> str:
    """What a prompt would show, seen by a turn that fails and so leaves nothing behind."""
    begun = await store.begin_turn(a_turn("?", session=session))
    await store.end_turn(begun.turn.ref, Ending(TurnStatus.FAILED, ""), NOW)
    shown = [k.item.text for k in begun.history.items if isinstance(k.item, Message)]
    assert begun.history.total_weight == sum(k.weight for k in begun.history.items)
    assert begun.history.message_count == len(shown)
    return " ".join(shown[:-1])


async def place(store: Store, text: str, session: SessionChoice = S) -> MessageRef:
    """Where a message with these words is listed."""
    id_ = (await store.get_session("ann", session)).id
    found = next(m for m in await listed(store, session) if words([m]) == text)
    return MessageRef(id_, found.turn, found.position)


# --- Deployments -------------------------------------------------------------------------------


async def test_a_session_keeps_the_revision_it_was_made_with(store: Store) -> None:
    first = await publish(store, "tutor", Blueprint("one"), new=True)
    old = await store.create_session(a_session(deployment="tutor"))
    second = await publish(store, "tutor", Blueprint("two"), new=False)
    new = await store.create_session(a_session(deployment="tutor"))
    assert (old.revision, new.revision) == (first.id, second.id)
    assert (first.number, second.number) == (1, 2)
    begun = await store.begin_turn(a_turn("q", session=ById(old.id)))
    assert begun.basis.revision == first
    assert (await store.get_session("ann", ById(old.id))).deployment == "tutor"


async def test_publishing_what_is_published_changes_nothing(store: Store) -> None:
    blueprint = Blueprint("x", (Example("user", "a"),), stop=("end",), temperature=0.5)
    first = await publish(store, "tutor", blueprint)
    assert await publish(store, "tutor", blueprint) == first
    assert await store.list_revisions("tutor") == [first]


async def test_rolling_back_is_publishing_an_older_one_again(store: Store) -> None:
    one, two = [await publish(store, "tutor", Blueprint(text)) for text in ("one", "two")]
    assert (await store.roll_back("tutor", one.id, NOW)).revision == one
    assert (await store.get_deployment("tutor")).revision == one
    assert await store.list_revisions("tutor") == [two, one]
    three = await publish(store, "tutor", Blueprint("three"))
    assert three.number == 3
    other = await publish(store, "other")
    for wrong in (other.id, "r" + "0" * 26):
        with pytest.raises(RevisionNotFound):
            await store.roll_back("tutor", wrong, NOW)


async def test_what_the_configuration_defines_only_it_can_change(store: Store) -> None:
    first = await publish(store, "tutor", Blueprint("one"))
    await publish(store, "tutor", Blueprint("two"))
    revision = msgspec.structs.replace(first, id="r" + "1" * 26, blueprint=Blueprint("three"))
    taken = await store.publish_revision("tutor", revision, "file", new=None)
    assert (taken.source, taken.revision.number) == ("file", 3)
    with pytest.raises(DeploymentReadOnly):
        await publish(store, "tutor", Blueprint("four"))
    with pytest.raises(DeploymentReadOnly):
        await store.roll_back("tutor", first.id, NOW)
    with pytest.raises(DeploymentReadOnly):
        await store.delete_deployment("tutor", "api")
    await store.delete_deployment("tutor", "file")
    with pytest.raises(DeploymentNotFound):
        await store.get_deployment("tutor")


async def test_a_deployment_that_is_not_there_is_told(store: Store) -> None:
    with pytest.raises(DeploymentNotFound):
        await publish(store, "none", new=False)
    for asked in (
        store.get_deployment("none"),
        store.list_revisions("none"),
        store.roll_back("none", "r", NOW),
        store.delete_deployment("none", "api"),
        store.create_session(a_session(deployment="none")),
        store.begin_turn(a_turn("q", deployment="none")),
        store.begin_turn(a_turn("q", session=S, deployment="none")),
    ):
        with pytest.raises(DeploymentNotFound):
            await asked
    assert (await store.page_sessions("ann", SessionFilter(), None, 9)).sessions == []


async def test_sessions_outlive_their_deployment(store: Store) -> None:
    await publish(store, "tutor", Blueprint("one"))
    kept = await store.create_session(a_session(deployment="tutor"))
    await store.delete_deployment("tutor", "api")
    begun = await store.begin_turn(a_turn("q", session=ById(kept.id)))
    assert begun.basis.revision.blueprint == Blueprint("one")
    again = await publish(store, "tutor", Blueprint("one"), new=True)
    assert again.number == 2


async def test_of_many_who_create_one_deployment_one_does(store: Store) -> None:
    outcomes = await asyncio.gather(
        *[publish(store, "new", Blueprint(str(n)), new=True) for n in range(8)],
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, DeploymentExists) for outcome in outcomes) == 7
    assert len(await store.list_revisions("new")) == 1
    assert [d.name for d in await store.list_deployments()] == ["default", "new"]


async def test_a_session_of_another_deployment_is_out_of_scope(store: Store) -> None:
    await publish(store, "tutor")
    made = ById((await store.create_session(a_session(deployment="tutor"))).id)
    await store.begin_turn(a_turn("q", session=made, scope="tutor"))
    with pytest.raises(SessionNotFound):
        await store.begin_turn(a_turn("q", session=made, scope="default"))
    assert (await store.get_session("ann", made)).message_count == 1


@pytest.mark.parametrize("concurrency", ["reject", "interrupt", "queue"])
async def test_a_second_message_is_treated_as_the_deployment_says(
    store: Store, concurrency: str
) -> None:
    await publish(store, "d", msgspec.convert({"concurrency": concurrency}, Blueprint))
    session = ById((await store.create_session(a_session(deployment="d"))).id)
    first = await store.begin_turn(a_turn("a", session=session))
    if concurrency == "reject":
        with pytest.raises(SessionBusy) as refused:
            await store.begin_turn(a_turn("b", session=session))
        assert refused.value.turn_id == first.turn.ref.id
        assert (await store.get_session("ann", session)).message_count == 1
        return
    second = await store.begin_turn(a_turn("b", session=session))
    third = await store.begin_turn(a_turn("c", session=session))
    assert third.turn.status is TurnStatus.QUEUED
    expected = [1, 2] if concurrency == "interrupt" else []
    assert list(third.ahead) == expected
    assert list(second.ahead) == expected[:1]


# --- Made, changed, listed ---------------------------------------------------------------------


async def test_a_session_has_what_it_was_made_with(store: Store) -> None:
    variables = {"{a}": 'b"\n', "ключ": "🙂"}
    metadata = {"a": [1, None, {"b": "c\u0000d"}]}
    said = (Message("user", "hello"), Message("assistant", "hi"), Message("user", "so?"))
    new = a_session(*said, title="T", model="m", variables=variables, metadata=metadata)
    made = await store.create_session(new)
    assert made == await store.get_session("ann", ById(new.id))
    assert (made.title, made.model, made.variables, made.metadata) == (
        "T",
        "m",
        variables,
        metadata,
    )
    assert (made.message_count, made.open_turns, made.running) == (3, 0, None)
    begun = await store.begin_turn(a_turn("more", session=ById(made.id)))
    assert begun.basis.variables == variables
    assert begun.turn.ref.number == 3
    assert [kept.item for kept in begun.history.items] == [*said, Message("user", "more")]


async def test_what_the_check_raises_leaves_no_session(store: Store) -> None:
    def refuse(basis: Basis) -> None:
        raise ContextTooLong(basis.variables["k"])

    with pytest.raises(ContextTooLong, match="value"):
        await store.create_session(a_session(check=refuse, variables={"k": "value"}))
    assert (await store.page_sessions("ann", SessionFilter(), None, 9)).sessions == []


async def test_changes_change_what_they_say_and_nothing_else(store: Store) -> None:
    made = await store.create_session(a_session(title="old", model="m", metadata={"a": 1}))
    session = ById(made.id)
    renamed = await store.update_session("ann", session, SessionChange(title="new"), NOW + 1)
    assert renamed == msgspec.structs.replace(
        made, title="new", version=made.version + 1, updated_at=NOW + 1
    )
    change = SessionChange(title=None, model=None, metadata={}, pinned=True, archived=True)
    changed = await store.update_session("ann", session, change, NOW)
    assert (changed.title, changed.model, changed.metadata) == (None, None, {})
    assert changed.pinned
    assert changed.archived
    for owner, other in (("bob", session), ("ann", ByAlias("none"))):
        with pytest.raises(SessionNotFound):
            await store.update_session(owner, other, SessionChange(title="x"), NOW)


async def test_a_change_to_another_state_than_the_caller_knows_is_refused(store: Store) -> None:
    made = await store.create_session(a_session(title="old", metadata={"a": 1}))
    session = ById(made.id)
    known = {made.stamp, "other"}
    changed = await store.update_session(
        "ann", session, SessionChange(title="new"), NOW, if_stamp=known
    )
    assert changed.stamp not in known
    change = SessionChange(title="newer", metadata={})
    for stamps in (known, set[str]()):
        with pytest.raises(PreconditionFailed):
            await store.update_session("ann", session, change, NOW, if_stamp=stamps)
        with pytest.raises(PreconditionFailed):
            await store.delete_session("ann", session, if_stamp=stamps)
    assert await store.get_session("ann", session) == changed
    assert await store.delete_session("ann", session, if_stamp={changed.stamp}) == []


async def test_open_turns_are_counted(store: Store) -> None:
    async def count() -> int:
        return (await store.get_session("ann", S)).open_turns

    await say(store, "Hello", "Hi", S)
    assert await count() == 0
    running = await store.begin_turn(a_turn("one", session=S))
    await store.begin_turn(a_turn("two", session=S))
    await store.begin_turn(a_turn("three", session=S))
    assert await count() == 3
    await store.end_turn(running.turn.ref, completed("x"), NOW)
    assert await count() == 2


async def test_a_session_without_a_title_has_one_made_of_its_first_message(store: Store) -> None:
    async def title() -> str | None:
        return (await store.get_session("ann", S)).title

    await say(store, " Hello\n there ", "hi", S)
    await say(store, "second", "", S)
    assert await title() == "Hello there"
    await store.update_session("ann", S, SessionChange(title="mine"), NOW)
    assert await title() == "mine"
    await store.update_session("ann", S, SessionChange(title=None), NOW)
    at = await place(store, " Hello\n there ")
    await answer(store, await store.begin_version(anew(message=at, words="Edited")), "x")
    assert await title() == "Edited"
    page = await store.page_sessions("ann", SessionFilter(title="EDIT"), None, 9)
    assert [session.title for session in page.sessions] == ["Edited"]
    await store.clear_session("ann", S, NOW)
    assert await title() is None


async def test_the_version_counts_every_change(store: Store) -> None:
    seen = [0]

    async def changed() -> bool:
        seen.append((await store.get_session("ann", S)).version)
        return seen[-1] != seen[-2]

    begun = await store.begin_turn(a_turn("q", session=S))
    await changed()
    assert not await changed()
    waiting = await store.begin_turn(a_turn("w", session=S))
    assert await changed()
    await store.end_turn(waiting.turn.ref, Ending(TurnStatus.CANCELLED, ""), NOW)
    assert await changed()
    await store.checkpoint(begun.turn.ref, 0, "half")
    assert not await changed()
    await store.end_turn(begun.turn.ref, completed("a"), NOW)
    assert await changed()
    await store.clear_session("ann", S, NOW)
    assert await changed()


async def test_pages_of_sessions_lead_to_the_end(store: Store) -> None:
    made = [(await store.create_session(a_session())).id for _ in range(7)]
    await store.create_session(a_session(owner="bob"))
    await store.update_session("ann", ById(made[3]), SessionChange(archived=True), NOW)
    await store.update_session("ann", ById(made[5]), SessionChange(pinned=True), NOW)

    async def all_of(wanted: SessionFilter, limit: int, *, oldest_first: bool = False) -> list[str]:
        found, after = list[str](), None
        while True:
            page = await store.page_sessions("ann", wanted, after, limit, oldest_first=oldest_first)
            assert len(page.sessions) <= limit
            found += [session.id for session in page.sessions]
            if page.next is None:
                return found
            after = page.next

    newest_first = made[::-1]
    for limit in (1, 2, 3, 6, 7, 8):
        assert await all_of(SessionFilter(), limit) == newest_first
        assert await all_of(SessionFilter(), limit, oldest_first=True) == made
        unarchived = [id_ for id_ in newest_first if id_ != made[3]]
        assert await all_of(SessionFilter(archived=False), limit) == unarchived
        assert await all_of(SessionFilter(archived=True), limit) == [made[3]]
        assert await all_of(SessionFilter(pinned=True), limit) == [made[5]]
    await store.delete_session("ann", ById(made[2]))
    page = await store.page_sessions("ann", SessionFilter(), made[2], 9)
    assert [session.id for session in page.sessions] == [made[1], made[0]]


async def test_sessions_are_found_by_title_in_any_case(store: Store) -> None:
    await publish(store, "tutor")
    wanted = await store.create_session(a_session(title="Straße nach Київ", deployment="tutor"))
    await store.create_session(a_session(title="other"))
    await store.create_session(a_session())
    for title in ("STRASSE", "київ", "e n"):
        page = await store.page_sessions("ann", SessionFilter(title=title), None, 9)
        assert [session.id for session in page.sessions] == [wanted.id]
    page = await store.page_sessions("ann", SessionFilter(deployment="tutor"), None, 9)
    assert [session.id for session in page.sessions] == [wanted.id]


async def test_a_page_looks_at_a_limited_number_of_sessions(store: Store) -> None:
    """However few are wanted: a search never holds up the server."""
    rare = await store.create_session(a_session(title="rare"))
    for _ in range(1300):
        await store.create_session(a_session())
    page = await store.page_sessions("ann", SessionFilter(title="rare"), None, 9)
    assert page.sessions == []
    assert page.next is not None
    page = await store.page_sessions("ann", SessionFilter(title="rare"), page.next, 9)
    assert ([s.id for s in page.sessions], page.next) == ([rare.id], None)


# --- Messages by page --------------------------------------------------------------------------


async def test_messages_are_paged_both_ways(store: Store) -> None:
    for n in range(4):
        await say(store, f"q{n}", f"a{n}", S)
    forth = await store.page_messages("ann", S, after=(-1, -1), limit=3)
    assert (words(list(forth.messages)), forth.more) == ("q0 a0 q1", True)
    last = forth.messages[-1]
    rest = await store.page_messages("ann", S, after=(last.turn, last.position), limit=5)
    assert (words(list(rest.messages)), rest.more) == ("a1 q2 a2 q3 a3", False)
    back = await store.page_messages("ann", S, limit=3)
    assert (words(list(back.messages)), back.more) == ("a2 q3 a3", True)
    first = back.messages[0]
    older = await store.page_messages("ann", S, before=(first.turn, first.position), limit=5)
    assert (words(list(older.messages)), older.more) == ("q0 a0 q1 a1 q2", False)
    assert older.session.message_count == 8
    with pytest.raises(SessionNotFound):
        await store.page_messages("bob", S, limit=3)


@pytest.mark.parametrize("backwards", [False, True])
async def test_a_page_of_long_messages_is_short(store: Store, backwards: bool) -> None:
    for n in range(5):
        await say(store, f"{n}" * 400_000, "", S)
    await say(store, "x" * 3_000_000, "end", S)
    found, cursor, sizes = list[ListedItem](), None, []
    while True:
        where = {"before": cursor} if backwards else {"after": cursor or (-1, -1)}
        page = await store.page_messages("ann", S, limit=100, **where)
        found = [*page.messages, *found] if backwards else [*found, *page.messages]
        sizes.append(sum(item_weight(m.item) for m in page.messages))
        if not page.more:
            break
        edge = page.messages[0 if backwards else -1]
        cursor = (edge.turn, edge.position)
    assert [words([m])[0] for m in found] == ["0", "1", "2", "3", "4", "x", "e"]
    assert all(size < 1_100_000 for size in sizes if size < 3_000_000)


async def test_only_words_of_users_and_whole_replies_are_messages(store: Store) -> None:
    begun = await store.begin_turn(a_turn("fails", session=S))
    await store.end_turn(begun.turn.ref, Ending(TurnStatus.FAILED, "half"), NOW)
    begun = await store.begin_turn(a_turn("stops", session=S))
    await store.end_turn(begun.turn.ref, Ending(TurnStatus.CANCELLED, "part"), NOW)
    messages = await listed(store)
    assert words(messages) == "fails stops part"
    assert [m.status for m in messages] == ["failed", "cancelled", "cancelled"]
    assert (await store.get_session("ann", S)).message_count == 3
    assert await prompted(store) == "stops part"


# --- Forks -------------------------------------------------------------------------------------


async def test_a_fork_holds_the_same_up_to_its_point_and_shares_nothing(store: Store) -> None:
    await store.create_session(a_session())
    for text in "abc":
        await say(store, text, text.upper(), S)
    at = await place(store, "B")
    fork = await store.fork_session("ann", S, at, new_id(), NOW)
    there = ById(fork.id)
    assert words(await listed(store, there)) == "a A b B"
    assert (fork.message_count, fork.title, fork.alias) == (4, "a", None)
    await say(store, "d", "D", there)
    await say(store, "e", "E", S)
    assert await prompted(store, there) == "a A b B d D"
    assert await prompted(store) == "a A b B c C e E"
    await store.delete_session("ann", S)
    assert words(await listed(store, there)).startswith("a A b B d D")


async def test_a_fork_without_a_point_leaves_out_what_is_not_over(store: Store) -> None:
    made = await store.create_session(a_session(variables={"k": "v"}, metadata={"m": 1}))
    session = ById(made.id)
    await say(store, "a", "A", session)
    await store.begin_turn(a_turn("b", session=session))
    await store.begin_turn(a_turn("c", session=session))
    fork = await store.fork_session("ann", session, None, new_id(), NOW)
    assert words(await listed(store, ById(fork.id))) == "a A"
    assert (fork.variables, fork.metadata, fork.revision, fork.open_turns) == (
        {"k": "v"},
        {"m": 1},
        made.revision,
        0,
    )
    assert (await store.begin_turn(a_turn("x", session=ById(fork.id)))).turn.ref.number == 2


async def test_a_fork_leaves_versions_and_failures_out_of_prompts(store: Store) -> None:
    await say(store, "a", "old", S)
    await answer(store, await store.begin_version(anew()), "new")
    begun = await store.begin_turn(a_turn("fails", session=S))
    await store.end_turn(begun.turn.ref, Ending(TurnStatus.FAILED, "half"), NOW)
    await say(store, "b", "B", S)
    fork = await store.fork_session("ann", S, None, new_id(), NOW)
    assert words(await listed(store, ById(fork.id))) == "a new fails b B"
    assert fork.message_count == 5
    assert await prompted(store, ById(fork.id)) == "a new b B"


async def test_an_empty_session_can_be_forked(store: Store) -> None:
    made = await store.create_session(a_session())
    fork = await store.fork_session("ann", ById(made.id), None, new_id(), NOW)
    assert fork.message_count == 0
    assert await prompted(store, ById(fork.id)) == ""


async def test_a_fork_is_made_only_at_a_message_that_is_listed(store: Store) -> None:
    await say(store, "a", "old", S)
    hidden = await place(store, "old")
    await answer(store, await store.begin_version(anew()), "new")
    other = (await say(store, "x", "y", ByAlias("other"))).session_id
    wrong = [
        hidden,
        MessageRef(other, 1, 0),
        MessageRef(hidden.session_id, 9, 0),
    ]
    for at in wrong:
        with pytest.raises(MessageNotFound):
            await store.fork_session("ann", S, at, new_id(), NOW)
    with pytest.raises(SessionNotFound):
        await store.fork_session("bob", S, None, new_id(), NOW)


# --- Versions ----------------------------------------------------------------------------------


async def test_a_reply_made_anew_takes_the_old_ones_place(store: Store) -> None:
    await say(store, "a", "A", S)
    await say(store, "b", "B1", S)
    begun = await store.begin_version(anew())
    assert [k.item.text for k in begun.history.items if isinstance(k.item, Message)] == [
        "a",
        "A",
        "b",
    ]
    assert begun.history.total_weight == sum(k.weight for k in begun.history.items)
    await answer(store, begun, "B2")
    assert words(await listed(store)) == "a A b B2"
    assert (await store.get_session("ann", S)).message_count == 4
    assert await prompted(store) == "a A b B2"


async def test_versions_are_listed_and_can_be_brought_back(store: Store) -> None:
    await say(store, "a", "A1", S)
    await answer(store, await store.begin_version(anew()), "A2")
    await answer(store, await store.begin_version(anew()), "A3")
    await say(store, "b", "B", S)
    at = await place(store, "A3")
    versions = await store.list_versions("ann", S, at)
    assert [words([v.message]) for v in versions if v.message] == ["A1", "A2", "A3"]
    assert [v.selected for v in versions] == [False, False, True]
    session = await store.select_version("ann", S, at, versions[0].turn, NOW)
    assert session.message_count == 2
    assert words(await listed(store)) == "a A1"
    await say(store, "c", "C", S)
    assert await prompted(store) == "a A1 c C"
    await store.select_version("ann", S, at, versions[2].turn, NOW)
    assert words(await listed(store)).startswith("a A3 b B")
    assert await prompted(store) == "a A3 b B"


async def test_an_edit_hides_what_followed_until_it_is_selected_again(store: Store) -> None:
    for text in "abc":
        await say(store, text, text.upper(), S)
    at = await place(store, "b")
    await answer(store, await store.begin_version(anew(message=at, words="x")), "X")
    await say(store, "y", "Y", S)
    assert words(await listed(store)) == "a A x X y Y"
    for known in (at, await place(store, "x")):  # known before the edit, or after it
        versions = await store.list_versions("ann", S, known)
        assert [words([v.message]) for v in versions if v.message] == ["b", "x"]
    await store.select_version("ann", S, at, versions[0].turn, NOW)
    assert words(await listed(store)) == "a A b B c C"
    assert (await store.get_session("ann", S)).message_count == 6
    await store.select_version("ann", S, at, versions[1].turn, NOW)
    assert words(await listed(store)) == "a A x X y Y"
    assert await prompted(store) == "a A x X y Y"


async def test_versions_within_a_version_are_kept_with_it(store: Store) -> None:
    await say(store, "a", "A", S)
    at = await place(store, "a")
    await answer(store, await store.begin_version(anew(message=at, words="b")), "B1")
    await answer(store, await store.begin_version(anew()), "B2")
    await say(store, "c", "C1", S)
    await answer(store, await store.begin_version(anew()), "C2")
    of_words = await store.list_versions("ann", S, at)
    assert [words([v.message]) for v in of_words if v.message] == ["a", "b"]
    reply = await place(store, "B2")
    replies = await store.list_versions("ann", S, reply)
    assert [words([v.message]) for v in replies if v.message] == ["B1", "B2"]
    last = await place(store, "C2")
    await store.select_version("ann", S, at, of_words[0].turn, NOW)
    assert words(await listed(store)) == "a A"
    with pytest.raises(MessageNotFound):  # its place is not listed now
        await store.select_version("ann", S, last, last.turn, NOW)
    await store.select_version("ann", S, at, of_words[1].turn, NOW)
    assert words(await listed(store)) == "b B2 c C2"
    assert await prompted(store) == "b B2 c C2"


async def test_a_failed_turn_is_answered_anew(store: Store) -> None:
    begun = await store.begin_turn(a_turn("a", session=S))
    await store.end_turn(begun.turn.ref, Ending(TurnStatus.FAILED, "half"), NOW)
    again = await store.begin_version(anew())
    await store.end_turn(again.turn.ref, Ending(TurnStatus.FAILED, ""), NOW)
    assert words(await listed(store)) == "a"
    assert (await store.get_session("ann", S)).message_count == 1
    await answer(store, await store.begin_version(anew()), "A")
    assert words(await listed(store)) == "a A"
    assert await prompted(store) == "a A"
    versions = await store.list_versions("ann", S, await place(store, "A"))
    assert [v.message is None for v in versions] == [False, True, False]


async def test_a_conversation_from_elsewhere_has_versions_too(store: Store) -> None:
    said = [Message("user", "a"), Message("assistant", "A"), Message("user", "b")]
    session = ById((await store.create_session(a_session(*said))).id)
    await answer(store, await store.begin_version(anew(session)), "B")
    assert words(await listed(store, session)) == "a A b B"
    at = await place(store, "a", session)
    await answer(store, await store.begin_version(anew(session, at, "x")), "X")
    assert words(await listed(store, session)) == "x X"
    versions = await store.list_versions("ann", session, at)
    await store.select_version("ann", session, at, versions[0].turn, NOW)
    assert words(await listed(store, session)) == "a A b B"
    assert await prompted(store, session) == "a A b B"


async def test_nothing_is_replaced_while_a_turn_is_open(store: Store) -> None:
    await say(store, "a", "A", S)
    at = await place(store, "a")
    begun = await store.begin_turn(a_turn("b", session=S))
    for asked in (
        store.begin_version(anew()),
        store.begin_version(anew(message=at, words="x")),
        store.select_version("ann", S, at, 1, NOW),
    ):
        with pytest.raises(SessionBusy) as refused:
            await asked
        assert refused.value.turn_id == begun.turn.ref.id
    assert words(await listed(store)) == "a A b"


async def test_only_messages_of_the_session_have_versions(store: Store) -> None:
    await say(store, "a", "A", S)
    at, reply = await place(store, "a"), await place(store, "A")
    other = (await say(store, "x", "y", ByAlias("other"))).session_id
    elsewhere, nowhere = MessageRef(other, 1, 0), MessageRef(at.session_id, 1, 7)
    for message in (elsewhere, nowhere, reply):
        with pytest.raises(MessageNotFound):
            await store.begin_version(anew(message=message, words="z"))
    for message in (elsewhere, nowhere):
        with pytest.raises(MessageNotFound):
            await store.list_versions("ann", S, message)
    with pytest.raises(MessageNotFound):
        await store.select_version("ann", S, at, 7, NOW)
    for asked in (
        store.begin_version(anew(owner="bob")),
        store.list_versions("bob", S, at),
        store.select_version("bob", S, at, 1, NOW),
    ):
        with pytest.raises(SessionNotFound):
            await asked
    assert words(await listed(store)) == "a A"


async def test_an_empty_session_has_nothing_to_answer(store: Store) -> None:
    made = await store.create_session(a_session(Message("assistant", "hi")))
    with pytest.raises(MessageNotFound):
        await store.begin_version(anew(ById(made.id)))


async def test_what_the_choice_raises_undoes_a_version(store: Store) -> None:
    def refuse(_: Basis, __: int) -> ModelChoice:
        raise InvalidRequest("no")

    await say(store, "a", "A", S)
    before = await store.get_session("ann", S)
    with pytest.raises(InvalidRequest):
        await store.begin_version(msgspec.structs.replace(anew(), choose=refuse))
    assert await store.get_session("ann", S) == before
    assert words(await listed(store)) == "a A"


async def test_a_crash_leaves_a_version_as_it_leaves_any_turn(store: Store) -> None:
    await say(store, "a", "A", S)
    begun = await store.begin_version(anew())
    await store.checkpoint(begun.turn.ref, 0, "half")
    assert await store.settle_abandoned(NOW) == 1
    assert words(await listed(store)) == "a half"
    versions = await store.list_versions("ann", S, await place(store, "half"))
    await store.select_version("ann", S, await place(store, "half"), versions[0].turn, NOW)
    assert words(await listed(store)) == "a A"
