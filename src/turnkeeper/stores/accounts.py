"""`contracts.AccountStore` over any database that a driver can run transactions on."""

from collections.abc import Mapping, Sequence

from turnkeeper.contracts import Forgotten, FoundKey, FoundToken
from turnkeeper.domain import IdempotencyKey, Key, Login, Role, SessionToken, User
from turnkeeper.stores.sql import accounts, forgetting
from turnkeeper.stores.store import Driver


class SqlAccounts:
    """`contracts.AccountStore` over a driver, which it does not close."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def create_user(self, user: User, password_hash: str | None) -> None:
        await self._driver.write(lambda: accounts.create_user(user, password_hash))

    async def list_users(self) -> Sequence[User]:
        return await self._driver.read(accounts.list_users)

    async def get_user(self, name: str) -> User:
        return await self._driver.read(lambda: accounts.get_user(name))

    async def set_role(self, name: str, role: Role) -> None:
        await self._driver.write(lambda: accounts.set_role(name, role))

    async def delete_user(self, name: str) -> None:
        await self._driver.write(lambda: accounts.delete_user(name))

    async def find_password(self, name: str) -> tuple[User, str] | None:
        return await self._driver.read(lambda: accounts.find_password(name))

    async def set_password(self, name: str, password_hash: str | None) -> None:
        await self._driver.write(lambda: accounts.set_password(name, password_hash))

    async def set_disabled(self, name: str, disabled: bool) -> None:
        await self._driver.write(lambda: accounts.set_disabled(name, disabled))

    async def begin_login(self, login: Login, password_hash: str, new_hash: str | None) -> bool:
        return await self._driver.write(
            lambda: accounts.begin_login(login, password_hash, new_hash)
        )

    async def find_login(self, hash_: str) -> tuple[Login, User] | None:
        return await self._driver.read(lambda: accounts.find_login(hash_))

    async def touch_login(self, hash_: str, now: int) -> None:
        await self._driver.write(lambda: accounts.touch_login(hash_, now))

    async def end_login(self, hash_: str) -> None:
        await self._driver.write(lambda: accounts.end_login(hash_))

    async def drop_logins(self, created_before: int, seen_before: int) -> int:
        return await self._driver.write(
            lambda: accounts.drop_logins(created_before, seen_before), long=True
        )

    async def create_key(self, key: Key, hash_: str, request: IdempotencyKey | None = None) -> None:
        await self._driver.write(lambda: accounts.create_key(key, hash_, request))

    async def list_keys(self, user: str | None) -> Sequence[Key]:
        return await self._driver.read(lambda: accounts.list_keys(user))

    async def get_key(self, id_: str) -> Key:
        return await self._driver.read(lambda: accounts.get_key(id_))

    async def rotate_key(
        self,
        id_: str,
        hash_: str,
        old_until: int | None,
        *,
        now: int,
        request: IdempotencyKey | None = None,
    ) -> Key:
        return await self._driver.write(
            lambda: accounts.rotate_key(id_, hash_, old_until, now, request)
        )

    async def revoke_key(self, id_: str) -> Key:
        return await self._driver.write(lambda: accounts.revoke_key(id_))

    async def find_key(self, hash_: str) -> FoundKey | None:
        return await self._driver.read(lambda: accounts.find_key(hash_))

    async def keep_uses(self, uses: Mapping[str, int]) -> None:
        await self._driver.write(lambda: accounts.keep_uses(uses))

    async def create_token(
        self, token: SessionToken, hash_: str, *, now: int, request: IdempotencyKey | None = None
    ) -> None:
        await self._driver.write(lambda: accounts.create_token(token, hash_, now, request))

    async def find_token(self, hash_: str) -> FoundToken | None:
        return await self._driver.read(lambda: accounts.find_token(hash_))

    async def drop_tokens(self, expired_before: int) -> int:
        return await self._driver.write(lambda: accounts.drop_tokens(expired_before), long=True)

    async def set_admin_key(self, key: Key, hash_: str | None) -> None:
        await self._driver.write(lambda: accounts.set_admin_key(key, hash_))

    async def forget_credentials(self, user: str) -> Forgotten:
        return await self._driver.write(lambda: forgetting.forget_credentials(user))

    async def forget_some(self, owner: str, limit: int) -> Forgotten:
        return await self._driver.write(lambda: forgetting.forget_some(owner, limit), long=True)

    async def can_anyone_enter(self) -> bool:
        return await self._driver.read(accounts.can_anyone_enter)
