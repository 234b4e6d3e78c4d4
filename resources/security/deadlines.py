"""Conversations over sockets that end in time, whatever the other side does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_WATCH_SECONDS = 0.1


class Deadlines:
    """Ends conversations whose time is over: a timeout of the socket alone lets a slow sender drip for ever."""

    def __init__(self) -> None:
        self._watched: dict[int, tuple[float, socket.socket]] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    @contextmanager
    def until(self, deadline: float, sock: socket.socket) -> Iterator[None]:
        """Shut the socket down at `deadline` (of the monotonic clock) unless the block has ended; TimeoutError then."""
        if self._thread is None:
            self._start()
        key = id(sock)
        self._watched[key] = (deadline, sock)
        try:
            yield
        except Exception as error:
            if time.monotonic() >= deadline:
                raise TimeoutError from error
            raise
        finally:
            self._watched.pop(key, None)

    def close(self) -> None:
        self._closed.set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="http-deadlines", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(_WATCH_SECONDS):
            now = time.monotonic()
            for deadline, sock in list(self._watched.values()):
                if now >= deadline:
                    try:
                        # Of the plain socket: SSLSocket's own would pull the session from under the reading thread.
                        socket.socket.shutdown(sock, socket.SHUT_RDWR)
                    except OSError:
                        pass  # it ended by itself
