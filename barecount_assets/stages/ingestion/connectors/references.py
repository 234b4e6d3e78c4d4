"""Values that a manifest names as `${env:NAME}`, looked up only when the source is read.

A value exists in memory for the length of one call, and `redact` takes it out of every text that leaves it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from resources.runtime.errors import BareCountError, ErrorCode

_REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


class References:
    """Resolves references for one call and remembers what must not be shown.

    Args:
        environment: where names are looked up.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._secrets: set[str] = set()

    def resolve(self, text: str, encode: Callable[[str], str] = str) -> str:
        """`text` with its references replaced by values; those within a longer text go through `encode`.

        Raises BareCountError declaration.unknown when a name is not set or empty, declaration.invalid when
        its value holds a control character: libraries quote such values in forms `redact` cannot know.
        """
        if whole := _REFERENCE.fullmatch(text):
            return self._value(whole[1])
        return _REFERENCE.sub(lambda match: self.hide(encode(self._value(match[1]))), text)

    def _value(self, name: str) -> str:
        value = self._environment.get(name)
        if not value:
            raise BareCountError(
                ErrorCode.DECLARATION_UNKNOWN,
                f"the source refers to ${{env:{name}}}; the environment variable {name} is not set or empty",
                hint=f"set {name} for the process that reads the source",
            )
        if not value.isprintable():
            raise BareCountError(
                ErrorCode.DECLARATION_INVALID,
                f"the environment variable {name} holds a line end or another control character",
                hint=f"set {name} without it; often it is the line end of the file the value came from",
            )
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
