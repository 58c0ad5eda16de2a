"""Vocabularies of any text."""

from __future__ import annotations

import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import ANY_TEXT, CAPTIONS, FEW

from vlm_plugin.matcher.vocabulary import Vocabulary

COLLECTIONS = st.lists(CAPTIONS, min_size=1, max_size=5)


@FEW
@given(COLLECTIONS)
def test_what_a_vocabulary_was_built_of_it_reads_and_says_again(captions: list[str]) -> None:
    vocabulary = Vocabulary.build(captions)
    assert vocabulary == Vocabulary.build(captions[::-1])
    for caption in captions:
        words = vocabulary.tokenize(caption)
        ids = vocabulary.encode(caption, max_words=len(words))
        assert vocabulary.decode(ids).split(" ") == words
        assert min(ids) > 1  # neither the end nor the unknown word
        assert vocabulary.tokenize(" ".join(words)) == words


@FEW
@given(st.lists(ANY_TEXT, max_size=4), ANY_TEXT, st.integers(1, 5))
def test_any_text_is_encoded_or_refused(captions: list[str], other: str, most: int) -> None:
    vocabulary = Vocabulary.build([*captions, "a bird"])
    for caption in (*captions, other):
        if not any(word in vocabulary for word in vocabulary.tokenize(caption)):
            with pytest.raises(ValueError, match=r"^caption: expected at least one word of the vocabulary [^\n]*$"):
                vocabulary.encode(caption, most)
            continue
        ids = vocabulary.encode(caption, most)
        assert 1 <= len(ids) <= most
        assert all(0 < i < len(vocabulary) for i in ids)


@FEW
@given(ANY_TEXT)
def test_composed_and_decomposed_text_are_the_same_words(text: str) -> None:
    vocabulary = Vocabulary(["<end>"], unknown=None)
    assert vocabulary.tokenize(unicodedata.normalize("NFD", text)) == vocabulary.tokenize(
        unicodedata.normalize("NFC", text)
    )


@FEW
@given(COLLECTIONS, st.booleans(), st.booleans())
def test_a_vocabulary_comes_out_of_its_file_as_it_went_in(captions: list[str], unknown: bool, ascii_only: bool) -> None:
    words = Vocabulary.build(captions).words
    vocabulary = Vocabulary(words, unknown="<unk>" if unknown else None, ascii_only=ascii_only)
    again = Vocabulary.from_state_dict(vocabulary.state_dict())
    assert again == vocabulary
    assert (again.words, again.unknown, again.ascii_only) == (vocabulary.words, vocabulary.unknown, ascii_only)


@FEW
@given(COLLECTIONS, st.integers(1, 4))
def test_a_batch_holds_each_caption_as_it_is_alone(captions: list[str], most: int) -> None:
    vocabulary = Vocabulary.build(captions)
    tokens, lengths = vocabulary.encode_batch(captions, most)
    assert tokens.shape == (len(captions), int(lengths.max()))
    for row, length, caption in zip(tokens, lengths.tolist(), captions, strict=True):
        assert row[:length].tolist() == vocabulary.encode(caption, most)
        assert torch.count_nonzero(row[length:]) == 0
