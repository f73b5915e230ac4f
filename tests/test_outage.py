"""A database that fails is said once, not at every attempt."""

import logging

import pytest

from turnkeeper.stores.outage import Outage


class Ticks:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_outage_is_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    outage = Outage("It cannot be written", tick=Ticks())
    outage.worked()
    for _ in range(100):
        outage.failed(OSError("full"))
        assert outage.lasts
    outage.worked()
    assert not outage.lasts
    assert caplog.messages == ["It cannot be written: full", "It cannot be written: that is over"]


def test_a_long_outage_is_a_line_a_minute_with_the_count(caplog: pytest.LogCaptureFixture) -> None:
    ticks = Ticks()
    outage = Outage("It cannot be written", tick=ticks)
    for _ in range(121):
        outage.failed(OSError("full"))
        ticks.now += 1
    assert caplog.messages[1:] == ["It cannot be written: full (60 times)"] * 2


def test_a_disk_that_has_room_for_some_does_not_flood_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outage = Outage("It cannot be written", tick=Ticks())
    for _ in range(100):
        outage.failed(OSError("full"))
        outage.worked()
    assert len(caplog.messages) == 2


def test_another_reason_is_said_at_once(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("It cannot be written", tick=Ticks())
    outage.failed(OSError("full"))
    outage.failed(OSError("damaged"))
    assert caplog.messages[1] == "It cannot be written: damaged"
