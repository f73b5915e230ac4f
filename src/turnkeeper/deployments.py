"""Deployments: prompts, models and settings under a name, in revisions that never change."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from turnkeeper.blueprint import DEPLOYMENT_NAME, diff_blueprints, is_deployment_name
from turnkeeper.contracts import Made, Store
from turnkeeper.domain import Basis, Blueprint, Deployment, IdempotencyKey, Revision
from turnkeeper.errors import ContextTooLong, DeploymentReadOnly, InvalidRequest, RevisionNotFound
from turnkeeper.offers import Offers
from turnkeeper.plans import Plans


class Difference(msgspec.Struct, frozen=True):
    """How one revision differs from another: each field that does, as it was and as it is."""

    before: Revision
    after: Revision
    changes: dict[str, tuple[Any, Any]]


class Deployments:
    """What is done with deployments; sessions are made of them elsewhere."""

    def __init__(
        self,
        store: Store,
        offers: Offers,
        plans: Plans,
        default: str,
        *,
        now: Callable[[], int],
        new_id: Callable[[], str],
    ) -> None:
        """`default` is the name of the one that sessions belong to which name none.

        `new_id` gives ids for revisions.
        """
        self.default = default
        self._store = store
        self._offers = offers
        self._plans = plans
        self._now = now
        self._new_id = new_id

    async def list(self) -> Sequence[Deployment]:
        """All of them, by name."""
        return await self._store.list_deployments()

    async def get(self, name: str) -> Deployment:
        """Raises DeploymentNotFound."""
        return await self._store.get_deployment(name)

    async def create(
        self, name: str, blueprint: Blueprint, *, key: IdempotencyKey | None = None
    ) -> Made[Deployment]:
        """Publish the first revision under a new name.

        Raises:
            DeploymentExists, KeyReused
            DeploymentNotFound: what was made under the key before is gone.
            InvalidRequest: the name, a model, or a prompt that fills the window.
        """
        if not is_deployment_name(name):
            raise InvalidRequest(f"name must be {DEPLOYMENT_NAME}")
        revision = self._revise(name, blueprint)
        self._check(revision)
        made = await self._store.publish_revision(name, revision, "api", new=True, key=key)
        return Made(made, repeated=made.revision.id != revision.id)

    async def replace(self, name: str, blueprint: Blueprint) -> Deployment:
        """Publish a new revision, unless nothing is changed by it.

        Raises:
            DeploymentNotFound, DeploymentReadOnly
            InvalidRequest: a model, or a prompt that fills the window.
        """
        revision = self._revise(name, blueprint)
        self._check(revision)
        return await self._store.publish_revision(name, revision, "api", new=False)

    async def adopt(self, blueprints: Mapping[str, Blueprint], *, complete: bool) -> None:
        """Publish what the configuration defines.

        With `complete` it is all that a configuration defines, so that what an earlier one
        defined is deleted.
        """
        for name, blueprint in blueprints.items():
            revision = self._revise(name, blueprint)
            await self._store.publish_revision(name, revision, "file", new=None)
        for deployment in await self.list() if complete else ():
            if deployment.source == "file" and deployment.name not in blueprints:
                await self._store.delete_deployment(deployment.name, "file")

    def _revise(self, name: str, blueprint: Blueprint) -> Revision:
        """A revision to publish; the store gives it its number."""
        return Revision(self._new_id(), name, 0, blueprint, self._now())

    def _check(self, revision: Revision) -> None:
        blueprint = revision.blueprint
        for model in (blueprint.model, *blueprint.fallback_models):
            if model is not None and model not in self._offers.by_id:
                raise InvalidRequest(f"Unknown model: {model}")
        plan = self._plans.make(Basis(revision, {}, None))
        if plan.candidates[0].room <= 0:
            raise ContextTooLong(
                f"The prompt leaves no room for a conversation in"
                f" {plan.candidates[0].offer.model.id}"
            )

    async def list_revisions(self, name: str) -> Sequence[Revision]:
        """All that were ever published, newest first. Raises DeploymentNotFound."""
        return await self._store.list_revisions(name)

    async def diff(self, name: str, before: str | None, after: str | None) -> Difference:
        """How two revisions differ, by their ids.

        `after` None is the current one; `before` None is the one that was made before `after`,
        or `after` itself if it is the first.

        Raises:
            DeploymentNotFound, RevisionNotFound
        """
        deployment = await self.get(name)
        newest_first = await self.list_revisions(name)
        new = _find(newest_first, after or deployment.revision.id)
        if before is None:
            old = next((r for r in newest_first if r.number < new.number), new)
        else:
            old = _find(newest_first, before)
        return Difference(old, new, diff_blueprints(old.blueprint, new.blueprint))

    async def roll_back(self, name: str, revision: str) -> Deployment:
        """Publish an earlier revision again.

        Raises:
            DeploymentNotFound, RevisionNotFound, DeploymentReadOnly
        """
        return await self._store.roll_back(name, revision, self._now())

    async def delete(self, name: str) -> None:
        """Make no more sessions of it. Those there are go on with the revisions they have.

        Raises:
            DeploymentNotFound
            DeploymentReadOnly: the configuration defines it.
        """
        if name == self.default:
            raise DeploymentReadOnly("The default deployment cannot be deleted")
        await self._store.delete_deployment(name, "api")


def _find(revisions: Sequence[Revision], id_: str) -> Revision:
    for revision in revisions:
        if revision.id == id_:
            return revision
    raise RevisionNotFound("Engine state not found")
