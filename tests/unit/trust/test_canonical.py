"""The ledger's canonical JSON is that of RFC 8785, also where the standard library writes it."""

from __future__ import annotations

import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.trust.ledger import canonical

ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(exclude_categories=["Cs"]))
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(max_codepoint=127)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(max_codepoint=127)), inner), max_leaves=20)


@settings(max_examples=100, deadline=None)
@given(ANY | PLAIN)
def test_every_document_has_the_bytes_of_the_standard(document: object) -> None:
    assert canonical(document) == rfc8785.dumps(document)
