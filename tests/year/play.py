"""Lives sequences of steps in world and model, and says in words where they part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.year import shrink
from tests.year.chance import Year
from tests.year.model import Model
from tests.year.steps import Step, to_json
from tests.year.world import Ground, World, compare


@dataclass(frozen=True)
class Failure:
    """A sequence after whose last step something is not as it should be, and what."""

    steps: tuple[Step, ...]
    differences: tuple[str, ...]

    def __str__(self) -> str:
        listed = "\n".join(f"    {number}. {step}" for number, step in enumerate(self.steps, start=1))
        return (f"after these {len(self.steps)} steps\n{listed}\n  " + "\n  ".join(self.differences[:10]) +
                f"\n  the steps as a file for `python -m tests.year --replay FILE`:\n{to_json(self.steps)}")


def play(ground: Ground, sequence: Callable[[Model], Iterable[Step]]) -> tuple[int, Failure | None]:
    """Live the steps that `sequence` gives, which may look at the model between them.

    Returns how many there were, and the failure at which it ended, if any.
    """
    with ground.world() as (world, model):
        beside = world.look().beside
        lived: list[Step] = []
        for step in sequence(model):
            lived.append(step)
            differences = _live(world, model, step, beside)
            if differences:
                return len(lived), Failure(tuple(lived), tuple(differences))
    return len(lived), None


def _live(world: World, model: Model, step: Step, beside: str) -> list[str]:
    wanted, error = model.apply(step), world.apply(step)
    sight = world.look()
    differences = compare(model, sight)
    if error != wanted:
        differences.insert(0, f"the step should end with {wanted or 'no error'}, ends with {error or 'none'}")
    if sight.beside != beside:
        differences.append("what the tenant beside has is not what it was")
    return differences


def year(ground: Ground, seed: int, length: int, until: Callable[[], bool]) -> tuple[int, Failure | None]:
    """Live up to `length` steps of the year of a seed, as long as `until` says no."""

    def steps(model: Model) -> Iterable[Step]:
        for number, step in enumerate(Year(seed).steps(model)):
            if number >= length or until():
                return
            yield step

    return play(ground, steps)


def shortened(ground: Ground, failure: Failure, seconds: float) -> Failure:
    """The shortest failure that can be made of one in these seconds."""
    failures = {failure.steps: failure}

    def fails(sequence: Sequence[Step]) -> int | None:
        count, other = play(ground, lambda _: sequence)
        if other is not None:
            failures[other.steps] = other
        return None if other is None else count

    return failures[tuple(shrink.shortest(failure.steps, fails, seconds))]
