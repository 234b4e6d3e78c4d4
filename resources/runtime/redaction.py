"""Secrets in use, and how they are kept out of everything that is written.

Whoever reads a secret registers it here; whatever is written (log lines, receipts, events, errors) goes through
`redact`. Also the forms a secret takes on its way are known: base64, URL-quoted, and as a JSON string.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from urllib.parse import quote, quote_plus

MARK = "[redacted]"
_SHORTEST = 4  # shorter values would blank out ordinary words

_lock = threading.Lock()
_values: set[str] = set()
_pattern: re.Pattern[str] | None = None


def protect(value: str) -> None:
    """Never let this value be written from now on, in this process."""
    global _pattern
    forms = {form for form in _forms(value) if len(form) >= _SHORTEST}
    with _lock:
        if forms <= _values:
            return
        _values.update(forms)
        longest_first = sorted(_values, key=len, reverse=True)
        _pattern = re.compile("|".join(map(re.escape, longest_first)))


def redact(text: str) -> str:
    """The text with every protected value replaced."""
    pattern = _pattern
    return text if pattern is None else pattern.sub(MARK, text)


def _forms(value: str) -> set[str]:
    encoded = base64.b64encode(value.encode()).decode()
    urlsafe = base64.urlsafe_b64encode(value.encode()).decode()
    return {
        value, value.strip(), quote(value, safe=""), quote_plus(value), json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1], encoded, encoded.rstrip("="), urlsafe, urlsafe.rstrip("="),
    }
