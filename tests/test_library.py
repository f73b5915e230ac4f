"""Documents beneath HTTP: their order as a property, and the checks of what can be kept."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.contracts import NewSection
from turnkeeper.domain import SectionChange, SectionDraft
from turnkeeper.stores import migrations
from turnkeeper.stores.sql import documents as sql
from turnkeeper.stores.sqlite import drive

NOW = 1_700_000_000_000


@contextmanager
def a_database() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for _, _, script in migrations.all_migrations():
            connection.executescript(script)
        yield connection


def order(connection: sqlite3.Connection) -> Sequence[str]:
    _, sizes = drive(connection, lambda: sql.list_section_sizes("ann", "d"))
    return [each.id for each in sizes]


# A move of the section that stands at one place to another, or a new one there, or one's end.
steps = st.lists(st.tuples(st.sampled_from(["move", "add", "delete"]), st.integers(0, 9),
                           st.integers(0, 12)), max_size=40)  # fmt: skip


@given(st.integers(0, 6), steps)
def test_whatever_is_done_to_sections_their_order_is_that_of_a_list(
    count: int, steps: list[tuple[str, int, int]]
) -> None:
    expected = [f"c{number}" for number in range(count)]
    with a_database() as database:
        new = [NewSection(id_, SectionDraft()) for id_ in expected]
        drive(database, lambda: sql.create_document("ann", "d", "D", new, NOW))
        for number, (act, place, to) in enumerate(steps):
            if act == "add":
                section = NewSection(f"n{number}", SectionDraft(), to)
                drive(database, lambda s=section: sql.create_section("ann", "d", s, NOW))
                expected.insert(to, section.id)
            elif expected:
                id_ = expected.pop(place % len(expected))
                if act == "move":
                    change = SectionChange(position=to)
                    drive(
                        database,
                        lambda i=id_, c=change: sql.update_section(
                            "ann", "d", i, c, now=NOW, if_stamp=None
                        ),
                    )
                    expected.insert(to, id_)
                else:
                    drive(database, lambda i=id_: sql.delete_section("ann", "d", i, NOW, None))
            assert order(database) == expected
        assert drive(database, lambda: sql.get_document("ann", "d")).sections == len(expected)
