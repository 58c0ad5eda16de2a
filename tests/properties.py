"""What the property-based tests share: few examples, the same ones each time, and text to draw from."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

FEW = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip

# Letters of scripts that compose, join, have no case, or lie beyond 16 bits; and an emoji of several characters.
LETTERS = "abzABZ019_\u00e9\u00df\u0130\u01c5\u03a3\u0439\u05d0\u0644\u0915\u0e01\u304c\u4e2d\uac00\U0001d504"
WORDS = st.one_of(
    st.text(LETTERS, min_size=1, max_size=6), st.sampled_from(["it's", "well-known", "\U0001f426\u200d\u2b1b"])
)
# Nothing at the ends that a reader takes away, and no line break.
CAPTIONS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates too
