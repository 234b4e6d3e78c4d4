"""Lanes: what a worker has in hand, endpoint by endpoint.

An endpoint is sent so many deliveries at a time, however many of them the worker has taken. Of an endpoint that
answers at once it takes more than that ahead, so that its connections are never idle while the worker talks to the
database; the depth of a lane grows with every quick answer, and falls to the beginning with one that is slow. When an
attempt says that the endpoint is not well, what the lane took ahead is not sent any more but goes back to the queue.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from resources.action.delivery.claims import Attempt, Claimed, Place
from resources.action.delivery.model import Outcome, Result

DEEPEST = 256
"""Deliveries that are in hand for one endpoint at most. Each waits for eight others at most: should all of them be as
slow as they may be from now on, that is two minutes, less than a lease."""

_QUICK_SECONDS = 0.25
_IN_A_ROW = 8  # deliveries that a thread sends for one endpoint before others have their turn
_WELL = (Result.DELIVERED, Result.REJECTED)


@dataclass(eq=False)
class _Lane:
    depth: int
    waiting: deque[Claimed] = field(default_factory=deque)
    sending: int = 0


class Lanes:
    """Sends what it is given from a pool of threads. All methods are for one thread, the worker's own."""

    def __init__(self, send: Callable[[Claimed], Outcome], threads: int, per_endpoint: int) -> None:
        self._send, self._threads, self._per_endpoint = send, threads, per_endpoint
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="deliver")
        self._lock = threading.Lock()
        self._lanes: dict[Place, _Lane] = {}
        self._ended: queue.SimpleQueue[Attempt] = queue.SimpleQueue()
        self._unsent: list[Claimed] = []
        self.busy: Counter[Place] = Counter()

    @property
    def in_hand(self) -> int:
        """Deliveries that were given and are neither gathered nor given back."""
        return sum(self.busy.values())

    @property
    def free(self) -> int:
        """How many more it can take: two for each thread, and what quick endpoints are taken ahead."""
        with self._lock:
            ahead = sum(lane.depth - self._per_endpoint for lane in self._lanes.values())
        return 2 * self._threads + min(ahead, DEEPEST) - self.in_hand

    def depth(self, place: Place) -> int:
        """How many may be in hand for an endpoint that is well."""
        lane = self._lanes.get(place)
        return self._per_endpoint if lane is None else lane.depth

    def add(self, claimed: Iterable[Claimed]) -> None:
        """Send them, as soon as it is their turn."""
        for one in claimed:
            self.busy[one.place] += 1
            with self._lock:
                lane = self._lanes.setdefault(one.place, _Lane(self._per_endpoint))
                lane.waiting.append(one)
                starts = lane.sending < self._per_endpoint
                lane.sending += starts
            if starts:
                self._pool.submit(self._drain, lane)

    def gather(self, seconds: float, first: float) -> list[Attempt]:
        """Attempts that have ended: waits for one `first` seconds, then up to `seconds` for half of what is in hand."""
        gathered: list[Attempt] = []
        enough = self.in_hand // 2
        try:
            gathered.append(self._ended.get(timeout=first))
            until = time.monotonic() + seconds
            while len(gathered) <= enough:
                gathered.append(self._ended.get(timeout=max(until - time.monotonic(), 0)))
        except queue.Empty:
            pass
        self._drop(one.claimed.place for one in gathered)
        return gathered

    def unsent(self) -> list[Claimed]:
        """What will not be sent; to be given back to the queue."""
        with self._lock:
            unsent, self._unsent = self._unsent, []
        self._drop(one.place for one in unsent)
        return unsent

    def close(self) -> None:
        """Wait for what is being sent, send nothing more, and end the threads."""
        with self._lock:
            for lane in self._lanes.values():
                lane.waiting.clear()
        self._pool.shutdown(wait=True)

    def _drop(self, places: Iterable[Place]) -> None:
        for place in places:
            self.busy[place] -= 1
            if not self.busy[place]:
                del self.busy[place]

    def _drain(self, lane: _Lane) -> None:
        """Send what waits in a lane, a few at a time: others wait for the thread as well."""
        for _ in range(_IN_A_ROW):
            with self._lock:
                if not lane.waiting:
                    lane.sending -= 1
                    return
                claimed = lane.waiting.popleft()
            start = time.perf_counter()
            outcome = self._send(claimed)
            seconds = time.perf_counter() - start
            self._ended.put(Attempt(claimed, outcome, seconds * 1000))
            self._learn(lane, outcome, seconds)
        self._pool.submit(self._drain, lane)

    def _learn(self, lane: _Lane, outcome: Outcome, seconds: float) -> None:
        with self._lock:
            if outcome.result in _WELL and seconds < _QUICK_SECONDS:
                lane.depth = min(lane.depth + 1, max(DEEPEST, self._per_endpoint))
                return
            lane.depth = self._per_endpoint
            if outcome.result not in _WELL:
                self._unsent += lane.waiting
                lane.waiting.clear()
