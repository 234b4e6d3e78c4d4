"""How a worker keeps an endpoint busy, and lets go of it."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from resources.action.delivery.claims import Claimed
from resources.action.delivery.endpoints import Health
from resources.action.delivery.lanes import DEEPEST, Lanes
from resources.action.delivery.model import DeliveryState, Message, Outcome, Result

NOW = dt.datetime(2026, 4, 1, tzinfo=dt.UTC)
TAKEN, DOWN = Outcome(Result.DELIVERED, "HTTP 200", 200), Outcome(Result.UNAVAILABLE, "HTTP 500", 500)


def claimed(number: int, endpoint: str = "hook") -> Claimed:
    return Claimed(number, "acme", f"k{number}", endpoint, "webhook", "hash", {}, Message("t", "x"), "sha", 1, 1,
                   DeliveryState.QUEUED, False, Health(), NOW)


@contextmanager
def lanes(send: Callable[[Claimed], Outcome], threads: int = 4, per_endpoint: int = 2) -> Iterator[Lanes]:
    opened = Lanes(send, threads, per_endpoint)
    try:
        yield opened
    finally:
        opened.close()


def gathered(opened: Lanes, count: int) -> list[int]:
    numbers: list[int] = []
    while len(numbers) < count:
        numbers += [one.claimed.delivery_id for one in opened.gather(1.0, 10.0)]
    return numbers


def test_everything_is_sent_once_and_an_endpoint_never_more_than_its_share_at_a_time() -> None:
    lock, at_once, most = threading.Lock(), [0], [0]

    def send(one: Claimed) -> Outcome:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        with lock:
            at_once[0] -= 1
        return TAKEN

    with lanes(send) as opened:
        opened.add(claimed(number) for number in range(200))
        assert sorted(gathered(opened, 200)) == list(range(200))
        assert opened.in_hand == 0 and most[0] <= 2


def test_of_a_quick_endpoint_more_is_taken_ahead_and_of_no_other() -> None:
    with lanes(lambda one: TAKEN) as opened:
        place = ("acme", "hook")
        assert (opened.depth(place), opened.free) == (2, 8)
        opened.add(claimed(number) for number in range(2 * DEEPEST))
        gathered(opened, 2 * DEEPEST)
        assert (opened.depth(place), opened.free) == (DEEPEST, 8 + DEEPEST - 2)
        assert opened.depth(("acme", "other")) == 2


def test_what_was_taken_ahead_goes_back_unsent_when_the_endpoint_is_not_well() -> None:
    begun, sent = threading.Event(), []

    def send(one: Claimed) -> Outcome:
        begun.wait(10)
        sent.append(one.delivery_id)
        return DOWN

    with lanes(send) as opened:
        opened.add(claimed(number) for number in range(50))
        opened.add([claimed(99, "other")])
        begun.set()
        ended = gathered(opened, len(sent) or 1)
        while opened.in_hand:
            ended += [one.claimed.delivery_id for one in opened.gather(0.01, 0.01)]
            ended += [one.delivery_id for one in opened.unsent()]
        assert sorted(ended) == [*range(50), 99]
        assert 99 in sent and len(sent) <= 5
        assert opened.depth(("acme", "hook")) == 2
