"""The audit: what the clients know, held against what is stored and what is told over HTTP."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Mapping

import aiohttp
import msgspec

from crash.books import Books, StoredTurn
from crash.campaign import TurnKey
from crash.diary import (
    FINAL,
    HTTP,
    KEPT,
    LEFTOVERS,
    NUMBERS,
    ONCE,
    ONE_TURN,
    ORDER,
    OVER,
    PARTIAL,
    REPLAY,
    RIGHT,
    SUMS,
    WHOLE,
    Ask,
    Diary,
    Ledger,
)
from crash.words import right_reply

TERMINAL = frozenset({"completed", "failed", "cancelled", "interrupted"})


class Loss(msgspec.Struct, frozen=True):
    """Of an interrupted reply, how long before the kill a client had seen what is gone now."""

    turn_id: str
    seconds: float
    characters: int


def audit_books(books: Books, diary: Diary) -> None:
    """Hold the file against the diary. `diary.ledger` has what was found."""
    ledger = diary.ledger
    for ask in diary.asks:
        _audit_ask(ask, books, ledger)
    for session, made in diary.sessions.items():
        ledger.expect(ONCE, len(made) <= 1, f"the key {session} made the sessions {made}")
    for turn in books.turns.values():
        _audit_turn(turn, ledger)
    _audit_words(books, diary)
    _audit_sessions(books, diary)
    oddities = f"{len(books.oddities)} odd items: {books.oddities[:3]}"
    ledger.expect(SUMS, not books.oddities, oddities)
    left = f"{books.checkpoints} rows of checkpoints are left"
    ledger.expect(LEFTOVERS, books.checkpoints == 0, left)


# --- What each client knows ----------------------------------------------------------------------


def _audit_ask(ask: Ask, books: Books, ledger: Ledger) -> None:
    ids = sorted(ask.turn_ids)
    ledger.expect(ONE_TURN, len(ids) <= 1, f"{ask.key} was told the turns {ids}")
    made = books.keys.get(ask.key, [])
    ledger.expect(ONE_TURN, set(made) >= set(ids), f"{ask.key} made {made}; it was told {ids}")
    for turn_id in ids:
        turn = books.turns.get(turn_id)
        holds = turn is not None and turn.said == ask.message
        ledger.expect(KEPT, holds, f"{ask.key}: {turn_id} is stored as {turn}")
        if turn is not None:
            _audit_endings(ask, turn, ledger)
    _audit_order(ask, books, ledger)


def _audit_endings(ask: Ask, turn: StoredTurn, ledger: Ledger) -> None:
    for ending in ask.endings:
        told = f"{ask.key}: {turn.id} was told as {ending.status}, is {turn.status}"
        ledger.expect(FINAL, ending.status == turn.status, told)
        if ending.text is None:
            continue
        promise = WHOLE if ending.status == "completed" else FINAL
        cut = f"{ask.key}: told {len(ending.text)} characters, {len(turn.reply)} are stored"
        ledger.expect(promise, ending.text == turn.reply, cut)


def _audit_order(ask: Ask, books: Books, ledger: Ledger) -> None:
    if ask.before is None:
        return
    first = books.turns.get(ask.before.turn_id or "")
    second = books.turns.get(ask.turn_id or "")
    if first is None or second is None or first.session != second.session:
        return  # one is missing, which is told elsewhere; or each opened a session
    evidence = f"{ask.key} was said after {first.id} and is {second.id}"
    ledger.expect(ORDER, first.number < second.number, evidence)


def _audit_words(books: Books, diary: Diary) -> None:
    """Each message is listed once, and has a turn for each key that made one, no other."""
    made = defaultdict[str, list[str]](list)
    for ask in diary.asks:
        made[ask.message] += books.keys.get(ask.key, [])
    for message in made.keys() | books.said.keys():
        stored = sorted(turn.id for turn in books.said.get(message, []))
        evidence = f"{message!r} is in the turns {stored}; its keys made {sorted(made[message])}"
        diary.ledger.expect(ONE_TURN, stored == sorted(made[message]), evidence)
        listed = [turn.id for turn in books.said.get(message, []) if turn.listed]
        times = f"{message!r}, which is stored, is listed in {listed}"
        diary.ledger.expect(ONCE, len(listed) == bool(stored), times)


# --- What is stored, by itself -------------------------------------------------------------------


def _audit_turn(turn: StoredTurn, ledger: Ledger) -> None:
    ledger.expect(OVER, turn.status in TERMINAL, f"{turn.id} is {turn.status}")
    if turn.said is None:
        ledger.expect(KEPT, False, f"{turn.id} has no message")
        return
    right = right_reply(turn.said)
    whole = turn.status == "completed"
    holds = turn.reply == right if whole else right.startswith(turn.reply)
    evidence = f"{turn.id}, {turn.status}: …{turn.reply[-30:]!r} of {len(right)} characters"
    ledger.expect(RIGHT, holds, evidence)


def _audit_sessions(books: Books, diary: Diary) -> None:
    ledger, numbers = diary.ledger, defaultdict[str, list[int]](list)
    for turn in books.turns.values():
        numbers[turn.session].append(turn.number)
    known = set(itertools.chain.from_iterable(diary.sessions.values()))
    for session in books.sessions.values():
        found = sorted(numbers[session.id])
        gaps = f"{session.id} counts {session.newest} turns and has {found}"
        ledger.expect(NUMBERS, found == list(range(1, session.newest + 1)), gaps)
        ledger.expect(OVER, session.running is None, f"{session.id} runs {session.running}")
        sums = f"{session.id} says {session.sums}, its items {session.found}"
        ledger.expect(SUMS, list(session.sums) == session.found, sums)
        orphan = f"{session.id} was made for nobody"
        ledger.expect(ONCE, bool(found) or session.id in known, orphan)


def audit_partials(
    books: Books, diary: Diary, died_at: Mapping[TurnKey, float], allowance: float
) -> list[Loss]:
    """Whether interrupted replies kept what was seen `allowance` seconds before the kill.

    Returns:
        What was lost of younger text.
    """
    losses = []
    for ask in diary.asks:
        turn = books.turns.get(ask.turn_id or "")
        if turn is None or turn.status != "interrupted" or turn.key not in died_at:
            continue
        died, kept = died_at[turn.key], len(turn.reply)
        seen = ask.seen_before(died - allowance)
        evidence = (
            f"{turn.id} keeps {kept} characters; {seen} were seen {allowance:.1f} s"
            " before the server was killed"
        )
        if seen:
            diary.ledger.expect(PARTIAL, kept >= seen, evidence)
        gone = [died - at for at, length in ask.sightings if length > kept and at <= died]
        losses.append(Loss(turn.id, max(gone, default=0.0), ask.seen_before(died) - kept))
    return losses


# --- What is told over HTTP ----------------------------------------------------------------------


class Told(msgspec.Struct, frozen=True):
    """What the server says, asked when all is over.

    Attributes:
        turns: by id: status, and the text of the last event.
        messages: by session: each turn's id, role and text, in order.
    """

    turns: dict[str, tuple[str, str | None]]
    messages: dict[str, list[tuple[str, str, str]]]


async def ask_all(url: str, diary: Diary, http: aiohttp.ClientSession) -> Told:
    """Ask for every turn that a client knows of, and for every session with one."""
    ids = sorted({turn_id for ask in diary.asks for turn_id in ask.turn_ids})
    sessions = sorted({f"s{turn_id[1:].partition('_')[0]}" for turn_id in ids})
    gate = asyncio.Semaphore(16)
    told = Told({}, {})

    async def ask_turn(turn_id: str) -> None:
        async with gate, http.get(f"{url}/api/turns/{turn_id}/events") as response:
            last = (await response.text()).strip().rpartition("\n\n")[2]
            fields = dict(line.split(": ", 1) for line in last.splitlines())
            data = msgspec.json.decode(fields["data"])
            told.turns[turn_id] = (fields["event"].removeprefix("turn."), data.get("response"))

    async def ask_session(session: str) -> None:
        async with gate:
            told.messages[session] = await _read_session(f"{url}/api/chat-sessions/{session}", http)

    await asyncio.gather(*map(ask_turn, ids))
    # Not before: a turn whose client hung up may have gone on until just now.
    await asyncio.gather(*map(ask_session, sessions))
    return told


async def _read_session(url: str, http: aiohttp.ClientSession) -> list[tuple[str, str, str]]:
    messages, after = [], "0"
    while after:
        async with http.get(f"{url}/messages", params={"after": after, "limit": 1000}) as response:
            page = await response.json()
        messages += [(m["turn_id"], m["role"], m["content"]) for m in page["messages"]]
        after = page["next"]
    return messages


def audit_told(told: Told, books: Books, ledger: Ledger) -> None:
    """What is told must be what is stored."""
    for turn_id, (status, text) in told.turns.items():
        turn = books.turns.get(turn_id)
        same = turn is not None and status == turn.status and text in (None, turn.reply)
        ledger.expect(HTTP, same, f"{turn_id} is told as {status} with {text!r:.40}, is {turn}")
    stored = _listed(books)
    for session, messages in told.messages.items():
        evidence = f"{session} lists {len(messages)} messages, {len(stored[session])} are stored"
        ledger.expect(HTTP, messages == stored[session], evidence)


def _listed(books: Books) -> dict[str, list[tuple[str, str, str]]]:
    """The messages of each session as they are to be listed: without replies that failed."""
    listed = defaultdict[str, list[tuple[str, str, str]]](list)
    for turn in sorted(books.turns.values(), key=lambda turn: turn.key):
        if not turn.listed:
            continue
        listed[turn.session].append((turn.id, "user", turn.said or ""))
        if turn.reply and turn.status != "failed":
            listed[turn.session].append((turn.id, "assistant", turn.reply))
    return listed


async def audit_replays(
    url: str, diary: Diary, http: aiohttp.ClientSession, asks: list[Ask]
) -> None:
    """Send requests that were answered once more, with their keys."""
    for ask in asks:
        headers = {"Idempotency-Key": ask.key}
        body = {name: value for name, value in ask.body.items() if name != "stream"}
        async with http.post(url + ask.path, json=body, headers=headers) as response:
            answer = await response.json()
            replayed = response.headers.get("Idempotent-Replayed") == "true"
            turn_id = response.headers.get("Turn-Id")
        ending = ask.endings[-1]
        same = response.status == 200 and ask.reply_in(answer) == ending.text
        holds = (same or ending.status != "completed") and replayed and turn_id == ask.turn_id
        evidence = f"{ask.key} ({ending.status}, {ask.turn_id}): {response.status}, turn {turn_id}"
        diary.ledger.expect(REPLAY, holds, f"{evidence}, replayed {replayed}")
