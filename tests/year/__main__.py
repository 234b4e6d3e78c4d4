"""`make test-year`: years of the shop, one after the other, for some minutes; ends with 1 at the first failure.

    python -m tests.year --seed 7 --minutes 5
    python -m tests.year --replay FILE       # the steps that a failure printed
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.year import play
from tests.year.steps import from_json
from tests.year.world import grounded

LENGTH = 60  # steps of a year
_SHRINKING = 120.0  # seconds


def main() -> int:
    arguments = _arguments()
    with grounded() as ground:
        if arguments.replay is not None:
            count, failure = play.play(ground, lambda _: from_json(arguments.replay.read_text()))
            print(failure or f"{count} steps, all as they should be")
            return 1 if failure else 0
        end = time.monotonic() + 60 * arguments.minutes
        seed, lived = arguments.seed, 0
        while time.monotonic() < end:
            count, failure = play.year(ground, seed, LENGTH, lambda: time.monotonic() > end)
            lived += count
            print(f"seed {seed}: {count} steps{'' if failure is None else ', the last one is not as it should be'}",
                  flush=True)
            if failure is not None:
                print(f"looking for a shorter sequence, for {_SHRINKING:.0f} s at most", flush=True)
                print(f"seed {seed} fails {play.shortened(ground, failure, _SHRINKING)}")
                print(f"the whole year again: make test-year SEED={seed}")
                return 1
            seed += 1
        print(f"{lived} steps in {seed - arguments.seed} years, all as they should be")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.year", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="the first year; the next ones count on from it")
    parser.add_argument("--minutes", type=float, default=5.0, help="when to end")
    parser.add_argument("--replay", type=Path, help="live the steps in this file instead")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
