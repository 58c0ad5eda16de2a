"""Captions that are ids already: what published files hold, of Python 2 and 3, and what is refused."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
from tiny import Bomb

from vlm_plugin.data.pretokenised import read_pretokenised
from vlm_plugin.vocabulary import Vocabulary

WORDS = ["<end>", "this", "bird", "has", "a", "red", "belly"]
TRAIN = [[1, 2, 3, 4, 5, 6], [4, 2], [2]]
TEST = [[5, 6], []]


def content(words=WORDS, train=TRAIN, test=TEST, inverse=None):
    by_id = dict(enumerate(words))
    return [train, test, by_id, {word: i for i, word in by_id.items()} if inverse is None else inverse]


@pytest.fixture
def write(tmp_path):
    def write(value, protocol=2):
        path = tmp_path / "captions.pickle"
        path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol=protocol))
        return path

    return write


def check(read):
    assert read.train == TRAIN
    assert read.test == TEST
    assert {type(i) for split in (read.train, read.test) for ids in split for i in ids} == {int}
    assert {type(ids) for split in (read.train, read.test) for ids in split} == {list}
    assert read.vocabulary == Vocabulary.from_damsm(dict(enumerate(WORDS)))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_lists_of_ids(write, protocol):
    check(read_pretokenised(write(content(), protocol)))
    check(read_pretokenised(str(write(content(), protocol))))
    check(read_pretokenised(write(tuple(content()), protocol)))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_arrays_of_ids(write, protocol):
    arrays = [np.array(ids, dtype=np.int32) for ids in TRAIN]
    packed = np.empty(len(TEST), dtype=object)
    packed[:] = [np.array(TEST[0]), [np.uint8(i) for i in TEST[1]]]
    scalars = [[np.int64(i) for i in ids] for ids in TRAIN]
    inverse = {word: np.int64(i) for i, word in enumerate(WORDS)}
    check(read_pretokenised(write(content(train=arrays, test=packed), protocol)))
    check(read_pretokenised(write(content(train=scalars, inverse=inverse), protocol)))
    square = read_pretokenised(write(content(train=np.array([[1, 2], [3, 4]])), protocol))
    assert square.train == [[1, 2], [3, 4]]


def test_a_file_of_python_2(write):
    """Strings that are bytes, one of them beyond ASCII, and long integers."""
    path = write(
        b"(lp0\n((lp1\nI1\naL2L\na(lp2\nI2\natp3\na((lp4\nI1\natp5\na"
        b"(dp6\nI0\nS'<end>'\np7\nsL1L\nS'bird'\np8\nsI2\nS'caf\\xe9'\np9\nsa(dp10\ng7\nI0\nsg8\nI1\nsg9\nL2L\nsa."
    )
    read = read_pretokenised(path)
    assert read.vocabulary.words == ("<end>", "bird", "caf\xe9")
    assert (read.train, read.test) == ([[1, 2], [2]], [[1]])
    as_bytes = content([word.encode() for word in WORDS])
    check(read_pretokenised(write(as_bytes)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (content()[2], "expected [train captions, test captions, ixtoword, wordtoix], got dict"),
        (content()[:3], "expected [train captions, test captions, ixtoword, wordtoix], got list of 3"),
        (7, "expected [train captions, test captions, ixtoword, wordtoix], got int"),
        ([TRAIN, TEST, WORDS, {}], "expected a dict ixtoword of id to word, got list"),
        ([TRAIN, TEST, {0: "<end>", 2: "bird"}, {}], "expected the ids 0 to 1 in ixtoword, 1 is missing"),
        ([TRAIN, TEST, {0: "<end>", 1: 5}, {}], "ixtoword: words[1]: expected a string, got int"),
        (content(inverse=WORDS), "expected a dict wordtoix of word to id, got list"),
        (content(train=5), "train captions: expected a list, got int"),
        (content(train=np.array(5)), "train captions: expected a list, got ndarray"),
        (content(test={}), "test captions: expected a list, got dict"),
        (content(train=[[1], "a bird"]), "train caption 1: expected a list, got str"),
        (content(train=[[1], [2, "3"]]), "train caption 1: expected integers, got '3' of type str"),
        (content(test=[[1], [2], [2.0]]), "test caption 2: expected integers, got 2.0 of type float"),
        (content(test=[np.array([0.5])]), "test caption 0: expected integers, got 0.5 of type float"),
        (content(test=[[1, True]]), "test caption 0: expected integers, got True of type bool"),
        (content(test=[np.array([[1]])]), "test caption 0: expected integers, got [1] of type list"),
        (content(train=[[1], [6, 7]]), "train caption 1: expected ids from 0 to 6, as ixtoword has them, got 7"),
        (content(test=[[1, -1, 3]]), "test caption 0: expected ids from 0 to 6, as ixtoword has them, got -1"),
        (content(test=[[np.int64(7)]]), "test caption 0: expected ids from 0 to 6, as ixtoword has them, got 7"),
    ],
)
def test_other_content_is_named(write, value, message):
    path = write(value)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        read_pretokenised(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"red": 6, "belly": 5}, "they first differ at id 5: ixtoword has 'red', wordtoix gives it the id 6"),
        ({"bird": None}, "they first differ at id 2: ixtoword has 'bird', wordtoix gives it the id None"),
        ({"this": np.array([1, 2])}, "at id 1: ixtoword has 'this', wordtoix gives it the id array([1, 2])"),
        ({"zebra": 7}, "wordtoix has 'zebra' as well (id 7)"),
    ],
)
def test_dictionaries_that_do_not_agree(write, change, message):
    path = write(content(inverse={**content()[3], **change}))
    with pytest.raises(ValueError, match=f"^{path}: expected ixtoword and wordtoix to agree, ") as error:
        read_pretokenised(path)
    assert message in str(error.value)
    inverse = content()[3]
    del inverse["has"]
    with pytest.raises(ValueError, match="first differ at id 3: ixtoword has 'has', wordtoix does not have it"):
        read_pretokenised(write(content(inverse=inverse)))


@pytest.mark.parametrize("place", range(4))
def test_code_in_a_file_is_refused_and_does_not_run(write, tmp_path, place):
    value = content()
    value[place] = Bomb(tmp_path / "it ran")
    path = write(value)
    with pytest.raises(ValueError, match=rf"{path}: refused to load posix.mkdir"):
        read_pretokenised(path)
    assert not (tmp_path / "it ran").exists()


def test_damaged_and_missing_files(write, tmp_path):
    path = write(pickle.dumps(content())[:-20])
    with pytest.raises(ValueError, match=rf"{path}: expected a complete pickle file"):
        read_pretokenised(path)
    with pytest.raises(FileNotFoundError):
        read_pretokenised(tmp_path / "missing.pickle")
