"""How providers say that a prompt is longer than the model's context, and what is read of it."""

from typing import Any

import pytest

from turnkeeper.providers.overflow import Overflow, find_overflow

# Whose it is: the error object or its message, the prompt's tokens, the window.
SAID: dict[str, tuple[Any, int | None, int | None]] = {
    "OpenAI": (
        {
            "message": "This model's maximum context length is 8192 tokens. However, your "
            "messages resulted in 9001 tokens. Please reduce the length of the messages.",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        },
        9001,
        8192,
    ),
    "OpenAI, with room for the reply": (
        (
            "This model's maximum context length is 4097 tokens. However, you requested 4295 "
            "tokens "
            "(3245 in the messages, 1050 in the completion). Please reduce the length of the "
            "messages "
            "or completion."
        ),
        3245,
        4097,
    ),
    "OpenAI, completions": (
        (
            "This model's maximum context length is 8191 tokens, however you requested 10346 "
            "tokens "
            "(10346 in your prompt; 5 for the completion). Please reduce your prompt; or "
            "completion "
            "length."
        ),
        10346,
        8191,
    ),
    "OpenAI, newer": (
        {
            "message": "Input tokens exceed the configured limit of 272000 tokens. Your messages "
            "resulted in 300123 tokens. Please reduce the length of the messages.",
            "code": "context_length_exceeded",
        },
        300123,
        272000,
    ),
    "OpenAI, without numbers": (
        "Your input exceeds the context window of this model. Please adjust your input.",
        None,
        None,
    ),
    "Groq": (
        {
            "message": "Please reduce the length of the messages or completion.",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        },
        None,
        None,
    ),
    "llama.cpp": (
        {
            "code": 400,
            "message": "the request exceeds the available context size. try increasing the "
            "context size or enable context shift",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 14429,
            "n_ctx": 8192,
        },
        14429,
        8192,
    ),
    "llama.cpp, older": (
        {"code": 500, "message": "the request exceeds the available context size, try increasing"},
        None,
        None,
    ),
    "llama.cpp, in the middle": ("Context size has been exceeded.", None, None),
    "llama-cpp-python": ("Requested tokens (2285) exceed context window of 2048", 2285, 2048),
    "vLLM": (
        {
            "object": "error",
            "message": "This model's maximum context length is 16384 tokens. However, you "
            "requested 122946 tokens (112946 in the messages, 10000 in the completion). Please "
            "reduce the length of the messages or completion.",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
        112946,
        16384,
    ),
    "vLLM, newer": (
        (
            "This model's maximum context length is 4096 tokens. However, you requested 1000 "
            "output "
            "tokens and your prompt contains at least 3097 input tokens, for a total of at "
            "least 4097 "
            "tokens."
        ),
        3097,
        4096,
    ),
    "vLLM, no room for the reply": (
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum "
            "context "
            "length is 4096 tokens and your request has 10 input tokens (5000 > 4096 - 10)."
        ),
        10,
        4096,
    ),
    "vLLM, engine": (
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        5000,
        4096,
    ),
    "vLLM, scheduler": (
        "Input prompt (35247 tokens) is too long and exceeds limit of 1000",
        35247,
        1000,
    ),
    "SGLang": (
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        5000,
        4096,
    ),
    "SGLang, with room for the reply": (
        (
            "Requested token count exceeds the model's maximum context length of 4096 tokens. You "
            "requested a total of 5000 tokens: 4000 tokens from the input messages and 1000 tokens "
            "for the completion."
        ),
        4000,
        4096,
    ),
    "Anthropic": ("prompt is too long: 210000 tokens > 200000 maximum", 210000, 200000),
    "Anthropic, with room for the reply": (
        (
            "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000, decrease "
            "input length or `max_tokens` and try again"
        ),
        190000,
        200000,
    ),
    "Bedrock": ("Input is too long for requested model.", None, None),
    "Gemini": (
        {
            "code": 400,
            "message": "The input token count (1196265) exceeds the maximum number of tokens "
            "allowed (1048575).",
            "status": "INVALID_ARGUMENT",
        },
        1196265,
        1048575,
    ),
    "Gemini, newer": (
        "The input token count exceeds the maximum number of tokens allowed 1048576.",
        None,
        1048576,
    ),
    "Mistral": (
        {
            "object": "error",
            "message": "Prompt contains 300000 tokens, too large for model with 131072 maximum "
            "context length",
            "type": "invalid_request_prompt",
            "code": "3051",
        },
        300000,
        131072,
    ),
    "xAI": (
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
        537812,
        131072,
    ),
    "DeepSeek": (
        (
            "This model's maximum context length is 65536 tokens. However, you requested 77234 "
            "tokens "
            "(69042 in the messages, 8192 in the completion)."
        ),
        69042,
        65536,
    ),
    "OpenRouter": (
        (
            "This endpoint's maximum context length is 131072 tokens. However, you requested about "
            "140000 tokens (139000 of text input, 1000 in the output)."
        ),
        139000,
        131072,
    ),
    "OpenRouter, passing on": (
        {
            "message": "Provider returned error",
            "code": 400,
            "metadata": {
                "raw": '{"error":{"message":"prompt is too long: 201 tokens > 200 maximum"}}',
                "provider_name": "Anthropic",
            },
        },
        201,
        200,
    ),
    "Ollama": ("the input length exceeds the context length", None, None),
    "Ollama, chat": ("prompt too long; exceeded max context length by 123 tokens", None, None),
    "LM Studio": (
        (
            "The number of tokens to keep from the initial prompt is greater than the context "
            "length "
            "(n_keep: 10978>= n_ctx: 8192). Try to load the model with a larger context length."
        ),
        10978,
        8192,
    ),
    "LM Studio, older": (
        (
            "Trying to keep the first 10978 tokens when context the overflows. However, the "
            "model is "
            "loaded with context length of only 8192 tokens, which is not enough."
        ),
        None,
        8192,
    ),
    "Cerebras": (
        (
            "Please reduce the length of the messages or completion. Current length is 42328 while "
            "limit is 40000"
        ),
        42328,
        40000,
    ),
    "Moonshot": (
        "Invalid request: Your request exceeded model token limit: 262144 (requested: 300000)",
        300000,
        262144,
    ),
    "MiniMax": ("invalid params, context window exceeds limit", None, None),
    "Z.ai": ({"code": "model_context_window_exceeded", "message": "x"}, None, None),
    "GLM": ({"code": "1261", "message": "Prompt exceeds max length"}, None, None),
    "DashScope": ("Range of input length should be [1, 30720]", None, 30720),
    "GitHub Copilot": ("prompt token count of 70000 exceeds the limit of 64000", 70000, 64000),
    "Cohere": (
        "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000.",
        5000,
        4081,
    ),
    "TGI": (
        "Input validation error: `inputs` must have less than 4096 tokens. Given: 5000 `inputs`",
        5000,
        4096,
    ),
    "TGI, with room for the reply": (
        (
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: "
            "5000 "
            "`inputs` tokens and 20 `max_new_tokens`"
        ),
        5000,
        4096,
    ),
    "with thousands marked": (
        "Prompt has 300,000 tokens, but the configured context size is 131,072 tokens",
        300000,
        131072,
    ),
}

NOT_SAID: dict[str, Any] = {
    "nothing": {},
    "null": None,
    "a number": 7,
    "a list": [],
    "fields of odd types": {"code": ["context_length_exceeded"], "type": {}, "message": 7},
    "a rate": "Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30000, Used 29000, "
    "Requested 1443. Please try again in 4.77s.",
    "a request too large for a rate": "Request too large for model `m` on tokens per minute "
    "(TPM): Limit 6000, Requested 14368, please reduce your message size and try again.",
    "a reply too long": "max_tokens is too large: 20000. This model supports at most 4096 "
    "completion tokens, whereas you provided 20000.",
    "a wrong field": {"message": "Unknown parameter: 'context'", "code": "unknown_parameter"},
    "a name too long": "The name of the tool is too long: 80 characters, at most 64",
    "no such model": "The model `long-context-32k` does not exist",
}


@pytest.mark.parametrize(("error", "prompt", "window"), SAID.values(), ids=SAID)
def test_a_prompt_too_long_is_recognised(
    error: Any, prompt: int | None, window: int | None
) -> None:
    assert find_overflow(error) == Overflow(prompt, window)


@pytest.mark.parametrize("error", NOT_SAID.values(), ids=NOT_SAID)
def test_other_errors_are_not_taken_for_it(error: Any) -> None:
    assert find_overflow(error) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"n_prompt_tokens": "9", "n_ctx": -1},
        {"n_prompt_tokens": True, "n_ctx": 2.5},
        {"n_prompt_tokens": 10**12, "n_ctx": None},
    ],
)
def test_counts_that_are_none_are_left_out(fields: dict[str, Any]) -> None:
    assert find_overflow({"type": "exceed_context_size_error", **fields}) == Overflow()


def test_a_very_long_message_is_not_searched_to_its_end() -> None:
    assert find_overflow("x" * 5000 + "prompt is too long") is None
