"""Values that a manifest names as `${secret://name#field}` or `${env:NAME}`, looked up only when the source is read.

A value exists in memory for the length of one call, and `redact` takes it out of every text that leaves it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from resources.governance.sources import REFERENCE
from resources.runtime.errors import BareCountError, ErrorCode


def _no_secrets(reference: str) -> str:
    raise BareCountError(ErrorCode.SECRET_UNKNOWN, f"nothing here keeps secrets, so {reference} has no value",
                         hint="read the source in a run of a tenant")


@dataclass(frozen=True)
class Lookup:
    """Where values are: of the environment by name, of the tenant's secrets by reference, which goes on record."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    secret: Callable[[str], str] = _no_secrets


class References:
    """Resolves references for one call and remembers what must not be shown.

    Args:
        lookup: where values are.
    """

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._secrets: set[str] = set()

    def resolve(self, text: str, encode: Callable[[str], str] = str) -> str:
        """`text` with its references replaced by values; those within a longer text go through `encode`.

        Raises BareCountError declaration.unknown when a name is not set or empty, secret.unknown and
        secret.unavailable for a secret, declaration.invalid when a value holds a control character: libraries
        quote such values in forms `redact` cannot know.
        """
        if whole := REFERENCE.fullmatch(text):
            return self._value(whole)
        return REFERENCE.sub(lambda match: self.hide(encode(self._value(match))), text)

    def _value(self, found: re.Match[str]) -> str:
        if found["secret"]:
            return self._printable(self._lookup.secret(found["secret"]), f"the secret {found['secret']}",
                                   "keep it without it: `barecount secrets set`")
        name = found["variable"]
        value = self._lookup.environment.get(name)
        if not value:
            raise BareCountError(
                ErrorCode.DECLARATION_UNKNOWN,
                f"the source refers to ${{env:{name}}}; the environment variable {name} is not set or empty",
                hint=f"set {name} for the process that reads the source",
            )
        return self._printable(value, f"the environment variable {name}",
                               f"set {name} without it; often it is the line end of the file the value came from")

    def _printable(self, value: str, what: str, hint: str) -> str:
        if not value.isprintable():
            raise BareCountError(
                ErrorCode.DECLARATION_INVALID, f"{what} holds a line end or another control character", hint=hint)
        return self.hide(value)

    def hide(self, value: str) -> str:
        """Return `value`, which `redact` takes out from now on."""
        self._secrets.add(value)
        return value

    def redact(self, text: str) -> str:
        """`text` with every hidden value replaced by `***`; longer values first, as one may hold another."""
        for secret in sorted(self._secrets - {""}, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text
