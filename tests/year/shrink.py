"""A sequence that fails, made as short as can be: each try lives a part of it from the opening on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.year import steps
from tests.year.steps import Step

Fails = Callable[[Sequence[Step]], int | None]
"""Lives a sequence; returns how many of its steps it takes until something is not as it should be, None when all is."""


def shortest(sequence: Sequence[Step], fails: Fails, seconds: float) -> list[Step]:
    """A sequence that fails and is no longer than the one given, in about these seconds.

    First whole steps are left out, half of them at a time, then fewer (Zeller's delta debugging without complements);
    then the orders of a delivery, one by one. Without the time limit no step of what is returned can be left out.
    """
    end = time.monotonic() + seconds
    best = list(sequence)
    size = max(1, len(best) // 2)
    while time.monotonic() < end:
        smaller = _without_a_part(best, size, fails, end)
        if smaller is not None:
            best = smaller
            size = max(1, min(size, len(best) // 2))
        elif size > 1:
            size //= 2
        else:
            break
    while time.monotonic() < end and (simpler := _with_fewer_orders(best, fails, end)) is not None:
        best = simpler
    return best


def _without_a_part(sequence: list[Step], size: int, fails: Fails, end: float) -> list[Step] | None:
    """What still fails without `size` steps in a row; later ones are tried first."""
    for start in range(max(0, len(sequence) - size), -1, -size):
        if time.monotonic() > end:
            break
        shorter = sequence[:start] + sequence[start + size:]
        if shorter and (length := fails(shorter)) is not None:
            return shorter[:length]
    return None


def _with_fewer_orders(sequence: list[Step], fails: Fails, end: float) -> list[Step] | None:
    for number, step in enumerate(sequence):
        if not isinstance(step, steps.Deliver):
            continue
        for at in range(len(step.orders)):
            if time.monotonic() > end:
                return None
            less = replace(step, orders=step.orders[:at] + step.orders[at + 1:])
            simpler = [*sequence[:number], less, *sequence[number + 1:]]
            if (length := fails(simpler)) is not None:
                return simpler[:length]
    return None
