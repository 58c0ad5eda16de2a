"""Captions that a published pipeline has turned into word ids already, with the vocabulary that made them."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vlm_plugin.unpickle import load_pickle
from vlm_plugin.vocabulary import Vocabulary, vocabulary_of


class Pretokenised(NamedTuple):
    """What a captions pickle holds, see `read_pretokenised`."""

    train: list[list[int]]
    """The word ids of each caption of the train split."""
    test: list[list[int]]
    """Likewise of the test split."""
    vocabulary: Vocabulary
    """The words of the ids."""


def read_pretokenised(path: str | os.PathLike[str]) -> Pretokenised:
    """Reads `captions.pickle` or `captions_DAMSM.pickle`: `[train captions, test captions, ixtoword, wordtoix]`.

    Such a file names no pictures. The published pipelines give each picture the same number C of captions, 10 for CUB
    and 5 for COCO, in the order of the split's `filenames.pickle`: picture i has the captions `i * C` to
    `i * C + C - 1`.

    A matcher reads captions as strings; the ids here are for comparing and for a text encoder of the same vocabulary,
    see `VLM.check_vocabulary`.

    Args:
        path: the file, written by Python 2 or 3; captions are lists or arrays of integers. No code of it is run.

    Returns:
        The captions of both splits, as lists of 0 <= id < len(vocabulary), and the vocabulary. A caption may be empty.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file holds something else, `ixtoword` and `wordtoix` do not agree, or an id is no integer or
            outside the vocabulary. The message names the file and, where it is about an id, split, caption and id.
    """
    name = os.fspath(path)
    content = load_pickle(name)
    if not isinstance(content, (list, tuple)):
        got = type(content).__name__
        raise ValueError(f"{name}: expected [train captions, test captions, ixtoword, wordtoix], got {got}")
    try:
        vocabulary = vocabulary_of(content, name)
    except TypeError as error:
        raise ValueError(str(error)) from None
    train, test, _, wordtoix = content
    _check_inverse(vocabulary.words, wordtoix, name)
    return Pretokenised(
        _read_captions(train, len(vocabulary), f"{name}: train caption"),
        _read_captions(test, len(vocabulary), f"{name}: test caption"),
        vocabulary,
    )


def _check_inverse(words: tuple[str, ...], wordtoix: object, name: str) -> None:
    if not isinstance(wordtoix, Mapping):
        raise ValueError(f"{name}: expected a dict wordtoix of word to id, got {type(wordtoix).__name__}")
    ids = {word.decode("latin1") if isinstance(word, bytes) else word: i for word, i in wordtoix.items()}
    for i, word in enumerate(words):
        if not (_is_integer(ids.get(word)) and ids[word] == i):
            got = f"gives it the id {ids[word]!r:.60}" if word in ids else "does not have it"
            raise ValueError(
                f"{name}: expected ixtoword and wordtoix to agree, they first differ at id {i}: "
                f"ixtoword has {word!r:.60}, wordtoix {got}"
            )
    if len(ids) > len(words):
        known = set(words)
        word, i = next((word, i) for word, i in ids.items() if word not in known)
        raise ValueError(
            f"{name}: expected ixtoword and wordtoix to agree, wordtoix has {word!r:.60} as well (id {i!r:.60})"
        )


def _read_captions(captions: object, size: int, where: str) -> list[list[int]]:
    # where: "<file>: train caption"; with 600,000 captions a name of its own for each would cost more than the checks.
    return [_read_ids(ids, size, where, i) for i, ids in enumerate(_as_list(captions, f"{where}s"))]


def _read_ids(ids: object, size: int, where: str, number: int) -> list[int]:
    ids = _as_list(ids, f"{where} {number}")
    for i in () if set(map(type, ids)) <= {int} else ids:
        if not _is_integer(i):
            raise ValueError(f"{where} {number}: expected integers, got {i!r:.60} of type {type(i).__name__}")
    if ids and (min(ids) < 0 or max(ids) >= size):
        bad = next(i for i in ids if not 0 <= i < size)
        raise ValueError(f"{where} {number}: expected ids from 0 to {size - 1}, as ixtoword has them, got {bad}")
    return list(map(int, ids))


def _as_list(value: object, what: str) -> list | tuple:
    items = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(items, (list, tuple)):
        raise ValueError(f"{what}: expected a list, got {type(value).__name__}")
    return items


def _is_integer(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
