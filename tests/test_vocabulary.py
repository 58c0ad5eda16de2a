"""Captions to ids and back."""

from __future__ import annotations

import pickle
import random

import pytest
import torch

from vlm_plugin.vocabulary import Vocabulary

CAPTIONS = ["A small RED bird, with black wings.", "this bird is red", "Ein Vögelchen: naïve"]


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary.build(CAPTIONS)


def damsm_content() -> list:
    words = ["<end>", "this", "bird", "has", "a", "red", "belly"]
    ixtoword = dict(enumerate(words))
    return [[[1, 2]], [[3]], ixtoword, {w: i for i, w in ixtoword.items()}]


def test_build_is_sorted_and_independent_of_order(vocabulary):
    assert vocabulary.words[:2] == ("<end>", "<unk>")
    assert list(vocabulary.words[2:]) == sorted(vocabulary.words[2:])
    assert vocabulary == Vocabulary.build(reversed(CAPTIONS))
    assert "vögelchen" in vocabulary
    assert "Vögelchen" not in vocabulary
    assert Vocabulary.build(CAPTIONS, min_count=2).words == ("<end>", "<unk>", "bird", "red")
    with pytest.raises(ValueError, match="at least 3 times"):
        Vocabulary.build(CAPTIONS, min_count=3)
    with pytest.raises(ValueError, match="min_count"):
        Vocabulary.build(CAPTIONS, min_count=0)
    with pytest.raises(TypeError, match="captions"):
        Vocabulary.build("a bird")


def test_tokenize_follows_nltk(vocabulary):
    assert vocabulary.tokenize("A bird's  RED\twing-tip; naïve 2nd_one.") == [
        "a", "bird", "s", "red", "wing", "tip", "naïve", "2nd_one",
    ]  # fmt: skip
    ascii_only = Vocabulary(vocabulary.words, ascii_only=True)
    assert ascii_only.tokenize("naïve red\u2014brown é") == ["nave", "red", "brown"]


def test_encode_decode(vocabulary):
    ids = vocabulary.encode("a SMALL purple bird")
    assert [vocabulary.words[i] for i in ids] == ["a", "small", "<unk>", "bird"]
    assert vocabulary.dropped == 0
    assert vocabulary.decode(ids) == "a small <unk> bird"
    assert vocabulary.decode(torch.tensor([*ids, 0, 0])) == "a small <unk> bird"
    with pytest.raises(ValueError, match="ids: expected 0 to"):
        vocabulary.decode([len(vocabulary)])


@pytest.mark.parametrize("caption", ["", "?! ...", "purple", "\u2014", "<unk>", "<end>"])
def test_caption_without_known_words(vocabulary, caption):
    with pytest.raises(ValueError, match="caption: expected at least one word") as error:
        vocabulary.encode(caption)
    assert repr(caption) in str(error.value)


def test_long_captions(vocabulary):
    long = "purple " * 5000 + "bird " * 5000
    assert len(vocabulary.encode(long)) == 18
    with pytest.raises(ValueError, match="none of its 10000 words") as error:
        vocabulary.encode("purple " * 10000)
    assert len(str(error.value)) < 300

    words = Vocabulary(["<end>", "<unk>", *(f"w{i}" for i in range(100))])
    caption = " ".join(words.words[2:])
    even = words.encode(caption, max_words=10)
    assert even == words.encode(caption, max_words=10) == sorted(set(even))
    assert (even[0], even[-1], len(even)) == (2, 101, 10)
    assert words.encode(caption, max_words=1) == [2]
    assert words.encode(caption, max_words=100) == list(range(2, 102))
    for make in (lambda: random.Random(1), lambda: torch.Generator().manual_seed(1)):
        generator = make()
        first, second = (words.encode(caption, 10, generator) for _ in range(2))
        assert first == sorted(set(first))
        assert len(first) == 10
        assert first != second
        assert first == words.encode(caption, 10, make())
    with pytest.raises(TypeError, match="generator"):
        words.encode(caption, 10, 7)
    with pytest.raises(ValueError, match="max_words"):
        words.encode(caption, 0)


def test_encode_batch(vocabulary):
    tokens, lengths = vocabulary.encode_batch(["red", "a small bird", "red bird"])
    assert tokens.dtype == lengths.dtype == torch.int64
    assert tokens.shape == (3, 3)
    assert lengths.tolist() == [1, 3, 2]
    assert tokens[0, 1:].tolist() == [0, 0]
    assert (tokens[1] > 0).all()
    with pytest.raises(ValueError, match=r"captions\[1\].*'!'"):
        vocabulary.encode_batch(["red", "!"])
    with pytest.raises(ValueError, match="captions: expected at least one"):
        vocabulary.encode_batch([])
    with pytest.raises(TypeError, match=r"captions\[0\]: expected a string, got int"):
        vocabulary.encode_batch([3])
    with pytest.raises(TypeError, match="captions"):
        vocabulary.encode_batch("red")


@pytest.mark.parametrize("caption", [None, 3, b"red", ["red"]])
def test_captions_must_be_strings(vocabulary, caption):
    for method in (vocabulary.tokenize, vocabulary.encode):
        with pytest.raises(TypeError, match="caption: expected a string"):
            method(caption)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("part", ["list", "dict", "string keys"])
def test_from_damsm(tmp_path, protocol, part):
    content = damsm_content()
    stored = {"list": content, "dict": content[2], "string keys": {str(k): v for k, v in content[2].items()}}[part]
    path = tmp_path / "captions.pickle"
    path.write_bytes(pickle.dumps(stored, protocol=protocol))
    vocabulary = Vocabulary.from_damsm(path)
    assert vocabulary == Vocabulary.from_damsm(stored) == Vocabulary.from_damsm(str(path))
    assert vocabulary.words == tuple(content[2].values())
    assert vocabulary.unknown is None
    assert vocabulary.ascii_only
    assert vocabulary.encode("This bird has a purple, réd belly") == [1, 2, 3, 4, 6]
    assert vocabulary.dropped == 2
    with pytest.raises(ValueError, match=r"no|none"):
        vocabulary.encode("purple")


def test_from_damsm_python2(tmp_path):
    path = tmp_path / "captions.pickle"
    path.write_bytes(b"(dp0\nI0\nS'<end>'\nsI1\nS'bird'\nsI2\nS'caf\\xe9'\ns.")
    assert Vocabulary.from_damsm(path).words == ("<end>", "bird", "caf\xe9")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2, 3], "expected .train captions"),
        ([[], [], [], {}], "expected a dict ixtoword"),
        ({"bird": 1}, "keys are ids"),
        ({0: "<end>", 2: "bird"}, "1 is missing"),
        ({0: "bird", 1: "<end>"}, "expected '<end>' first"),
        ({}, "no words"),
        (7, "got int"),
    ],
)
def test_from_damsm_of_other_files(tmp_path, content, message):
    path = tmp_path / "captions.pickle"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises((TypeError, ValueError), match=message) as error:
        Vocabulary.from_damsm(path)
    assert str(path) in str(error.value)


def test_constructor_errors():
    with pytest.raises(TypeError, match="words"):
        Vocabulary("<end>")
    with pytest.raises(TypeError, match=r"words\[1\]"):
        Vocabulary(["<end>", 3])
    with pytest.raises(ValueError, match="'bird' more than once"):
        Vocabulary(["<end>", "<unk>", "bird", "bird"])
    with pytest.raises(ValueError, match="unknown"):
        Vocabulary(["<end>", "bird"])


def test_state_dict(tmp_path, vocabulary):
    for one in (vocabulary, Vocabulary.from_damsm(damsm_content())):
        torch.save(one.state_dict(), tmp_path / "state.pt")
        other = Vocabulary.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert other == one
        assert hash(other) == hash(one)
    with pytest.raises(ValueError, match="state: expected a dict"):
        Vocabulary.from_state_dict({"words": []})


def test_describe_difference(vocabulary):
    assert "same" in vocabulary.describe_difference(Vocabulary.build(CAPTIONS))
    other = Vocabulary(["<end>", "<unk>", "zebra"])
    text = vocabulary.describe_difference(other)
    assert str(len(vocabulary)) in text
    assert "3" in text
    assert "'zebra'" in text
    assert "'a'" in text
    longer = Vocabulary([*vocabulary.words, "zebra"])
    assert "'zebra'" in vocabulary.describe_difference(longer)
    assert "ascii_only" in vocabulary.describe_difference(Vocabulary(vocabulary.words, ascii_only=True))
    assert vocabulary != "text"
    assert vocabulary != longer
