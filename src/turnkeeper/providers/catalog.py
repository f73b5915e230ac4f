"""What is known of model companies by name: where they answer and which models they offer.

A list like this ages. It is a convenience and no gate: a model that is not in it can be used by
its id all the same.
"""

from turnkeeper.domain import Model

GROQ_URL = "https://api.groq.com/openai/v1"
OPENAI_URL = "https://api.openai.com/v1"

DEFAULT_CONTEXT_WINDOW = 32_768  # tokens; small enough for nearly every model served today

GROQ_MODELS = (
    Model("llama-3.3-70b-versatile", "Llama 3.3 70B", 131_072),
    Model("llama-3.1-8b-instant", "Llama 3.1 8B", 131_072),
    Model("openai/gpt-oss-120b", "GPT-OSS 120B", 131_072),
    Model("openai/gpt-oss-20b", "GPT-OSS 20B", 131_072),
)

OPENAI_MODELS = (
    Model("gpt-4o-mini", "GPT-4o mini", 128_000),
    Model("gpt-4o", "GPT-4o", 128_000),
    Model("gpt-4.1", "GPT-4.1", 1_047_576),
    Model("gpt-4.1-mini", "GPT-4.1 mini", 1_047_576),
    Model("gpt-5-mini", "GPT-5 mini", 400_000),
    Model("gpt-5", "GPT-5", 400_000),
)


def model_named(model_id: str) -> Model:
    """The model as it is known here, or one of that id with the default window."""
    for model in (*GROQ_MODELS, *OPENAI_MODELS):
        if model.id == model_id:
            return model
    return Model(model_id, model_id, DEFAULT_CONTEXT_WINDOW)
