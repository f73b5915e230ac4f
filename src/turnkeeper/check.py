"""What a configuration amounts to: a report to read before anything is served.

Looks and asks; changes nothing, locks nothing, shows no key. The server may be running.
"""

import errno
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from turnkeeper.blueprint import placeholders
from turnkeeper.command import count, safe
from turnkeeper.compose import (
    NOBODY_CAN_ENTER,
    bind,
    inspect_database,
    shown_address,
    visit_accounts,
)
from turnkeeper.config import Config, DeploymentEntry, shown_database
from turnkeeper.domain import Model
from turnkeeper.errors import ConfigError
from turnkeeper.offers import Offer, Offers
from turnkeeper.roster import Roster, Seat, check_deployments, open_roster
from turnkeeper.stores.migrations import newest_migration

_SHOWN_MODELS = 30  # of one provider; some list hundreds
_SHOWN_VARIABLES = 10  # of one deployment; braces may stand in a prompt for other reasons


async def check(config: Config, write: Callable[[str], None]) -> bool:
    """Write the report line by line. Whether the server could start, and its default model answer.

    Raises:
        ConfigError: there is no provider to ask.
    """
    problems: list[str] = []
    async with open_roster(config, ask_all=True) as roster:
        database = await _database(config.database, problems)
        write(f"Address    {_address(config, problems)}")
        if config.public_url:
            write(f"Public     {_shown_url(config.public_url)}")
        write(f"Access     {await _access(config, problems)}")
        write(f"Database   {shown_database(config.database)}: {database}")
        offers = _offers(roster, problems)
        default = offers.listed[0] if offers else None
        write(f"Default    {default.model.id if default else 'none'}")
        for line in _providers(roster, offers):
            write(line)
        write("")
        for line in _deployments(config, roster, offers, problems):
            write(line)
    problems.extend(_silence(roster, default))
    write("")
    for problem in problems:
        write(f"Problem: {problem}.")
    write("The server cannot serve like this." if problems else "Ready to serve.")
    return not problems


# --- Address and database ----------------------------------------------------------------------


def _address(config: Config, problems: list[str]) -> str:
    address = shown_address(config.host, config.port)
    try:
        bind(config.host, config.port).close()
    except ConfigError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE:
            return f"{address}, in use at the moment"  # by this very server, perhaps
        problems.append(error.sentence)
        return f"{address}, not to be had"
    return address if config.port else f"{address}, which takes a free port"


async def _database(url: str, problems: list[str]) -> str:
    """How the database stands, in a few words."""
    try:
        applied = await inspect_database(url)
    except ConfigError as error:
        problems.append(error.sentence)
        return "cannot be used"
    if applied is None:
        return "nothing there yet; the first start makes it"
    newest = newest_migration()
    if applied < newest:
        return f"schema {applied}; the next start brings it to {newest}"
    return f"schema {applied}, up to date"


async def _access(config: Config, problems: list[str]) -> str:
    if config.auth == "off":
        return "off: nobody is asked for credentials, everything belongs to local"
    if config.admin_key is not None:
        return "keys: everyone is asked for credentials; admin has the key of admin_key"
    try:
        async with visit_accounts(config.database) as accounts:
            users, keys = await accounts.list_users(), await accounts.list_keys()
            can_enter = await accounts.can_anyone_enter()
    except ConfigError:  # it is not there, or older: what is wrong with it is said elsewhere
        users, keys, can_enter = [], [], False
    if not can_enter:
        problems.append(NOBODY_CAN_ENTER)
    known = f"{count(len(users), 'user')}, {count(len(keys), 'API key')}"
    return f"keys: everyone is asked for credentials; {known}"


# --- Providers ---------------------------------------------------------------------------------


def _offers(roster: Roster, problems: list[str]) -> Offers | None:
    try:
        return roster.make_offers()
    except ConfigError as error:
        problems.append(error.sentence)
        return None


def _silence(roster: Roster, default: Offer | None) -> Iterator[str]:
    """The default model's provider cannot be asked."""
    for seat in roster.seats:
        if default and default.provider is seat.provider and seat.heard and seat.heard.fault:
            yield f"The default model cannot answer: {seat.heard.fault}"


def _providers(roster: Roster, offers: Offers | None) -> Iterator[str]:
    listed = offers.listed if offers else ()
    seats = {id(seat.provider): seat for seat in roster.seats}
    built_in = [offer for offer in listed if id(offer.provider) not in seats]
    if built_in:
        yield ""
        yield "eliza: built in"
        yield from _models(built_in, None)
    for seat in roster.seats:
        yield ""
        yield f"{seat.entry.name}: {_shown_url(seat.entry.base_url)}, {_key(seat)}, {_heard(seat)}"
        yield from _models([offer for offer in listed if offer.provider is seat.provider], seat)


def _shown_url(url: str) -> str:
    """Without a user and a password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _key(seat: Seat) -> str:
    return f"key of {seat.entry.key_env}" if seat.entry.key_env else "no key"


def _heard(seat: Seat) -> str:
    if seat.heard is None:
        return "not asked"
    if seat.heard.fault is not None:
        return f"no answer: {seat.heard.fault}"
    listed = "" if seat.heard.listed is not None else ", without a list of its models"
    return f"answers in {seat.heard.seconds * 1000:.0f} ms{listed}"


def _models(offers: list[Offer], seat: Seat | None) -> Iterator[str]:
    width = max((len(offer.model.id) for offer in offers[:_SHOWN_MODELS]), default=0)
    listed = seat.heard.listed if seat and seat.heard else None
    known = None if listed is None else {model.id for model in listed}
    for offer in offers[:_SHOWN_MODELS]:
        strange = known is not None and offer.asked_as not in known
        note = ", not in the provider's own list" if strange else ""
        yield f"  {offer.model.id:{width}}  {_said_of(offer.model)}{note}"
    if len(offers) > _SHOWN_MODELS:
        yield f"  and {len(offers) - _SHOWN_MODELS} more"
    if not offers:
        yield "  offers nothing"


def _said_of(model: Model) -> str:
    said = [f"{model.context_window:>9,} tokens"]
    if model.images is not None:
        said.append("images" if model.images else "no images")
    prices = ((model.input_price, "in"), (model.output_price, "out"))
    said += [f"{price:g} a million {way}" for price, way in prices if price is not None]
    return ", ".join(said)


# --- Deployments -------------------------------------------------------------------------------


def _deployments(
    config: Config, roster: Roster, offers: Offers | None, problems: list[str]
) -> Iterator[str]:
    entries = config.all_deployments()
    warnings: list[str] = []
    if offers:
        try:
            warnings = check_deployments(entries, offers, roster.absences())
        except ConfigError as error:
            problems.extend(error.sentence.splitlines())
    yield "deployments:"
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        yield f"  {entry.name:{width}}  {', '.join(_said_of_deployment(entry, offers))}"
    for warning in warnings:
        yield f"  Warning: {warning}."


def _said_of_deployment(entry: DeploymentEntry, offers: Offers | None) -> Iterator[str]:
    blueprint = entry.blueprint
    yield f"/deployments/{entry.name}"
    if entry.default:
        yield "the default"
    default = offers.listed[0].model.id if offers else "none"
    yield f"model {blueprint.model or default}"
    if blueprint.fallback_models:
        yield f"else {' or '.join(blueprint.fallback_models)}"
    if blueprint.messages:
        yield count(len(blueprint.messages), "message")
    names = placeholders(blueprint)
    if names:
        shown = " ".join(f"{{{safe(name[:40])}}}" for name in names[:_SHOWN_VARIABLES])
        more = f" and {len(names) - _SHOWN_VARIABLES} more" if names[_SHOWN_VARIABLES:] else ""
        yield f"variables {shown}{more}"
