"""Whether a provider's error says that the prompt is longer than the model's context. Pure.

There is no standard for it: a few providers have a code, most only a sentence, each its own. The
table of those sentences is in the tests, with whose they are.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

_MOST_READ = 4000  # characters of an error's text
_MOST_TOKENS = 10**9  # what is more is no count of tokens


class Overflow(msgspec.Struct, frozen=True):
    """A prompt that was too long, and both counts, where the provider gave them."""

    prompt_tokens: int | None = None
    context_window: int | None = None


def find_overflow(error: Any) -> Overflow | None:
    """What the error object of an answer says of a prompt that is too long, if it does.

    Not for rate limits, which speak of tokens too.
    """
    fields = error if isinstance(error, dict) else {"message": error}
    text = " ".join(_texts_of(fields))[:_MOST_READ]
    codes = {fields.get("code"), fields.get("type")} if _are_plain(fields) else set()
    if not (codes & _CODES or any(sign.search(text) for sign in _SIGNS)):
        return None
    return Overflow(
        _count(fields.get("n_prompt_tokens")) or _first(_PROMPTS, text),
        _count(fields.get("n_ctx")) or _first(_WINDOWS, text),
    )


def _texts_of(fields: dict[str, Any]) -> Iterator[str]:
    """Its message, and that of whoever stands behind it: routers pass on what they got."""
    metadata = fields.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    for text in (fields.get("message"), fields.get("detail"), raw):
        if isinstance(text, str):
            yield text


def _are_plain(fields: dict[str, Any]) -> bool:
    return all(isinstance(fields.get(name), str | int | None) for name in ("code", "type"))


def _first(patterns: Sequence[re.Pattern[str]], text: str) -> int | None:
    for pattern in patterns:
        if found := pattern.search(text):
            return _count(int(found[1].replace(",", "")))
    return None


def _count(number: Any) -> int | None:
    return number if type(number) is int and 0 < number < _MOST_TOKENS else None


_CODES = frozenset(
    {
        "context_length_exceeded",  # OpenAI, Groq, DeepSeek, xAI
        "exceed_context_size_error",  # llama.cpp
        "model_context_window_exceeded",  # Z.ai
    }
)


def _patterns(*sources: str) -> tuple[re.Pattern[str], ...]:
    """Patterns in which N is a number and the first one is meant."""
    number = r"(\d[\d,]{0,14})"
    return tuple(re.compile(source.replace("N", number), re.IGNORECASE) for source in sources)


_SIGNS = _patterns(
    r"maximum (context|prompt|model|input) length",
    r"(prompt|input|conversation)( \(\d+ tokens\))?( is)? too long",
    r"(exceeds?|exceeded|longer than|greater than|above) (the |this )?(\w+ )?(model's )?"
    r"(maximum )?(available )?(context (window|length|size|limit)|model token limit)",
    r"context (window|length|size) (has been )?exceed",
    r"context window exceeds limit",
    r"context length of only \d",
    r"reduce the length of (the|your) (messages|prompt|input)",
    r"(input|prompt) token count.{0,40} exceeds the (maximum|limit)",
    r"input tokens exceed the configured limit",
    r"configured context size is",
    r"range of input length should be",
    r"`inputs` (tokens \+ `max_new_tokens` must be|must have less than)",
    r"number of tokens in the prompt cannot exceed",
    r"prompt exceeds max length",
)
_WINDOWS = _patterns(
    r"maximum (?:context|prompt|model|input) length (?:is|of) N",
    r"model's context length \(N",
    r"maximum context length \(N",
    r"with N maximum context length",
    r"tokens > N maximum",
    r"exceed context limit: \d+ \+ \d+ > N",
    r"maximum number of tokens allowed \(?N",
    r"n_ctx: N",
    r"context (?:window|length|size) (?:of|is)(?: only)? N",
    r"while limit is N",
    r"(?:exceeds|configured) (?:the )?limit of N",
    r"model token limit: N",
    r"input length should be \[\d+, N\]",
    r"must (?:be <=|have less than) N",
    r"the prompt cannot exceed N",
)
_PROMPTS = _patterns(
    # What was asked for may include room for the reply, so the prompt's own share goes before it.
    r"\(N (?:in the messages|in your prompt|of text input|in the prompt)",
    r"prompt contains (?:at least )?N (?:input )?tokens",
    r"N tokens from the input",
    r"request has N input tokens",
    r"resulted in N tokens",
    r"prompt has N tokens",
    r"request contains N tokens",
    r"requested (?:about |a total of )?N tokens",
    r"requested tokens? \(N\)",
    r"\(requested: N\)",
    r"too long: N tokens",
    r"exceed context limit: N \+",
    r"(?:input|prompt) token count (?:\(|of )N",
    r"(?:input|prompt) \((?:length )?N(?: tokens)?\)",
    r"input length (?:\()?N",
    r"n_keep: N",
    r"current length is N",
    r"given: N `?(?:inputs|tokens)",
    r"received N",
)
