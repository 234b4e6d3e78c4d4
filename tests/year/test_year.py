"""A part of the year in every run of the tests, and what its own tools promise; `make test-year` lives the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from tests.year import model as modelled
from tests.year import play, shrink, steps
from tests.year.chance import Year
from tests.year.model import Content, Model
from tests.year.steps import Order, Step
from tests.year.world import Ground, grounded

SEED, LENGTH, SECONDS = 20260101, 24, 15.0
NORTH, LATER = Order("7", "2026-05-04T09:00:00+00:00", "north", "10.00"), Order(
    "7", "2026-05-04T09:00:00+00:00", "north", "12.00")
DAY = "orders_2026-05-04.csv"


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with grounded() as made:
        yield made


def test_a_part_of_the_year_is_as_it_should_be(ground: Ground) -> None:
    end = time.monotonic() + SECONDS
    _, failure = play.year(ground, SEED, LENGTH, lambda: time.monotonic() > end)
    assert failure is None, str(failure)


def test_what_is_not_as_it_should_be_is_seen_and_made_short(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelled, "accepted", lambda order, day, rules: order.amount != "12.00")
    sequence = [steps.Remove("nothing.csv"), steps.Deliver(DAY, (NORTH, LATER)), steps.Run(), steps.Reorder()]
    _, failure = play.play(ground, lambda _: sequence)
    assert failure is not None and failure.steps == tuple(sequence[:3])
    assert ("shop: published value ('day_shop', '2026-05-04', 'north'): should be 10.00, is 12.000000"
            in failure.differences)
    short = play.shortened(ground, failure, 600)
    assert short.steps == (steps.Deliver(DAY, (LATER,)), steps.Run())
    assert "1. Deliver(name='orders_2026-05-04.csv'" in str(short)


# The model --------------------------------------------------------------------------------------------------


def lived(*sequence: Step) -> Model:
    model = Model()
    for step in sequence:
        model.apply(step)
    return model


def value(model: Model, day: str = "2026-05-04", shop: str = "north") -> str:
    return str(model.numbers.published["day_shop", day, shop])


def test_the_model_counts_the_newest_delivery() -> None:
    assert value(lived(steps.Deliver("orders_2026-05-04_export_10.csv", (LATER,)),
                       steps.Deliver("orders_2026-05-04_export_9.csv", (NORTH,)), steps.Run())) == "12.00"
    assert value(lived(steps.Deliver("orders_2026-05-04_export_10.csv", (LATER,)), steps.Run(),
                       steps.Deliver("orders_2026-05-04_export_9.csv", (NORTH,)), steps.Run())) == "10.00"


def test_the_model_lets_content_that_comes_back_count() -> None:
    model = lived(steps.Deliver(DAY, (NORTH,)), steps.Run(), steps.Deliver(DAY, (LATER,)), steps.Run(),
                  steps.Deliver(DAY, (NORTH,)), steps.Run())
    assert value(model) == "10.00"
    assert [(version.opened, version.closed) for version in model.numbers.history[7]] == [(2, 4), (4, 6), (6, None)]


def test_the_model_publishes_nothing_before_a_run_and_refuses_what_is_no_number() -> None:
    model = lived(steps.Tolerate(0.5, 0.5), steps.Deliver(DAY, (NORTH, replace(NORTH, order_id="8", amount="many"))))
    assert model.numbers.published == {}
    assert model.apply(steps.Run()) is None
    assert (value(model), model.counts()[DAY]) == ("10.00", (2, 1, 1))
    model.apply(steps.Tolerate(0.5, 0.4))
    assert model.apply(steps.Run()) == "gate.failed"


def test_the_model_cuts_days_where_the_tenant_is() -> None:
    late = Order("7", "2026-05-04T23:30:00+00:00", "north", "10.00")
    assert value(lived(steps.Deliver(DAY, (late,)), steps.Run()), "2026-05-05") == "10.00"


# The tools --------------------------------------------------------------------------------------------------


def test_steps_read_back_from_json_are_the_steps_that_were_written() -> None:
    sequence = []
    for seed in range(10):
        model = Model(files={DAY: Content((NORTH,))})
        for _, step in zip(range(200), Year(seed).steps(model), strict=False):
            sequence.append(step)
            model.apply(step)
    assert steps.from_json(steps.to_json(sequence)) == sequence
    assert {type(step) for step in sequence} == set(steps.KINDS)


def test_a_seed_gives_the_same_year_each_time() -> None:
    first, second = ([step for _, step in zip(range(50), Year(3).steps(Model()), strict=False)] for _ in range(2))
    assert first == second


def test_the_shortest_sequence_has_no_step_and_no_order_too_many() -> None:
    needed = [steps.Deliver(DAY, (NORTH,)), steps.Rename("note", "remark"), steps.Run()]
    noise: list[Step] = [steps.Remove(f"{number}.csv") for number in range(20)]
    sequence = [*noise[:7], steps.Deliver(DAY, (LATER, NORTH, LATER)), *noise[7:], *needed[1:]]

    def fails(tried: Sequence[Step]) -> int | None:
        found = [number for number, step in enumerate(tried) if step in needed[1:] or (
            isinstance(step, steps.Deliver) and NORTH in step.orders)]
        return found[-1] + 1 if len(found) == len(needed) else None

    assert shrink.shortest(sequence, fails, 60) == needed
