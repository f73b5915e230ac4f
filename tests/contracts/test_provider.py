"""The provider's exam: the sentences of `contracts.Provider`, on every provider there is.

The first part anyone can sit. The rest is about endpoints that speak OpenAI's dialect, each
fault of theirs played by a real server.
"""

import asyncio
import socket
import traceback
from contextlib import aclosing
from email.utils import formatdate

import pytest

from rig.model_server import (
    BEFORE,
    FINISHED,
    HEAD,
    Call,
    Cut,
    Hang,
    ModelServer,
    Plan,
    Reset,
    Wait,
)
from turnkeeper.domain import (
    Message,
    Model,
    Prompt,
    Reasoning,
    Sampling,
    ToolCall,
    ToolResult,
    Usage,
    check_text,
)
from turnkeeper.errors import ConfigError, ProviderError
from turnkeeper.events import Finished, TextDelta, UsageReport
from turnkeeper.providers import catalog
from turnkeeper.providers.eliza import Eliza
from turnkeeper.providers.faults import Timeouts, parse_retry_after
from turnkeeper.providers.openai import OpenAIProvider

KEY = "sk-very-secret-0123456789"
MODELS = (Model("scripted", "Scripted", 8000),)
PROMPT = Prompt("scripted", (Message("system", "Be kind."), Message("user", "I am a bit sad.")))


@pytest.fixture
def model(model_server: ModelServer) -> ModelServer:
    return model_server


@pytest.fixture
async def open_provider(model):
    """Makes providers that ask the model server, and closes them."""
    providers = []

    def make(base_url: str = "", key: str | None = KEY, **timeouts: float) -> OpenAIProvider:
        url = base_url or model.base_url
        providers.append(OpenAIProvider("acme", url, key, MODELS, Timeouts(**timeouts)))
        return providers[-1]

    yield make
    for provider in providers:
        await provider.close()


@pytest.fixture
def provider(open_provider):
    return open_provider()


async def batches(provider, prompt=PROMPT):
    return [list(batch) async for batch in provider.stream(prompt)]


async def text_of(provider, prompt=PROMPT):
    events = [event for batch in await batches(provider, prompt) for event in batch]
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def usage_of(provider):
    events = [event for batch in await batches(provider) for event in batch]
    return [event.usage for event in events if isinstance(event, UsageReport)]


async def fault_of(provider):
    with pytest.raises(ProviderError) as raised:
        await batches(provider)
    return raised.value


async def said_before_fault(provider):
    """The text that came before the stream broke, and the fault."""
    texts = []

    async def listen():
        async for batch in provider.stream(PROMPT):
            texts.extend(event.text for event in batch if isinstance(event, TextDelta))

    with pytest.raises(ProviderError) as raised:
        await listen()
    return "".join(texts), raised.value


# --- For every provider ------------------------------------------------------------------------


@pytest.fixture
def heard():
    """To be set when something of the reply was heard; a model may wait for it."""
    return asyncio.Event()


@pytest.fixture(params=["openai", "eliza"])
async def any_provider(request, open_provider):
    return open_provider() if request.param == "openai" else Eliza()


class TestEveryProvider:
    async def test_offers_a_model_with_a_window(self, any_provider):
        assert any_provider.models
        assert all(model.id and model.context_window > 0 for model in any_provider.models)
        assert len({model.id for model in any_provider.models}) == len(any_provider.models)

    async def test_has_a_name_to_put_before_its_models(self, any_provider):
        assert any_provider.name
        assert "/" not in any_provider.name

    async def test_may_be_asked_at_least_once(self, any_provider):
        assert any_provider.attempts >= 1

    async def test_replies_in_several_deltas(self, any_provider, model, heard):
        model.script = lambda _: Plan(at={1: Wait(heard)})
        deltas = 0
        async for batch in any_provider.stream(PROMPT):
            deltas += sum(isinstance(event, TextDelta) for event in batch)
            heard.set()
        assert deltas > 1

    async def test_no_batch_and_no_delta_is_empty(self, any_provider):
        for batch in await batches(any_provider):
            assert batch
            assert all(event.text for event in batch if isinstance(event, TextDelta))

    async def test_its_text_can_be_stored(self, any_provider):
        text = await text_of(any_provider)
        assert check_text(text, "reply") == text

    @pytest.mark.parametrize("text", ["", " ", "?!", "😀" * 50, "a" * 20_000, "nul-free \x01"])
    async def test_replies_to_any_text(self, any_provider, text):
        assert await text_of(any_provider, Prompt("scripted", (Message("user", text),)))

    async def test_can_be_closed_early(self, any_provider):
        async with aclosing(any_provider.stream(PROMPT)) as stream:
            assert await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    async def test_can_be_asked_again_after_it_was_closed_early(self, any_provider):
        async with aclosing(any_provider.stream(PROMPT)) as stream:
            await anext(stream)
        assert await text_of(any_provider)

    async def test_takes_calls_at_the_same_time(self, any_provider):
        texts = await asyncio.gather(*(text_of(any_provider) for _ in range(20)))
        assert len(set(texts)) == 1

    async def test_can_be_closed_twice(self, any_provider):
        await any_provider.close()
        await any_provider.close()


# --- What is sent ------------------------------------------------------------------------------


async def test_asks_for_a_stream_and_for_usage(model, provider):
    await batches(provider, Prompt("a-model", (Message("user", "hi ü"),)))
    assert model.requests[0].body == {
        "model": "a-model",
        "messages": [{"role": "user", "content": "hi ü"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_says_how_to_choose_the_words_and_nothing_that_nobody_said(model, provider):
    for sampling, expected in [
        (Sampling(0.0, 0.9, 50, ("END", "\n")), (0.0, 0.9, 50, ["END", "\n"])),
        (Sampling(temperature=1.5), (1.5, None, None, None)),
        (Sampling(), (None, None, None, None)),
    ]:
        await text_of(provider, Prompt(PROMPT.model, PROMPT.items, sampling))
        said = dict(zip(SETTINGS, expected, strict=True))
        body = model.requests[-1].body
        assert {name: body[name] for name in SETTINGS if name in body} == {
            name: value for name, value in said.items() if value is not None
        }


SETTINGS = ("temperature", "top_p", "max_tokens", "stop")


async def test_sends_the_key_and_nothing_of_this_machine(model, provider):
    await batches(provider)
    assert {**model.requests[0].headers, "content-length": ""} == {
        "host": model.base_url.removeprefix("http://").removesuffix("/v1"),
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "content-length": "",
        "accept": "text/event-stream",
        "accept-encoding": "identity",
        "user-agent": "turnkeeper",
    }


async def test_without_a_key_none_is_sent(model, open_provider):
    await batches(open_provider(key=None))
    assert "authorization" not in model.requests[0].headers


async def test_items_become_chat_messages(model, provider):
    items = (
        Message("system", "Be kind."),
        Message("user", "Weather?"),
        Reasoning("I should look."),
        ToolCall("c1", "look", '{"at": "Oslo"}'),
        Reasoning("Twice."),
        ToolCall("c2", "look", "{}"),
        ToolResult("c1", "rain"),
        ToolResult("c2", "sun"),
        ToolCall("c3", "look", "{}"),
        ToolResult("c3", "fog"),
        Message("assistant", "Mixed."),
    )

    def call(call_id, arguments):
        function = {"name": "look", "arguments": arguments}
        return {"id": call_id, "type": "function", "function": function}

    def asked(*calls):
        return {"role": "assistant", "content": None, "tool_calls": list(calls)}

    def answered(call_id, content):
        return {"role": "tool", "tool_call_id": call_id, "content": content}

    await batches(provider, Prompt("m", items))
    assert model.requests[0].body["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Weather?"},
        asked(call("c1", '{"at": "Oslo"}'), call("c2", "{}")),
        answered("c1", "rain"),
        answered("c2", "sun"),
        asked(call("c3", "{}")),
        answered("c3", "fog"),
        {"role": "assistant", "content": "Mixed."},
    ]


async def test_a_prompt_of_megabytes_is_sent_whole(model, provider):
    text = "long " * 600_000
    model.script = lambda _: Plan()
    assert await text_of(provider, Prompt("m", (Message("user", text),)))
    assert model.requests[0].last_user_message == text


async def test_a_base_url_may_end_with_a_slash(model, open_provider):
    assert await text_of(open_provider(model.base_url + "/"))


@pytest.mark.parametrize("url", ["", "example.com/v1", "ftp://example.com", "http://", "http://["])
def test_a_wrong_base_url_is_a_wrong_setting(url):
    with pytest.raises(ConfigError, match="acme"):
        OpenAIProvider("acme", url, KEY, MODELS, Timeouts())


@pytest.mark.parametrize("key", ["", "with\nline", "with ümlaut"])
def test_a_key_that_cannot_be_sent_is_a_wrong_setting_and_not_shown(key):
    with pytest.raises(ConfigError, match="acme") as raised:
        OpenAIProvider("acme", "http://localhost", key, MODELS, Timeouts())
    assert not key or key not in str(raised.value)


# --- What comes back ---------------------------------------------------------------------------


async def test_each_delta_is_yielded_when_it_comes(model, provider):
    first, second = asyncio.Event(), asyncio.Event()
    model.script = lambda _: Plan(deltas=("one", "two"), at={1: Wait(first), 2: Wait(second)})
    async with aclosing(provider.stream(PROMPT)) as stream:
        assert await anext(stream) == [TextDelta("one")]
        first.set()
        assert await anext(stream) == [TextDelta("two")]
        second.set()
        assert [event async for batch in stream for event in batch] == [
            Finished("stop"),
            UsageReport(Usage(7, 2)),
        ]


async def test_what_came_together_is_yielded_together(model, provider):
    model.script = lambda _: Plan(one_write=True)
    assert await batches(provider) == [
        [TextDelta("Hello there"), Finished("stop"), UsageReport(Usage(7, 2))]
    ]


WHOLE = {
    "as it stands": Plan(),
    "no role chunk": Plan(role_first=False),
    "content null first": Plan(null_first=True),
    "unknown fields": Plan(extra_fields=True),
    "usage in the last chunk of text": Plan(usage="last"),
    "no usage": Plan(usage="none"),
    "no [DONE]": Plan(done=False),
    "no finishing chunk": Plan(finish_reason=None),
    "cut short": Plan(finish_reason="length"),
    "an empty choice and empty data": Plan(chunks=(b'{"choices":[]}', b"", b"{}")),
    "another choice": Plan(chunks=(b'{"choices":[{"index":1,"delta":{"content":"x"}}]}',)),
    "everything null": Plan(chunks=(b'{"choices":null,"usage":null,"error":null}',)),
    "usage of no numbers": Plan(
        chunks=(b'{"usage":{"prompt_tokens":"5","completion_tokens":5.5}}',)
    ),
    "a list of parts": Plan(
        deltas=("Hello ",),
        chunks=(b'{"choices":[{"delta":{"content":[{"type":"text","text":"there"}]}}]}',),
    ),
    "a choice of nulls": Plan(chunks=(b'{"choices":[{"delta":null,"finish_reason":null}]}',)),
    "status with other headers": Plan(headers={"x-request-id": "r", "set-cookie": "a=b"}),
    "connection closed after it": Plan(headers={"connection": "close"}),
    "lost after it was finished": Plan(at={FINISHED: Cut()}),
    "lost after finishing, before [DONE]": Plan(done=False, at={FINISHED: Reset()}),
}


@pytest.mark.parametrize("plan", WHOLE.values(), ids=WHOLE)
async def test_takes_any_proper_reply(model, provider, plan):
    model.script = lambda _: plan
    assert await text_of(provider) == "Hello there"


async def test_takes_a_reply_cut_anywhere(model, provider):
    length = 960  # covers the whole body
    model.script = lambda call: Plan(deltas=("Hé ", "😀"), split=(call.number % length,))
    for _ in range(length):
        assert await text_of(provider) == "Hé 😀"


@pytest.mark.parametrize("count", ["9223372036854775808", "-1", "5.5", '"5"', "[5]", "{}"], ids=str)
async def test_a_count_that_is_none_is_no_report(model, provider, count):
    chunk = b'{"usage":{"prompt_tokens":%b,"completion_tokens":1}}' % count.encode()
    model.script = lambda _: Plan(usage="none", chunks=(chunk,))
    assert await usage_of(provider) == []


@pytest.mark.parametrize(
    ("usage", "expected"), [("extra", [Usage(7, 2)]), ("last", [Usage(7, 2)]), ("none", [])]
)
async def test_reports_usage_as_the_provider_counts(model, provider, usage, expected):
    model.script = lambda _: Plan(usage=usage)
    assert await usage_of(provider) == expected


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        (("a\ud83d", "\ude00b"), "a\ufffd\ufffdb"),
        (("a\0b", "c"), "a\ufffdbc"),
        (("😀", "é"), "😀é"),
    ],
)
async def test_what_no_store_can_hold_is_replaced(model, provider, deltas, expected):
    model.script = lambda _: Plan(deltas=deltas)
    assert await text_of(provider) == expected


async def test_bad_utf8_fails_no_turn(model, provider):
    chunk = b'{"choices":[{"index":0,"delta":{"content":"\xff!"}}]}'
    model.script = lambda _: Plan(deltas=("a",), chunks=(chunk,))
    assert await text_of(provider) == "a\ufffd!"


# --- Faults ------------------------------------------------------------------------------------

ERROR = {"error": {"message": "the model burns", "type": "server_error"}}
TOO_LONG = {
    "error": {
        "message": "This model's maximum context length is 8192 tokens. However, your messages "
        "resulted in 9001 tokens. Please reduce the length of the messages.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
}
TOO_FAST = {  # Groq's
    "error": {
        "message": "Request too large for model `m` on tokens per minute (TPM): Limit 6000, "
        "Requested 14368, please reduce your message size and try again.",
        "type": "tokens",
        "code": "rate_limit_exceeded",
    }
}

FAULTS = {
    "401": (Plan(status=401, body=ERROR), "provider_refused", "refused the key (status 401)"),
    "403": (Plan(status=403, body=ERROR), "provider_refused", "the model burns"),
    "400": (Plan(status=400, body=ERROR), "provider_refused", "refused the request (status 400)"),
    "404, no JSON": (Plan(status=404, body=b"<html>"), "provider_refused", "(status 404)"),
    "408": (Plan(status=408, body=ERROR), "provider_timeout", "(status 408)"),
    "429": (Plan(status=429, body=ERROR), "provider_rate_limited", "limits our rate"),
    "500": (Plan(status=500, body=ERROR), "provider_failed", "failed (status 500)"),
    "503, no body": (Plan(status=503, body=b""), "provider_failed", "failed (status 503)"),
    "500, text as error": (Plan(status=500, body={"error": "ouch"}), "provider_failed", ": ouch"),
    "500, only a message": (Plan(status=500, body={"message": "au"}), "provider_failed", ": au"),
    "204": (Plan(raw=(b"HTTP/1.1 204 No\r\n\r\n",)), "provider_malformed", "(status 204)"),
    "redirect": (
        Plan(status=302, headers={"location": "/v1/chat/completions"}, body=b""),
        "provider_failed",
        "redirect",
    ),
    "an error with 200": (Plan(body=ERROR), "provider_failed", "the model burns"),
    "JSON in place of a stream": (Plan(body={"choices": []}), "provider_malformed", "JSON"),
    "no event stream": (
        Plan(body=b"<html>hello</html>\n\n", headers={"content-type": "text/html"}),
        "provider_malformed",
        "no event stream",
    ),
    "no JSON in a chunk": (Plan(chunks=(b'{"choices":',)), "provider_malformed", "no chunk"),
    "wrong types in a chunk": (Plan(chunks=(b'{"choices":7}',)), "provider_malformed", "no chunk"),
    "deep JSON": (Plan(chunks=(b'{"error":' + b"[" * 90_000,)), "provider_malformed", "no chunk"),
    "no HTTP": (Plan(raw=(b"SMTP ready\r\n\r\n",)), "provider_malformed", "not HTTP"),
    "broken chunked encoding": (
        Plan(raw=(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"zz\r\n")),
        "provider_malformed",
        "not HTTP",
    ),
    "error in the stream": (Plan(errors=(ERROR,)), "provider_failed", "the model burns"),
    "rate limit in the stream": (
        Plan(errors=({"error": {"code": "rate_limit_exceeded", "message": "slow"}},)),
        "provider_rate_limited",
        ": slow",
    ),
    "429 in the stream": (
        Plan(errors=({"error": {"code": 429, "message": "slow"}},)),
        "provider_rate_limited",
        ": slow",
    ),
    "text as error in the stream": (Plan(errors=({"error": "ouch"},)), "provider_failed", "ouch"),
    "an event named error": (
        Plan(raw=(b'HTTP/1.1 200 OK\r\n\r\nevent: error\ndata: {"message": "ouch"}\n\n',)),
        "provider_failed",
        "ouch",
    ),
    "a prompt too long": (
        Plan(status=400, body=TOO_LONG),
        "context_length_exceeded",
        "acme takes no prompt as long as this: This model's maximum context length is 8192 tokens",
    ),
    "a prompt too long, 413": (Plan(status=413, body=TOO_LONG), "context_length_exceeded", ""),
    "a prompt too long, 500": (Plan(status=500, body=TOO_LONG), "context_length_exceeded", ""),
    "a prompt too long, with 200": (Plan(body=TOO_LONG), "context_length_exceeded", ""),
    "a prompt too long, in a list": (
        Plan(status=400, body=[TOO_LONG]),
        "context_length_exceeded",
        "9001 tokens",
    ),
    "a prompt too long, in the stream": (
        Plan(deltas=(), errors=(TOO_LONG,)),
        "context_length_exceeded",
        "9001 tokens",
    ),
    "413": (Plan(status=413, body=b"<html>"), "provider_refused", "(status 413)"),
    "too many tokens per minute": (
        Plan(status=413, body=TOO_FAST),
        "provider_refused",
        "Request too large",
    ),
    "empty reply": (Plan(deltas=()), "provider_empty_reply", "without a word"),
    "ended in the middle": (
        Plan(finish_reason=None, usage="none", done=False),
        "provider_cut_off",
        "in the middle",
    ),
    "closed in the middle": (Plan(at={1: Cut()}), "provider_cut_off", "in the middle"),
    "reset in the middle": (Plan(at={1: Reset()}), "provider_cut_off", "in the middle"),
    "closed after the headers": (Plan(at={HEAD: Cut()}), "provider_cut_off", ""),
    "closed without an answer": (Plan(at={BEFORE: Cut()}), "provider_cut_off", "without an answer"),
    "reset without an answer": (
        Plan(at={BEFORE: Reset()}),
        "provider_cut_off",
        "without an answer",
    ),
}


@pytest.mark.parametrize("row", FAULTS.values(), ids=FAULTS)
async def test_every_fault_has_its_code_and_a_sentence(model, provider, row, caplog):
    plan, code, words = row
    model.script = lambda _: plan
    fault = await fault_of(provider)
    assert (fault.code, words in fault.sentence) == (code, True), fault.sentence
    assert fault.sentence.startswith("acme ")
    assert fault.retryable == (code not in ("provider_refused", "context_length_exceeded"))
    assert_secret(fault, provider, caplog.text)
    await model.wait_until(lambda: model.open_calls == 0)
    assert model.calls == 1


@pytest.mark.parametrize("plan", [plan for plan, *_ in FAULTS.values()], ids=list(FAULTS))
async def test_after_any_fault_the_next_call_works(model, provider, plan):
    model.script = lambda call: plan if call.number == 1 else Plan()
    await fault_of(provider)
    assert await text_of(provider) == "Hello there"


@pytest.mark.parametrize("plan", [Plan(status=400, body=TOO_LONG), Plan(errors=(TOO_LONG,))])
async def test_how_long_a_prompt_was_and_may_be_is_passed_on(model, provider, plan):
    model.script = lambda _: plan
    fault = await fault_of(provider)
    assert (fault.prompt_tokens, fault.context_window) == (9001, 8192)


def assert_secret(fault, provider, log):
    """The key is nowhere: not in the error, nor in what led to it, nor in a log."""
    seen, error = [log, repr(provider), str(provider)], fault
    seen.append("".join(traceback.format_exception(fault)))
    while error is not None:
        seen += [str(error), repr(error), repr(error.args), repr(vars(error))]
        error = error.__cause__ or error.__context__
    assert KEY not in "\n".join(seen)


@pytest.mark.parametrize("at", [1, 2])
async def test_what_was_said_before_a_fault_is_yielded(model, provider, at):
    broken = Plan(one_write=True, errors=(ERROR,)) if at == 2 else Plan(at={1: Cut()})
    model.script = lambda _: broken
    text, fault = await said_before_fault(provider)
    assert text == ("Hello there" if at == 2 else "Hello ")
    assert fault.code in ("provider_failed", "provider_cut_off")


async def test_a_redirect_is_not_followed(model, provider):
    model.script = lambda _: Plan(status=307, headers={"location": model.base_url}, body=b"")
    await fault_of(provider)
    assert model.calls == 1


async def test_what_the_other_side_wrote_is_quoted_in_one_short_line(model, provider):
    message = "bad\n\x1b[31mnews " + "x" * 5000
    model.script = lambda _: Plan(status=400, body={"error": {"message": message}})
    sentence = (await fault_of(provider)).sentence
    assert "bad [31mnews xxx" in sentence
    assert sentence.isprintable()
    assert len(sentence) < 260


async def test_a_long_error_body_is_not_read_to_its_end(model, provider):
    model.script = lambda _: Plan(status=500, body=b"x" * (4 << 20))
    assert (await fault_of(provider)).code == "provider_failed"
    await fault_of(provider)
    assert model.connections == 2  # what was not read to its end cannot be used again


async def test_a_key_that_is_echoed_is_struck_out(model, provider):
    message = f"invalid key {KEY}, {KEY}!"
    model.script = lambda _: Plan(status=401, body={"error": {"message": message}})
    assert (await fault_of(provider)).sentence.endswith("invalid key [key], [key]!")


async def test_an_event_without_an_end_is_refused_at_8_mib(model, provider):
    start = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: "
    model.script = lambda _: Plan(raw=(start, b"x" * (9 << 20)))
    assert (await fault_of(provider)).code == "provider_malformed"


# --- Waiting times that a provider asks for ----------------------------------------------------

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": " 0.5 "}, 0.5),
        ({"Retry-After": "0"}, 0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "Retry-After": "9"}, 1.5),
        ({"retry-after-ms": "soon", "Retry-After": "9"}, 9),
        ({"Retry-After": formatdate(NOW + 30, usegmt=True)}, 30),
        ({"Retry-After": formatdate(NOW - 30, usegmt=True)}, 0),
        ({"Retry-After": "999999999"}, 86_400),
        ({"Retry-After": "9" * 40}, 86_400),
        ({"retry-after-ms": "0", "Retry-After": "9"}, 0),
        ({"Retry-After": "Friday, 15-Jan-27 08:00:30 GMT"}, 30),
        ({"Retry-After": "Fri Jan 15 08:00:30 2027"}, 30),
        ({"Retry-After": "Fri, 15 Jan 2027 08:00:30"}, 30),
        ({"Retry-After": "Fri, 15 Jan 2027 08:00:30 +9999999"}, None),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 86_400),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "1e9"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "Fri, 99 Foo 2026 99:99:99 GMT"}, None),
    ],
)
def test_every_form_of_retry_after(headers, seconds):
    assert parse_retry_after(headers, NOW) == seconds


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"retry-after": "12"}, 12),
        (429, {"Retry-After-Ms": "250"}, 0.25),
        (503, {"RETRY-AFTER": "3"}, 3),
        (429, {"x-other": "3"}, None),
        (400, {"retry-after": "3"}, None),
    ],
)
async def test_the_fault_says_how_long_to_wait(model, provider, status, headers, seconds):
    model.script = lambda _: Plan(status=status, body=ERROR, headers=headers)
    assert (await fault_of(provider)).retry_after == seconds


# --- Reaching it, and waiting for it -----------------------------------------------------------


@pytest.fixture
def closed_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def deaf_port():
    """A port that takes no connection and refuses none: its queue is full."""
    with socket.socket() as sock, socket.socket() as first, socket.socket() as second:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for filling in (first, second):
            filling.setblocking(False)
            filling.connect_ex(sock.getsockname())
        yield sock.getsockname()[1]


async def test_nobody_listens(open_provider, closed_port, caplog):
    provider = open_provider(f"http://127.0.0.1:{closed_port}/v1")
    fault = await fault_of(provider)
    assert (fault.code, fault.sentence) == ("provider_unreachable", "acme could not be reached")
    assert_secret(fault, provider, caplog.text)


async def test_the_host_is_unknown(open_provider):
    fault = await fault_of(open_provider("http://no-such-host.invalid/v1"))
    assert fault.code == "provider_unreachable"
    assert "host name" in fault.sentence


async def test_tls_fails(model, open_provider):
    fault = await fault_of(open_provider(model.base_url.replace("http:", "https:")))
    assert fault.code == "provider_unreachable"
    assert "TLS" in fault.sentence


async def test_no_connection_in_time(open_provider, deaf_port):
    fault = await fault_of(open_provider(f"http://127.0.0.1:{deaf_port}/v1", connect=0.1))
    assert fault.code == "provider_timeout"
    assert fault.sentence == "acme took no connection within 0.1 seconds"


@pytest.mark.parametrize("place", [BEFORE, HEAD])
async def test_no_first_byte_in_time(model, open_provider, place):
    model.script = lambda _: Plan(role_first=False, at={place: Hang()})
    fault = await fault_of(open_provider(first_byte=0.1))
    assert fault.code == "provider_timeout"
    assert fault.sentence == "acme did not begin its reply within 0.1 seconds"
    await model.wait_for_disconnects(1)


async def test_silence_in_the_middle(model, open_provider):
    model.script = lambda _: Plan(at={1: Hang()})
    text, fault = await said_before_fault(open_provider(between=0.1))
    assert text == "Hello "
    assert fault.code == "provider_timeout"
    assert fault.sentence == "acme fell silent for 0.1 seconds in the middle of its reply"
    await model.wait_for_disconnects(1)


async def test_a_slow_but_steady_reply_is_not_silent(model, open_provider):
    model.script = lambda _: Plan(deltas=("a",) * 20, delta_delay=0.02)
    assert await text_of(open_provider(between=0.2)) == "a" * 20


async def test_silence_after_the_finish_loses_nothing(model, open_provider):
    model.script = lambda _: Plan(usage="last", done=False, at={FINISHED: Hang()})
    assert await text_of(open_provider(between=0.1)) == "Hello there"


@pytest.mark.parametrize("plan", [Plan(at={1: Hang()}), Plan(deltas=("a",) * 99, delta_delay=0.02)])
async def test_a_reply_that_takes_too_long_in_all(model, open_provider, plan):
    model.script = lambda _: plan
    text, fault = await said_before_fault(open_provider(total=0.2))
    assert text
    assert fault.code == "provider_timeout"
    assert fault.sentence == "acme did not finish its reply within 0.2 seconds"
    await model.wait_for_disconnects(1)


async def test_no_answer_within_all_the_time_there_is(model, open_provider):
    model.script = lambda _: Plan(at={BEFORE: Hang()})
    fault = await fault_of(open_provider(total=0.1))
    assert fault.sentence == "acme did not finish its reply within 0.1 seconds"


async def listen_slowly(model, provider):
    """Takes two batches, lets 0.3 seconds go by while the rest arrives, then takes the rest."""
    first, second = asyncio.Event(), asyncio.Event()
    model.script = lambda _: Plan(deltas=("a", "b", "c"), at={1: Wait(first), 2: Wait(second)})
    async with aclosing(provider.stream(PROMPT)) as stream:
        await anext(stream)
        first.set()
        await anext(stream)
        await asyncio.sleep(0.3)  # the passing of time is what these tests are about
        second.set()
        return [batch async for batch in stream]


async def test_a_slow_listener_is_not_the_providers_silence(model, open_provider):
    assert await listen_slowly(model, open_provider(between=0.1))


async def test_a_slow_listener_has_no_more_time_in_all(model, open_provider):
    with pytest.raises(ProviderError, match=r"within 0\.2 seconds"):
        await listen_slowly(model, open_provider(total=0.2))


# --- Connections -------------------------------------------------------------------------------


async def test_connections_are_used_again(model, provider):
    for _ in range(5):
        await batches(provider)
    assert (model.calls, model.connections) == (5, 1)


async def test_a_refusal_leaves_its_connection_usable(model, provider):
    model.script = lambda _: Plan(status=429, body=ERROR)
    for _ in range(3):
        await fault_of(provider)
    assert (model.calls, model.connections) == (3, 1)


async def test_more_calls_than_any_pool(model, provider):
    gate = asyncio.Event()
    model.script = lambda _: Plan(at={HEAD: Wait(gate)})
    calls = [asyncio.create_task(text_of(provider)) for _ in range(150)]
    await model.wait_until(lambda: model.open_calls == 150)
    gate.set()
    assert set(await asyncio.gather(*calls)) == {"Hello there"}


async def round_trip(model):
    """Whatever the model server wrote before this has been read by everyone in the loop."""
    reader, writer = await asyncio.open_connection(*_address(model))
    writer.write(b"GET /v1/models HTTP/1.1\r\n\r\n")
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    writer.close()
    await writer.wait_closed()


def _address(model):
    host, _, port = model.base_url.removeprefix("http://").removesuffix("/v1").partition(":")
    return host, int(port)


async def test_a_reply_ends_with_done_and_its_connection_is_kept_all_the_same(model, provider):
    gate = asyncio.Event()
    model.script = lambda _: Plan(at={FINISHED: Wait(gate)})
    assert await text_of(provider) == "Hello there"
    assert model.open_calls == 1
    gate.set()
    await model.wait_until(lambda: model.open_calls == 0)
    await round_trip(model)
    await batches(provider)
    assert model.connections == 2  # the round trip's own is one of them


async def test_a_connection_that_does_not_end_after_done_is_closed(model, provider):
    model.script = lambda _: Plan(at={FINISHED: Hang()})
    assert await text_of(provider) == "Hello there"
    await model.wait_for_disconnects(1)


def dies(*numbers: int, how):
    return lambda call: Plan(at={BEFORE: how}) if call.number in numbers else Plan()


@pytest.mark.parametrize("how", [Cut(), Reset()])
async def test_a_kept_connection_that_died_is_replaced_once_and_silently(model, provider, how):
    model.script = dies(2, how=how)
    await batches(provider)
    assert await text_of(provider) == "Hello there"
    assert (model.calls, model.connections) == (3, 2)
    assert model.requests[1].body == model.requests[2].body


@pytest.mark.parametrize("how", [Cut(), Reset()])
async def test_it_is_replaced_only_once(model, provider, how):
    model.script = dies(2, 3, 4, how=how)
    await batches(provider)
    assert (await fault_of(provider)).code == "provider_cut_off"
    assert model.calls == 3


@pytest.mark.parametrize("how", [Cut(), Reset()])
async def test_a_new_connection_that_dies_is_not_replaced(model, provider, how):
    model.script = dies(1, how=how)
    assert (await fault_of(provider)).code == "provider_cut_off"
    assert model.calls == 1


async def test_nothing_is_sent_again_once_an_answer_has_begun(model, provider):
    begun = Plan(raw=(b"HTTP/1.1 200 OK\r\ncontent-",))
    model.script = lambda call: begun if call.number == 2 else Plan()
    await batches(provider)
    assert (await fault_of(provider)).code == "provider_cut_off"
    assert model.calls == 2


# --- Stopping ----------------------------------------------------------------------------------


async def test_closing_the_stream_closes_the_connection_at_once(model, provider):
    model.script = lambda _: Plan(at={1: Hang()})
    async with aclosing(provider.stream(PROMPT)) as stream:
        await anext(stream)
    await model.wait_for_disconnects(1)
    assert model.open_connections == 0


@pytest.mark.parametrize("place", [BEFORE, HEAD, 1])
async def test_cancelling_the_caller_closes_the_connection_at_once(model, provider, place):
    model.script = lambda _: Plan(at={place: Hang()})
    call = asyncio.create_task(batches(provider))
    await model.wait_for_calls(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await model.wait_for_disconnects(1)


async def test_closing_the_provider_ends_its_calls(model, open_provider):
    provider = open_provider()
    model.script = lambda _: Plan(at={1: Hang()})
    call = asyncio.create_task(fault_of(provider))
    await model.wait_for_calls(1)
    await provider.close()
    assert (await call).code == "provider_cut_off"
    await model.wait_for_disconnects(1)


# --- The model server itself -------------------------------------------------------------------


async def test_the_model_server_echoes(model, provider):
    assert await text_of(provider) == "You said: I am a bit sad."
    assert isinstance(model.requests[0], Call)


# --- The catalog -------------------------------------------------------------------------------


def test_a_known_model_has_its_window():
    assert catalog.model_named("gpt-4.1").context_window == 1_047_576
    assert catalog.GROQ_MODELS[0].id == "llama-3.3-70b-versatile"
    assert catalog.OPENAI_MODELS[0].id == "gpt-4o-mini"


def test_an_unknown_model_is_usable_with_a_careful_window():
    assert catalog.model_named("mine") == Model("mine", "mine", catalog.DEFAULT_CONTEXT_WINDOW)
