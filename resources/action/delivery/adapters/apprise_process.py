"""Sends one message through Apprise, in a process of its own.

Reads `{url, title, body, type, timeout, openings}` as JSON from standard input; writes
`{sent, service, refused, denied, status}` to standard output. An audit hook sees every connection of whatever library
Apprise uses at the moment it is made, with the address it is made to, and stops those that the tenant's egress policy
does not allow: resolving a name twice, or following a redirect, leads to the same check. It cannot be taken out again.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import socket
import sys
from typing import Any

from resources.security.egress import EgressPolicy, Opening

_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "syslog.syslog")
_STATUS = re.compile(r"error=(\d{3})\b")


class _Guard:
    """The audit hook, and what it stopped."""

    def __init__(self, policy: EgressPolicy) -> None:
        self.policy = policy
        self.host = ""
        self.plaintext = True
        self.denied: str | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _FORBIDDEN:
            self._stop("a service that runs programs of this machine is refused")
        if event not in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            return
        sock, address = arguments[0], arguments[1]
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or not isinstance(address, tuple):
            self._stop("a service of this machine is refused")
        found = ipaddress.ip_address(str(address[0]).partition("%")[0])
        problem = self.policy.problem(self.host, found, address[1], plaintext=self.plaintext)
        if problem:
            self._stop(f"a connection to port {address[1]} of the service is refused: {problem}")

    def _stop(self, why: str) -> None:
        self.denied = self.denied or why
        raise PermissionError(why)


class _Statuses(logging.Handler):
    """Keeps the last HTTP status that Apprise complains about; its messages may hold parts of the URL."""

    def __init__(self) -> None:
        super().__init__()
        self.last: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        found = _STATUS.search(record.getMessage())
        if found:
            self.last = int(found[1])


def send(order: dict[str, Any]) -> dict[str, Any]:
    """Send one message; see the module for both documents."""
    import apprise

    answer: dict[str, Any] = {"sent": False, "service": "", "refused": None, "denied": None, "status": None}
    statuses = _Statuses()
    logger = logging.getLogger("apprise")
    logger.handlers, logger.propagate = [statuses], False
    logger.setLevel(logging.WARNING)
    separator = "&" if "?" in order["url"] else "?"
    limits = f"{separator}cto={order['timeout'] / 2}&rto={order['timeout']}"
    asset = apprise.AppriseAsset(async_mode=False, plugin_paths=[], storage_path=None)
    service = apprise.Apprise.instantiate(order["url"] + limits, asset=asset)
    if service is None:
        return {**answer, "refused": "the URL is none that Apprise knows"}
    answer["service"] = str(service.service_name)
    if not service.verify_certificate:
        return {**answer, "refused": "the URL turns the check of certificates off"}
    guard = _Guard(EgressPolicy(tuple(Opening(**opening) for opening in order["openings"])))
    insecure = service.protocol or ()
    guard.plaintext = service.schema in ((insecure,) if isinstance(insecure, str) else tuple(insecure))
    guard.host = service.host or ""
    sys.addaudithook(guard)
    try:
        answer["sent"] = bool(service.notify(body=order["body"], title=order["title"], notify_type=order["type"]))
    except Exception as error:  # some of its many plugins let errors through
        answer["sent"] = False
        answer["refused"] = None if guard.denied else f"Apprise failed: {type(error).__name__}"
    return {**answer, "denied": guard.denied, "status": statuses.last}


if __name__ == "__main__":
    result = json.dumps(send(json.load(sys.stdin)))
    sys.stdout.write(result)
