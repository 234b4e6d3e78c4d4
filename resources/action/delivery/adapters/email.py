"""E-mail over SMTP (RFC 5321), with TLS from the start or by STARTTLS; never less than the declaration asks for.

`Message-ID` is made of the delivery key: the same on every attempt. Messages of one correlation refer to one thread.

Guarantee: at least one message, at most one in mailboxes that drop a second message with the same Message-ID.
"""

from __future__ import annotations

import contextlib
import email.message
import email.policy
import email.utils
import re
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator

from resources.action.delivery.adapters.base import Challenge, Dispatch, Network, unverified
from resources.action.delivery.model import Message, Outcome, Result
from resources.governance.endpoints import EmailEndpoint
from resources.security import egress
from resources.security.deadlines import Deadlines

_IMPORTANCE = {"info": "normal", "warning": "normal", "critical": "high"}


class EmailAdapter:
    """Delivers e-mail."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._deadlines = Deadlines()

    def deliver(self, dispatch: Dispatch[EmailEndpoint]) -> Outcome:
        try:
            with self._session(dispatch) as session:
                refused = session.send_message(
                    compose(dispatch), dispatch.target.sender, list(dispatch.target.recipients))
        except smtplib.SMTPException as error:
            return _of_error(error)
        except TimeoutError:
            return Outcome(Result.UNAVAILABLE, f"the server did not answer within {self._network.timeout:g} s")
        except ssl.SSLCertVerificationError as error:
            return Outcome(Result.UNAVAILABLE, f"the server has no valid certificate: {error.verify_message}")
        except OSError as error:
            return Outcome(Result.UNAVAILABLE, f"the connection failed: {error.strerror or type(error).__name__}")
        wanted = len(dispatch.target.recipients)
        return Outcome(Result.DELIVERED, f"accepted for {wanted - len(refused)} of {wanted} recipients", 250,
                       external_id=message_id(dispatch))

    def challenge(self, dispatch: Dispatch[EmailEndpoint], code: str) -> Challenge:
        """Mailboxes are sent a code."""
        text = f"The code of endpoint {dispatch.endpoint} is {code}.\n\nIf you do not expect it, ignore it: without " \
               "the code nothing more is sent."
        message = Message("Verification of an endpoint", text)
        outcome = self.deliver(Dispatch(
            dispatch.tenant_id, dispatch.endpoint, f"challenge-{code}", message, dispatch.target, dispatch.policy,
            dispatch.now, dispatch.secrets))
        if outcome.result is not Result.DELIVERED:
            raise unverified(dispatch, outcome.reason)
        return Challenge(False, "a code was mailed to the recipients")

    @contextlib.contextmanager
    def _session(self, dispatch: Dispatch[EmailEndpoint]) -> Iterator[smtplib.SMTP]:
        """A session that is encrypted and logged in as declared, and over within the timeout."""
        target, deadline = dispatch.target, time.monotonic() + self._network.timeout
        context = self._network.tls or ssl.create_default_context()
        raw = egress.connect(
            target.host, target.port, dispatch.policy, plaintext=target.security == "none",
            timeout=self._network.timeout, resolve=self._network.resolve)
        watched = raw.dup()  # the session's own socket changes when TLS begins
        try:
            with self._deadlines.until(deadline, watched):
                session = _Session(raw, target, context, self._network.timeout)
                try:
                    if target.security == "starttls":
                        session.starttls(context=context)
                    if target.username is not None:
                        session.login(target.username, dispatch.secret("password"))
                    yield session
                    with contextlib.suppress(smtplib.SMTPException, OSError):
                        session.quit()  # the message is accepted already, however the farewell goes
                finally:
                    session.close()
        finally:
            watched.close()
            raw.close()


class _Session(smtplib.SMTP):
    """An SMTP session over a connection that is there already."""

    def __init__(self, raw: socket.socket, target: EmailEndpoint, tls: ssl.SSLContext, timeout: float) -> None:
        self._raw, self._tls, self._target = raw, tls, target
        super().__init__(target.host, target.port, local_hostname=target.sender.partition("@")[2], timeout=timeout)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        self._raw.settimeout(timeout)
        if self._target.security == "tls":
            return self._tls.wrap_socket(self._raw, server_hostname=host)
        return self._raw


def compose(dispatch: Dispatch[EmailEndpoint]) -> email.message.EmailMessage:
    """The e-mail; the same for every attempt but for its date."""
    message, target = dispatch.message, dispatch.target
    composed = email.message.EmailMessage(policy=email.policy.SMTP)
    composed["From"] = target.sender
    composed["To"] = ", ".join(target.recipients)
    composed["Subject"] = re.sub(r"\s+", " ", message.title).strip()
    composed["Date"] = email.utils.format_datetime(dispatch.now)
    composed["Message-ID"] = message_id(dispatch)
    if message.correlation is not None:
        composed["References"] = f"<{dispatch.correlation_id}@{_domain(target)}>"
    composed["Auto-Submitted"] = "auto-generated"
    composed["Importance"] = _IMPORTANCE[message.severity]
    composed.set_content(message.text)
    if message.html is not None:
        composed.add_alternative(message.html, subtype="html")
    return composed


def message_id(dispatch: Dispatch[EmailEndpoint]) -> str:
    return f"<{dispatch.idempotency_id}@{_domain(dispatch.target)}>"


def _domain(target: EmailEndpoint) -> str:
    return target.sender.partition("@")[2]


def _of_error(error: smtplib.SMTPException) -> Outcome:
    """4yz replies may pass, 5yz never do; a login that fails may be cured by a new password."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = [code for code, _ in error.recipients.values()]
        text = "; ".join(_text(reply) for _, reply in error.recipients.values())
        result = Result.REJECTED if all(code >= 500 for code in codes) else Result.UNAVAILABLE
        return Outcome(result, "every recipient is refused", max(codes), text)
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return Outcome(Result.UNAVAILABLE, "the login is refused", error.smtp_code, _text(error.smtp_error))
    if isinstance(error, smtplib.SMTPResponseException):
        result = Result.REJECTED if error.smtp_code >= 500 else Result.UNAVAILABLE
        return Outcome(result, f"SMTP {error.smtp_code}", error.smtp_code, _text(error.smtp_error))
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return Outcome(Result.UNAVAILABLE, "the server does not offer what is declared (STARTTLS or a login)")
    return Outcome(Result.UNAVAILABLE, f"the server broke off: {type(error).__name__}")


def _text(reply: bytes | str) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply
