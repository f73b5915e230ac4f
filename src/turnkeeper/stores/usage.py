"""`contracts.UsageStore` over any database that a driver can run transactions on."""

from collections.abc import Mapping

from turnkeeper.contracts import UsageBy
from turnkeeper.domain import Sums
from turnkeeper.stores.sql import usage
from turnkeeper.stores.store import Driver


class SqlUsage:
    """`contracts.UsageStore` over a driver, which it does not close."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def fold(self, requests: Mapping[tuple[str, str], int], limit: int) -> int:
        return await self._driver.write(lambda: usage.fold(requests, limit), long=True)

    async def list_usage(
        self, owner: str | None, by: UsageBy, first: str, last: str
    ) -> Mapping[str, Sums]:
        return await self._driver.read(lambda: usage.list_usage(owner, by, first, last))
