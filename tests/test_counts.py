"""How many bytes make a token, learned from what providers report."""

import random
import time

import pytest

from turnkeeper.counts import BYTES_PER_TOKEN, Counts


def taught(true: float, reports: int = 40, noise: float = 0.05, seed: int = 1) -> Counts:
    """Counts of a model m that has so many bytes in a token, more or less."""
    counts, chance = Counts(), random.Random(seed)
    for _ in range(reports):
        weight = chance.randint(2000, 20_000)
        counts.learn("m", weight, int(weight / (true * chance.uniform(1 - noise, 1 + noise))))
    return counts


def test_nothing_is_known_of_a_model_at_first() -> None:
    assert Counts().bytes_per_token("m") == BYTES_PER_TOKEN == 3
    assert Counts().error("m") == 0


@pytest.mark.parametrize("true", [2.0, 2.5, 3.0, 4.3, 6.5])
@pytest.mark.parametrize("seed", range(5))
def test_the_guess_comes_near_the_truth_and_stays_below(true: float, seed: int) -> None:
    guess = taught(true, seed=seed).bytes_per_token("m")
    assert 0.85 * true <= guess <= true


def test_models_are_learned_apart() -> None:
    counts = taught(2.0)
    assert counts.bytes_per_token("other") == BYTES_PER_TOKEN


@pytest.mark.parametrize("found", [(100, 10), (4000, 7), (4000, 0), (4000, 100_000), (0, 0)])
def test_a_tiny_prompt_and_an_absurd_report_teach_nothing(found: tuple[int, int]) -> None:
    counts = Counts()
    counts.learn("m", *found)
    assert counts.bytes_per_token("m") == BYTES_PER_TOKEN
    assert not counts.changed


def test_the_guess_stays_between_one_byte_and_eight() -> None:
    assert taught(0.6).bytes_per_token("m") == 1
    assert taught(10).bytes_per_token("m") <= 8


def test_a_guess_that_is_settled_does_not_wobble() -> None:
    counts, chance = taught(4.0), random.Random(3)
    before = counts.version
    for _ in range(500):
        counts.learn("m", 10_000, int(10_000 / (4.0 * chance.uniform(0.98, 1.02))))
    assert counts.version - before <= 10


def test_it_follows_when_people_begin_to_speak_another_language() -> None:
    counts = taught(4.3)
    for _ in range(30):
        counts.learn("m", 9000, 4500)
    assert counts.bytes_per_token("m") <= 2


def test_the_error_says_how_far_guesses_were_off() -> None:
    assert 0.1 < taught(4.3, reports=3).error("m") < 0.5
    assert taught(4.3, reports=200).error("m") < 0.12


def test_a_refusal_corrects_the_guess_at_once() -> None:
    counts = taught(4.3)
    counts.correct("m", 8000, 4000)
    assert counts.bytes_per_token("m") == 2
    before = counts.bytes_per_token("other")
    counts.correct("other", 8000, None)
    assert counts.bytes_per_token("other") < 0.85 * before


def test_a_window_is_never_taken_for_larger_than_configured() -> None:
    counts = Counts()
    counts.note_window("m", 4096)
    assert counts.window("m", 32_768) == 4096
    assert counts.window("m", 1000) == 1000
    counts.note_window("m", 3)
    assert counts.window("m", 32_768) == 4096


def test_what_was_learned_can_be_kept() -> None:
    counts = taught(2.0)
    news = counts.take_news()
    again = Counts(news)
    assert abs(again.bytes_per_token("m") - counts.bytes_per_token("m")) <= 0.25
    assert again.error("m") == counts.error("m")
    assert counts.take_news() == ()


def test_a_report_costs_next_to_nothing() -> None:
    counts, took = taught(4.0), list[float]()
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(2000):
            counts.learn("m", 10_000, 2500)
        took.append((time.perf_counter() - began) / 2000)
    assert min(took) < 5e-6  # measured: 1.1 µs; a busy machine takes more


def test_the_likely_count_is_the_mean_of_the_reports() -> None:
    counts = taught(4.0)
    assert counts.bytes_per_token("m") <= counts.likely_bytes_per_token("m")
    assert 3.8 < counts.likely_bytes_per_token("m") < 4.2
    assert counts.likely_bytes_per_token("other") == BYTES_PER_TOKEN
