"""The schema as numbered steps; each runs once, in a transaction, in order."""

import re
from importlib import resources

from turnkeeper.errors import ConfigError

CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS turnkeeper_migrations (number BIGINT NOT NULL PRIMARY KEY, name TEXT)
"""
APPLIED = "SELECT MAX(number) FROM turnkeeper_migrations"
RECORD = "INSERT INTO turnkeeper_migrations (number, name) VALUES (?, ?)"


def all_migrations() -> list[tuple[int, str, str]]:
    """Every migration as (number, name, SQL script), in order."""
    files = sorted(
        (file for file in resources.files(__package__).iterdir() if file.name.endswith(".sql")),
        key=lambda file: file.name,
    )
    return [(int(file.name[:4]), file.name, file.read_text("utf-8")) for file in files]


def table_names() -> list[str]:
    """The tables that the migrations make, in that order."""
    scripts = "\n".join(script for _, _, script in all_migrations())
    return re.findall(r"^CREATE TABLE (\w+)", scripts, re.MULTILINE)


def newest_migration() -> int:
    """The number of the schema that this program works with."""
    return all_migrations()[-1][0]


def pending_migrations(applied: int) -> list[tuple[int, str, str]]:
    """The migrations after number `applied`.

    Raises:
        ConfigError: the database has had migrations that this program does not know.
    """
    newest = newest_migration()
    if applied > newest:
        raise ConfigError(
            f"The database has schema {applied} and this program knows only {newest}:"
            " it was made by a newer Turnkeeper. Upgrade the program"
        )
    return [migration for migration in all_migrations() if migration[0] > applied]


def check_current(applied: int) -> None:
    """For those who must not migrate.

    Raises:
        ConfigError: the database still needs migrations, or has had some that this program does
            not know.
    """
    if pending_migrations(applied):
        raise ConfigError(
            f"The database has schema {applied} and this program needs"
            f" {all_migrations()[-1][0]}: start its server once, which brings it up to date"
        )
