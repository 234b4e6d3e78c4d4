"""Conversations over sockets that end in time, whatever the other side does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_WATCH_SECONDS = 0.1


@dataclass(eq=False)
class _Conversation:
    deadline: float
    sock: socket.socket
    was_ended: bool = False


class Deadlines:
    """Ends conversations whose time is over: a timeout of the socket alone lets a slow sender drip for ever."""

    def __init__(self) -> None:
        self._under_way: set[_Conversation] = set()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    @contextmanager
    def until(self, deadline: float, sock: socket.socket) -> Iterator[None]:
        """Shut the socket down at `deadline` (of the monotonic clock) unless the block has ended; TimeoutError then.

        Also when the block ended without an error: half an answer may look like a whole one.
        """
        if self._thread is None:
            self._start()
        conversation = _Conversation(deadline, sock)
        self._under_way.add(conversation)
        try:
            yield
        except Exception as error:
            if conversation.was_ended or time.monotonic() >= deadline:
                raise TimeoutError from error
            raise
        finally:
            self._under_way.discard(conversation)
        if conversation.was_ended:
            raise TimeoutError

    def close(self) -> None:
        """End the watch."""
        self._closed.set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(_WATCH_SECONDS):
            now = time.monotonic()
            for conversation in self._under_way.copy():
                if now >= conversation.deadline:
                    conversation.was_ended = True
                    try:
                        # Of the plain socket: SSLSocket's own would pull the session from under the reading thread.
                        socket.socket.shutdown(conversation.sock, socket.SHUT_RDWR)
                    except OSError:
                        pass  # it ended by itself
