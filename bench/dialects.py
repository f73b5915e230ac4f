"""What it costs to be spoken to in another dialect, (k): each against our own, on one server."""

import statistics

import msgspec

from bench.load import Bursts, Streams
from bench.measures import (
    CLIENTS,
    OURS,
    STAGGER,
    STREAM_DELAY,
    STREAM_TOKENS,
    TOKENS,
    Run,
    token_cpu,
)
from bench.report import Section, at_most, number
from bench.servers import target

BURSTS, BURST = 7, 0.25  # of each dialect in a round, and the seconds of one
TIMES = 3  # that all dialects are streamed in a round, one after the other

DIALECTS = ("own", "chat", "unkept", "responses")
NAMES = {
    "own": "our own",
    "chat": "Chat Completions, in a session",
    "unkept": "Chat Completions, nothing kept",
    "responses": "Responses, each behind the last",
}
# The goals, against our own.
TURN_TO_OWN = {"chat": 1.3, "responses": 1.3}
TOKEN_TO_OWN = {"chat": 1.5, "unkept": 1.5, "responses": 1.5}


def dialects(run: Run) -> Section:
    turns, tokens = short_turns(run), streamed(run)
    own_turn, own_token = turns["own"], tokens["own"]
    return Section(
        "Other dialects",
        f"CPU of the server, {CLIENTS} clients. A turn is one of sessions of seven, its reply of "
        f"{TOKENS} tokens whole; a token is one of {STREAM_TOKENS} that are streamed, all CPU of "
        "the stream divided by them. Clients of Chat Completions send all that was said each "
        "time, and call their sessions by names of their own.",
        ["", "turn, µs", "to our own", "token, µs", "to our own"],
        [
            [
                NAMES[one],
                number(turns[one]),
                f"{turns[one] / own_turn:.2f} ×",
                number(tokens[one]),
                f"{tokens[one] / own_token:.2f} ×",
            ]
            for one in DIALECTS
        ],
        [
            *(
                at_most(
                    f"CPU of a turn, {NAMES[one]}, to our own", turns[one] / own_turn, "×", most
                )
                for one, most in TURN_TO_OWN.items()
            ),
            *(
                at_most(
                    f"CPU of a token, {NAMES[one]}, to our own", tokens[one] / own_token, "×", most
                )
                for one, most in TOKEN_TO_OWN.items()
            ),
        ],
    )


def short_turns(run: Run) -> dict[str, float]:
    """µs of a turn in each dialect: they take turns in short bursts, since noise is large."""
    found: dict[str, list[float]] = {one: [] for one in DIALECTS}
    with run.place.model_server(deltas=TOKENS, one_write=True) as model:
        for round_ in range(1, run.rounds + 1):
            run.place.say(f"  round {round_}: turns")
            with run.place.server(OURS, model.url) as server:
                at = target(server, model)
                targets = [msgspec.structs.replace(at, dialect=one) for one in DIALECTS]
                job = Bursts(targets, CLIENTS, BURST, 2 if run.quick else BURSTS)
                for taken, seconds in zip(found.values(), run.place.load(job).costs, strict=True):
                    taken += [each * 1e6 for each in seconds]
    return {one: statistics.median(taken) for one, taken in found.items()}


def streamed(run: Run) -> dict[str, float]:
    """µs of a streamed token in each dialect."""
    found: dict[str, list[float]] = {one: [] for one in DIALECTS}
    with run.place.model_server(deltas=STREAM_TOKENS, delta_delay=STREAM_DELAY) as model:
        for round_ in range(1, run.rounds + 1):
            run.place.say(f"  round {round_}: streams")
            with run.place.server(OURS, model.url) as server:
                at = target(server, model)
                for _ in range(1 if run.quick else TIMES):
                    for one, taken in found.items():
                        job = Streams(msgspec.structs.replace(at, dialect=one), CLIENTS, 1, STAGGER)
                        taken.append(token_cpu(run.place.load(job)))
    return {one: statistics.median(taken) for one, taken in found.items()}
