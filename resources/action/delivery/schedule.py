"""When a failed delivery is tried again.

The schedule is that of Standard Webhooks' reference services: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h,
each up to 20 % longer or shorter. The jitter is computed from the delivery key and the attempt, so that deliveries that
failed together do not come back together, and that the same delivery is always tried at the same times.
"""

from __future__ import annotations

import datetime as dt
import hashlib

WAITS = tuple(dt.timedelta(seconds=seconds) for seconds in (
    5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600))
"""Waits after the first, second, ... failed attempt."""

ATTEMPTS = len(WAITS) + 1
"""Attempts before a delivery is given up."""

JITTER = 0.2
LONGEST_WAIT = dt.timedelta(hours=24)
"""The longest pause that a receiver can ask for."""


def wait_after(delivery_key: str, attempt: int, retry_after: float | None = None) -> dt.timedelta | None:
    """How long to wait after a failed attempt (from 1), or None when it was the last.

    `retry_after` (seconds, what the receiver asked for) makes the wait longer, never shorter.
    """
    if attempt >= ATTEMPTS:
        return None
    digest = hashlib.sha256(f"{delivery_key}\0{attempt}".encode()).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    wait = WAITS[attempt - 1] * (1 - JITTER + 2 * JITTER * fraction)
    return max(wait, pause(retry_after))


def pause(retry_after: float | None) -> dt.timedelta:
    """The pause that a receiver asked for, within bounds."""
    return min(dt.timedelta(seconds=max(0.0, retry_after or 0.0)), LONGEST_WAIT)
