"""Which split a folder, a file or a table's column names, by the rules of Hugging Face's data sets.

A word for a split counts wherever no letter touches it (train2017, test_images, My-Test). Ours goes beyond in three
ways: case does not matter, a capital begins a new word (testA), and a word may end in what it is a split of (testset).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

__all__ = ["HELD_OUT", "of_file", "of_folders", "of_name", "strictest"]

# Splits whose pictures must not be trained on.
HELD_OUT = ("validation", "test")
_WORDS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval|evaluation|held[-_. ]?out|hold[-_. ]?out",
}
_OF_WHAT = "(?:sets?|data|images?|imgs?|pics?|pictures?|photos?|split)?"
_LETTER = r"[^\W\d_]"
_SPLITS = {split: re.compile(f"(?<!{_LETTER})(?:{words}){_OF_WHAT}(?!{_LETTER})") for split, words in _WORDS.items()}
# What most names lack: a quick look before the others.
_ANY = re.compile("train|val|dev|test|eval|h[eo]ld", re.I)
_CAPITAL = re.compile("(?<=[a-z0-9])(?=[A-Z])")
_WORD = re.compile(f"{_LETTER}+")
# A file's name of more words is a description, in which "train" and "test" mean what they say.
_MOST_WORDS = 4
_STRICTNESS = {"test": 3, "validation": 2, "train": 0}


def of_name(name: str) -> str | None:
    """The split that one name says: "train", "validation" or "test"; None if none, or train and another at once."""
    if not _ANY.search(name):
        return None
    words = _CAPITAL.sub("_", name).casefold()
    said = [split for split, pattern in _SPLITS.items() if pattern.search(words)]
    return None if len(said) > 1 and "train" in said else strictest(said)


def of_folders(path: str) -> str | None:
    """The split that the folders of a path ("a/b/name" or "a/b/") say: the strictest, where several do."""
    return _of_folder(path.rpartition("/")[0])


@lru_cache(maxsize=1024)
def _of_folder(path: str) -> str | None:
    # Kept, since thousands of pictures lie in one folder.
    return strictest(map(of_name, path.split("/")))


def of_file(path: str) -> str | None:
    """The split that a path's last part says, None where that is a description of more than four words."""
    stem = path.rpartition("/")[2]
    return of_name(stem) if _ANY.search(stem) and len(_WORD.findall(stem)) <= _MOST_WORDS else None


def strictest(splits: Iterable[str | None]) -> str | None:
    """The split that a picture belongs to which is said to be in several: test, validation, any other, then train."""
    there = [split for split in splits if split is not None]
    if len(there) < 2:
        return there[0] if there else None
    return max(sorted(there), key=lambda split: _STRICTNESS.get(split, 1))
