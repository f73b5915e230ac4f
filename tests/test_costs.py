"""What the promises cost, as `make bench` finds it: the sums, and the two ways of one relay."""

from collections.abc import MutableMapping
from typing import Any

import pytest

from bench.costs import Costs, added, chart
from bench.detached import Detached
from bench.load import Client, Exchange, Outcome, Target
from rig.model_server import ModelServer

COSTS = Costs(turn=200.0, idempotency=16.0, checkpoints=-3.0, detachment=8.0)


def test_a_cost_is_the_median_of_the_differences_between_neighbours() -> None:
    assert added([110, 220, 330], [100, 200, 400]) == 10


def test_a_cost_below_nothing_is_noise_and_lowers_no_sum() -> None:
    assert (COSTS.together, COSTS.share) == (24, 12)


def test_the_chart_shows_each_promise_and_the_sum_for_both_turns() -> None:
    [panel] = chart(COSTS, COSTS).panels
    names = ["idempotency", "checkpoints", "detachment", "together"]
    assert [[bar.name for bar in group.bars] for group in panel.groups] == [names, names]
    assert [bar.value for bar in panel.groups[0].bars] == [8, 0, 4, 12]


class Wire:
    """A connection that keeps what is sent on it, and answers at once with nothing."""

    closed = False

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, request: bytes, exchange: Exchange) -> None:
        self.sent.append(request)
        exchange.done.set_result(None)


@pytest.mark.parametrize("keyed", [True, False])
async def test_each_keyed_request_has_a_key_of_its_own_and_others_have_none(keyed: bool) -> None:
    client = Client(Target(0, [], "", keyed=keyed), Outcome())
    client.connection = wire = Wire()  # type: ignore[assignment]
    for _ in range(3):
        await client.ask(Exchange(streamed=False))
    heads = [request.partition(b"\r\n\r\n")[0].split(b"\r\n") for request in wire.sent]
    keys = [line for head in heads for line in head if line.startswith(b"Idempotency-Key: ")]
    assert len(set(keys)) == (3 if keyed else 0)


async def relayed(program: Detached, query: bytes, body: bytes) -> tuple[int, bytes]:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await program({"path": "/api/chat", "query_string": query}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize("stream", ["true", "false"])
async def test_the_floor_relays_the_same_both_ways(model_server: ModelServer, stream: str) -> None:
    program = Detached(model_server.base_url)
    body = b'{"message": "Gr\xc3\xbc\xc3\x9fe", "stream": %b}' % stream.encode()
    ways = [await relayed(program, query, body) for query in (b"", b"detached")]
    assert program.client is not None
    await program.client.close()
    assert ways[0] == (200, ways[1][1].replace(b'"bench-model"', b'"scripted"'))
    assert len(ways[0][1]) > 10
