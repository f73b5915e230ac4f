"""From the settings to the providers, and to what they offer together.

The providers that the environment names come first, then the tables `[providers.NAME]` in the
order of the file. Asking what one offers is the only thing done here that needs the network.
Whether the deployments of the file fit what is offered is told here too.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from turnkeeper.blueprint import fill_in
from turnkeeper.config import SETTINGS, Config, DeploymentEntry, ModelEntry, ProviderEntry
from turnkeeper.contracts import Provider
from turnkeeper.counts import BYTES_PER_TOKEN
from turnkeeper.domain import Blueprint, Model
from turnkeeper.errors import ConfigError, ProviderError
from turnkeeper.offers import Offers, make_offers
from turnkeeper.prompt import capacity, weigh
from turnkeeper.providers import catalog
from turnkeeper.providers.completions import ListedModel
from turnkeeper.providers.eliza import Eliza
from turnkeeper.providers.faults import Timeouts
from turnkeeper.providers.openai import OpenAIProvider

LIST_SECONDS = 5.0  # for a provider to say what it offers; less if it has less for a reply
ELIZA_PACE = 0.03  # seconds a word: so that one sees it stream


class Heard(msgspec.Struct, frozen=True):
    """What a provider said when it was asked what it offers.

    Attributes:
        listed: its list; None if it answered without one, or did not answer.
        fault: why there was no answer, None if there was.
        seconds: how long it took.
    """

    listed: Sequence[ListedModel] | None
    fault: str | None
    seconds: float


class Seat:
    """A provider that can be asked, the entry it comes from, and what it said."""

    def __init__(self, entry: ProviderEntry, config: Config, title: str | None = None) -> None:
        """Raises ConfigError for a key that cannot be sent."""
        self.entry = entry
        self.heard: Heard | None = None
        self._window = config.context_window
        self.provider = OpenAIProvider(
            entry.name,
            entry.base_url,
            entry.key,
            [self._model(model) for model in entry.models or ()],
            Timeouts(
                connect=entry.connect_timeout,
                first_byte=entry.first_byte_timeout,
                between=entry.between_timeout,
                total=entry.total_timeout,
            ),
            attempts=entry.attempts,
            title=title,
        )

    async def ask(self) -> None:
        """Have it say what it offers, and offer that if the entry leaves it to it."""
        start = time.monotonic()
        listed, fault = None, None
        try:
            patience = min(LIST_SECONDS, self.entry.first_byte_timeout)
            listed = await self.provider.list_models(patience)
        except ProviderError as error:
            fault = error.sentence
        self.heard = Heard(listed, fault, time.monotonic() - start)
        if self.entry.models is None:
            self.provider.models = [
                self._model(ModelEntry(model.id), model.context_window) for model in listed or ()
            ]

    def adopt(self, model_id: str) -> None:
        """Offer one more model, which the settings name."""
        self.provider.models = [*self.provider.models, self._model(ModelEntry(model_id))]

    def _model(self, entry: ModelEntry, listed_window: int | None = None) -> Model:
        """What the entry says goes before the setting, the provider's list and the catalog."""
        known = catalog.model_named(entry.id)
        return Model(
            entry.id,
            entry.name or known.name,
            entry.context_window or self._window or listed_window or known.context_window,
            entry.images,
            entry.input_price,
            entry.output_price,
        )


class Roster:
    """Every provider that is configured. Made by `open_roster`."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError when there is none, or one that cannot be."""
        self._config = config
        self._built_in = (Eliza(ELIZA_PACE),) if config.model == "eliza" else ()
        self._first = None if self._built_in else _of_environment(config)
        tables = tuple(Seat(entry, config) for entry in config.providers)
        self.seats = (self._first, *tables) if self._first else tables
        if not self._providers:
            raise ConfigError(
                "No model provider is configured: set GROQ_API_KEY, OPENAI_API_KEY or"
                " OPENAI_BASE_URL, or serve with --model eliza, which needs nothing"
            )

    def make_offers(self) -> Offers:
        """What they offer together, the default first.

        Raises:
            ConfigError: nothing, or not the default.
        """
        default = self._config.model
        offers = make_offers(self._providers)
        if self._first and default and default not in offers.by_id and not self._is_away(default):
            self._first.adopt(default)
            offers = make_offers(self._providers)
        because = "".join(f"; {absence}" for absence in self.absences())
        if default and default not in offers.by_id:
            raise ConfigError(f"The model {default} is offered by no provider{because}")
        if not offers.listed:
            raise ConfigError(f"No provider offers a model{because}")
        return offers.led_by(default) if default else offers

    def absences(self) -> Iterator[str]:
        """A sentence for each provider that was left to say what it offers, and did not."""
        for seat in self._absent():
            fault = seat.heard.fault if seat.heard else None
            yield fault or f"{seat.entry.name} answers, but lists no models"

    def _absent(self) -> Iterator[Seat]:
        return (s for s in self.seats if s.entry.models is None and not s.provider.models)

    def _is_away(self, model_id: str) -> bool:
        """Whether it names a provider that did not say what it offers."""
        return any(model_id.startswith(f"{seat.entry.name}/") for seat in self._absent())

    @property
    def _providers(self) -> Sequence[Provider]:
        return (*self._built_in, *(seat.provider for seat in self.seats))


@asynccontextmanager
async def open_roster(config: Config, *, ask_all: bool = False) -> AsyncIterator[Roster]:
    """The providers, each asked what it offers if it has to be, or if all are asked.

    Raises:
        ConfigError: none is configured, or one that cannot be.
    """
    roster = Roster(config)
    asked = [seat for seat in roster.seats if ask_all or seat.entry.models is None]
    try:
        await asyncio.gather(*(seat.ask() for seat in asked))
        yield roster
    finally:
        for seat in roster.seats:
            await seat.provider.close()


def _of_environment(config: Config) -> Seat | None:
    """The provider that single settings name, if any.

    A table goes before Groq and OpenAI if it is called so, or uses the same key.
    """
    if config.openai_base_url:
        if config.model is None:
            raise ConfigError(
                "OPENAI_BASE_URL is set, so say which model to ask for there with --model"
            )
        entry = _entry(config, "server", config.openai_base_url, "openai_api_key", ())
        seat = Seat(entry, config, "the model server")
        seat.adopt(config.model)
        return seat
    if config.groq_api_key and not _has_table(config, "groq", "groq_api_key"):
        entry = _entry(config, "groq", catalog.GROQ_URL, "groq_api_key", catalog.GROQ_MODELS)
        return Seat(entry, config, "Groq")
    if config.openai_api_key and not _has_table(config, "openai", "openai_api_key"):
        entry = _entry(
            config, "openai", catalog.OPENAI_URL, "openai_api_key", catalog.OPENAI_MODELS
        )
        return Seat(entry, config, "OpenAI")
    return None


def _has_table(config: Config, name: str, setting: str) -> bool:
    return any(
        table.name == name or table.key_env in _VARIABLES[setting] for table in config.providers
    )


_VARIABLES = {setting.name: setting.variables for setting in SETTINGS}


def _entry(
    config: Config, name: str, url: str, setting: str, known: Sequence[Model]
) -> ProviderEntry:
    """What a table would say of a provider whose key is in `setting`."""
    key: str | None = getattr(config, setting)
    return ProviderEntry(
        name=name,
        base_url=url,
        key_env=_VARIABLES[setting][-1] if key else None,
        key=key,
        models=tuple(ModelEntry(model.id) for model in known),
        attempts=config.attempts,
        connect_timeout=config.connect_timeout,
        first_byte_timeout=config.first_byte_timeout,
        between_timeout=config.between_timeout,
        total_timeout=config.total_timeout,
    )


# --- Deployments -------------------------------------------------------------------------------


def check_deployments(
    entries: Sequence[DeploymentEntry], offers: Offers, absences: Iterable[str]
) -> list[str]:
    """Warnings about models that nobody offers, and that someone may who did not say. Pure.

    `absences` are those of the roster: with one, an unknown model may come back at a later start.

    Raises:
        ConfigError: every deployment that names a model which nobody offers, or whose prompt
            alone fills a model's window, a sentence each.
    """
    because = "; ".join(absences)
    problems: list[str] = []
    warnings: list[str] = []
    for entry in entries:
        for name in _models_of(entry.blueprint, offers):
            offer = offers.by_id.get(name)
            said = f"The deployment {entry.name}"
            if offer is None and because:
                warnings.append(f"{said} names the model {name}, which is not offered: {because}")
            elif offer is None:
                problems.append(f"{said} names the model {name}, which no provider offers")
            elif _room(entry.blueprint, offer.model) <= 0:
                problems.append(f"{said} leaves no room for a conversation in {name}")
    if problems:
        raise ConfigError("\n".join(problems))
    return warnings


def _models_of(blueprint: Blueprint, offers: Offers) -> Iterable[str]:
    """Those that may be asked, each once."""
    first = blueprint.model or offers.listed[0].model.id
    return dict.fromkeys((first, *blueprint.fallback_models))


def _room(blueprint: Blueprint, model: Model) -> int:
    """The weight of items that fit into the window beside the prompt, its variables as written."""
    weight = weigh(fill_in(blueprint, {}))
    return capacity(model.context_window, blueprint, weight, BYTES_PER_TOKEN)
