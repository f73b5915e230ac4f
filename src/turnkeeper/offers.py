"""Which model answers to which id, over all providers. Pure.

A model is listed once, under its own id. Where an earlier provider has that id already, it is
listed as `provider/id`. And every model can be chosen as `provider/id`, listed so or not, unless
that is the own id of another.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from turnkeeper.contracts import Provider
from turnkeeper.domain import Model


class Offer(msgspec.Struct, frozen=True):
    """A model as callers see it, and who makes its replies.

    Attributes:
        model: under the id and name that it is listed by.
        asked_as: its id at the provider.
    """

    model: Model
    provider: Provider
    asked_as: str


class Offers(msgspec.Struct, frozen=True):
    """Every model there is: each once in `listed`, the default first; and by each of its ids."""

    listed: tuple[Offer, ...]
    by_id: Mapping[str, Offer]

    def led_by(self, default: str) -> "Offers":
        """The same, with this one as the default.

        Raises:
            KeyError: nothing is offered under this id.
        """
        first = self.by_id[default]
        rest = (offer for offer in self.listed if offer is not first)
        return Offers((first, *rest), self.by_id)


def make_offers(providers: Sequence[Provider]) -> Offers:
    """What these offer together, the earlier going before the later."""
    owners: dict[str, Provider] = {}  # of each plain id
    for provider, model in _all_models(providers):
        owners.setdefault(model.id, provider)
    listed: list[Offer] = []
    by_id: dict[str, Offer] = {}
    also: dict[str, Offer] = {}
    for provider, model in _all_models(providers):
        qualified = f"{provider.name}/{model.id}"
        shown = model
        if owners[model.id] is not provider:
            if qualified in owners:
                continue  # no id is left to it: that is the own one of another
            name = f"{model.name} ({provider.name})"
            shown = msgspec.structs.replace(model, id=qualified, name=name)
        offer = Offer(shown, provider, model.id)
        listed.append(offer)
        by_id[shown.id] = also[qualified] = offer
    return Offers(tuple(listed), also | by_id)


def _all_models(providers: Sequence[Provider]) -> Iterator[tuple[Provider, Model]]:
    for provider in providers:
        for model in provider.models:
            yield provider, model
