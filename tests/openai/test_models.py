"""`/v1/models`, by the official SDK."""

import openai
import pytest

from tests.openai.conftest import MODEL

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_models_are_listed_and_read(client: openai.AsyncOpenAI) -> None:
    listed = [model async for model in client.models.list()]
    assert listed[0].id == MODEL
    assert await client.models.retrieve(MODEL) == listed[0]


async def test_an_id_may_hold_slashes(client: openai.AsyncOpenAI) -> None:
    """The SDK writes them as %2F; others as they are."""
    by_sdk = await client.models.retrieve(f"server/{MODEL}")
    plain = await client.get(f"/models/server/{MODEL}", cast_to=openai.types.Model)
    assert by_sdk.id == plain.id == MODEL


@pytest.mark.parametrize("id_", ["nobody", "no/body/at/all"])
async def test_an_unknown_model(client: openai.AsyncOpenAI, id_: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.models.retrieve(id_)
    assert missing.value.code == "model_not_found"
