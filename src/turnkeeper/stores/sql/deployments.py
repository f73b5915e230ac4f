"""Deployments, their revisions, and what a session is made on."""

from collections.abc import Mapping, Sequence

from turnkeeper.contracts import Source
from turnkeeper.domain import Basis, ChatConfig, Deployment, IdempotencyKey, Revision
from turnkeeper.errors import (
    DeploymentExists,
    DeploymentNotFound,
    DeploymentReadOnly,
    RevisionNotFound,
)
from turnkeeper.stores.sql.idempotency import once
from turnkeeper.stores.sql.rows import (
    Row,
    Transaction,
    decode_config,
    decode_revision,
    decode_variables,
    encode_blueprint,
)

# --- Revisions ---------------------------------------------------------------------------------

_REVISION = "SELECT id, deployment, number, blueprint, created_at FROM revisions "
GET_REVISION = _REVISION + "WHERE id = ?"
LIST_REVISIONS = _REVISION + "WHERE deployment = ? ORDER BY number DESC"
REVISION_OF_DEPLOYMENT = "SELECT 1 FROM revisions WHERE id = ? AND deployment = ?"
NEWEST_NUMBER = "SELECT MAX(number) FROM revisions WHERE deployment = ?"
INSERT_REVISION = """
INSERT INTO revisions (id, deployment, number, blueprint, idle_timeout, max_age, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""

GET_DATA = "SELECT variables, config FROM session_data WHERE session_id = ?"


def get_revision(id_: str) -> Transaction[Revision]:
    rows = yield GET_REVISION, (id_,)
    return decode_revision(rows[0])


def get_basis(
    taken: Row, known: Mapping[str, Revision], *, configured: bool = False
) -> Transaction[Basis]:
    """What the turns of a session are made on, whose row `TAKE_NUMBER` has just returned.

    With `configured` it has got a config since.
    """
    session_id, *_, model, revision, variables, section, has_config = taken
    values, config = _NOTHING, _NO_CONFIG
    if variables or has_config or configured:
        rows = yield GET_DATA, (session_id,)
        values, config = decode_variables(rows[0][0]), decode_config(rows[0][1])
    found = known.get(revision) or (yield from get_revision(revision))
    return Basis(found, values, model, section, config)


_NOTHING: Mapping[str, str] = {}
_NO_CONFIG: ChatConfig | None = None


def list_revisions(name: str) -> Transaction[Sequence[Revision]]:
    yield from get_deployment(name)
    rows = yield LIST_REVISIONS, (name,)
    return [decode_revision(row) for row in rows]


# --- Deployments -------------------------------------------------------------------------------

_DEPLOYMENT = """
SELECT d.name, d.source, d.created_at, d.updated_at, r.id, r.deployment, r.number, r.blueprint,
    r.created_at
FROM deployments d JOIN revisions r ON r.id = d.revision
"""
GET_DEPLOYMENT = _DEPLOYMENT + "WHERE d.name = ?"
LIST_DEPLOYMENTS = _DEPLOYMENT + "ORDER BY d.name"

LOCK_DEPLOYMENT = "UPDATE deployments SET name = name WHERE name = ? RETURNING source"
# Two that race to create one meet here: the second waits, and finds it made.
INSERT_DEPLOYMENT = """
INSERT INTO deployments (name, revision, source, created_at, updated_at)
VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING RETURNING name
"""
SET_REVISION = """
UPDATE deployments SET revision = ?, source = ?, updated_at = ? WHERE name = ?
"""
SET_SOURCE = "UPDATE deployments SET source = ? WHERE name = ?"
DELETE_DEPLOYMENT = "DELETE FROM deployments WHERE name = ?"

# Sessions that were made before there were deployments get the first revision that there is.
ANY_REVISION = "SELECT 1 FROM revisions LIMIT 1"
ADOPT_SESSIONS = "UPDATE sessions SET revision = ?, due_at = ? WHERE revision = ''"


def publish_revision(
    name: str,
    revision: Revision,
    source: Source,
    new: bool | None,
    key: IdempotencyKey | None = None,
) -> Transaction[Deployment]:
    work, now = _publish_revision(name, revision, source, new), revision.created_at
    return (yield from once(key, work, name=lambda made: made.name, again=get_deployment, now=now))


def _publish_revision(
    name: str, revision: Revision, source: Source, new: bool | None
) -> Transaction[Deployment]:
    now = revision.created_at
    source_now = yield from _lock(name)
    if source_now is None:
        if new is False:
            raise DeploymentNotFound("Deployment not found")
        made = yield INSERT_DEPLOYMENT, (name, revision.id, source, now, now)
        if not made:  # by someone else, in this moment
            return (yield from _publish_revision(name, revision, source, new))
    elif new:
        raise DeploymentExists(f"There is a deployment {name} already")
    else:
        _check_source(name, source_now, source)
        deployment = yield from get_deployment(name)
        if deployment.revision.blueprint == revision.blueprint:
            yield SET_SOURCE, (source, name)
            return (yield from get_deployment(name))
        yield SET_REVISION, (revision.id, source, now, name)
    is_first = not (yield ANY_REVISION, ())
    newest = yield NEWEST_NUMBER, (name,)
    number = (newest[0][0] or 0) + 1
    blueprint = revision.blueprint
    published = (encode_blueprint(blueprint), blueprint.idle_timeout, blueprint.max_age)
    yield INSERT_REVISION, (revision.id, name, number, *published, now)
    if is_first:
        may_expire = (blueprint.idle_timeout, blueprint.max_age) != (None, None)
        yield ADOPT_SESSIONS, (revision.id, now if may_expire else None)
    return (yield from get_deployment(name))


def _lock(name: str) -> Transaction[Source | None]:
    """What the deployment was defined by; None if there is none."""
    rows = yield LOCK_DEPLOYMENT, (name,)
    return rows[0][0] if rows else None


def _check_source(name: str, defined_by: Source, changed_by: Source) -> None:
    if defined_by == "file" and changed_by == "api":
        raise DeploymentReadOnly(f"The configuration defines {name}: change it there")


def list_deployments() -> Transaction[Sequence[Deployment]]:
    rows = yield LIST_DEPLOYMENTS, ()
    return [_decode_deployment(row) for row in rows]


def get_deployment(name: str) -> Transaction[Deployment]:
    rows = yield GET_DEPLOYMENT, (name,)
    if not rows:
        raise DeploymentNotFound("Deployment not found")
    return _decode_deployment(rows[0])


def roll_back(name: str, revision: str, now: int) -> Transaction[Deployment]:
    defined_by = yield from _lock(name)
    if defined_by is None:
        raise DeploymentNotFound("Deployment not found")
    _check_source(name, defined_by, "api")
    if not (yield REVISION_OF_DEPLOYMENT, (revision, name)):
        raise RevisionNotFound("Engine state not found")
    yield SET_REVISION, (revision, "api", now, name)
    return (yield from get_deployment(name))


def delete_deployment(name: str, source: Source) -> Transaction[None]:
    defined_by = yield from _lock(name)
    if defined_by is None:
        raise DeploymentNotFound("Deployment not found")
    _check_source(name, defined_by, source)
    yield DELETE_DEPLOYMENT, (name,)


def _decode_deployment(row: Row) -> Deployment:
    name, source, created_at, updated_at, *revision = row
    return Deployment(name, decode_revision(revision), source, created_at, updated_at)
