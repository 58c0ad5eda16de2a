"""Captions to ids and back."""

from __future__ import annotations

import pickle
import random
import unicodedata

import pytest
import regex
import torch
from nltk.tokenize import RegexpTokenizer

from vlm_plugin.matcher.vocabulary import Vocabulary, _unicode_tokens

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


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("लाल चिड़िया!", ["लाल", "चिड़िया"]),
        ("Cafe\u0301, naïve Ｂird", ["café", "naïve", "ｂird"]),
        ("น้ำ สีแดง", ["น้ำ", "สีแดง"]),
        ("红色的鸟，很小", ["红", "色", "的", "鸟", "很", "小"]),
        ("赤い鳥が2羽・カラス", ["赤", "い", "鳥", "が2", "羽", "カラス"]),
        ("人々は葛\U000e0100城で", ["人", "々", "は", "葛\U000e0100", "城", "で"]),
        ("붉은 새", ["붉은", "새"]),
        ("می\u200cخواهم \u200cx\u200d \u200d", ["می\u200cخواهم", "x"]),
        ("wow😀😀 so_cute♥", ["wow", "😀", "😀", "so_cute", "♥"]),
        ("❤\ufe0f❤ 👍🏽👍", ["❤\ufe0f", "❤", "👍🏽", "👍"]),
        ("👩\u200d👩\u200d👧 🏳\ufe0f\u200d🌈x", ["👩\u200d👩\u200d👧", "🏳\ufe0f\u200d🌈", "x"]),
        ("😀\u200d 😀\u200da", ["😀", "😀", "a"]),
        ("🇩🇪🇫🇷🇨 🏴\U000e0067\U000e0062\U000e007f", ["🇩🇪", "🇫🇷", "🇨", "🏴\U000e0067\U000e0062\U000e007f"]),
        ("No. 1\ufe0f\u20e32\u20e3 #\ufe0f\u20e3 room1\ufe0f\u20e323", [
            "no", "1\ufe0f\u20e3", "2\u20e3", "#\ufe0f\u20e3", "room", "1\ufe0f\u20e3", "23",
        ]),
        ("‼\ufe0f ‼ ↔\ufe0f ↔ 🙂\u200d↔\ufe0f", ["‼\ufe0f", "↔\ufe0f", "🙂\u200d↔\ufe0f"]),
        ("20°C – £5 + «½» 3×4", ["20", "°", "c", "5", "½", "3", "4"]),
        ("red\ufffd\ufffdbird \u0301x", ["red", "bird", "x"]),
        # Places that Unicode keeps for emoji and ideographs, whether `regex` knows them or not.
        ("\U0001fae8\U0001faff \U0002ebf0\U0002fffd", ["\U0001fae8", "\U0001faff", "\U0002ebf0", "\U0002fffd"]),
        ("é <end> <unk>", ["é", "end", "unk"]),
    ],
)  # fmt: skip
def test_tokens_of_any_script_and_emoji(vocabulary, caption, tokens):
    assert vocabulary.tokenize(caption) == [unicodedata.normalize("NFC", token) for token in tokens]
    assert vocabulary.tokenize(unicodedata.normalize("NFD", caption)) == vocabulary.tokenize(caption)
    again = Vocabulary.build([caption])
    assert again.decode(again.encode(caption, 100)).split() == vocabulary.tokenize(caption)


def category(text, i):
    return unicodedata.category(text[i]) if i < len(text) else ""


def name(text, i):
    return unicodedata.name(text[i], "") if i < len(text) else ""


def keycap_end(text, i):
    """Where the keycap that begins here ends, None if none does; likewise the others."""
    if i >= len(text) or text[i] not in "0123456789#*":
        return None
    return next((i + len(s) + 1 for s in ("\u20e3", "\ufe0f\u20e3") if text[i + 1 :].startswith(s)), None)


def symbol_end(text, i):
    regional = [name(text, i + k).startswith("REGIONAL INDICATOR") for k in range(2)]
    if text[i : i + 1] == "\ufffd":
        return None
    plain = category(text, i) == "So"
    plain = plain or (category(text, i) == "Cn" and 0x1F000 <= ord(text[i]) <= 0x1FAFF)
    asked = category(text, i)[:1] in ("P", "S") and category(text, i) != "Pc" and text[i + 1 : i + 2] == "\ufe0f"
    if all(regional):
        i += 2
    elif plain or asked or name(text, i).startswith("EMOJI MODIFIER"):
        i += 1
    else:
        return None
    while category(text, i)[:1] == "M" or name(text, i).startswith(("EMOJI MODIFIER", "TAG ", "CANCEL TAG")):
        i += 1
    return i


def emoji_end(text, i):
    end = symbol_end(text, i)
    while end is not None and text[end : end + 1] == "\u200d" and symbol_end(text, end + 1) is not None:
        end = symbol_end(text, end + 1)
    return end


def is_han(text, i):
    han = ("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH", "IDEOGRAPHIC NUMBER ZERO", "HANGZHOU NUMERAL")
    return name(text, i).startswith(han) or name(text, i).endswith("IDEOGRAPHIC ITERATION MARK")


def han_end(text, i):
    if not is_han(text, i):
        return None
    i += 1
    while category(text, i)[:1] == "M":
        i += 1
    return i


def in_word(text, i, kinds="LMN"):
    kept = category(text, i)[:1] in tuple(kinds) or category(text, i) == "Pc"
    return kept and not is_han(text, i) and keycap_end(text, i) is None


def word_end(text, i):
    if not in_word(text, i, "LN"):
        return None
    while True:
        while in_word(text, i):
            i += 1
        after = i
        while text[after : after + 1] in ("\u200c", "\u200d"):
            after += 1
        if after == i or not in_word(text, after):
            return i
        i = after


def slow_tokens(caption):
    text, tokens, i = unicodedata.normalize("NFC", caption).lower(), [], 0
    while i < len(text):
        ends = (find(text, i) for find in (keycap_end, emoji_end, han_end, word_end))
        end = next((end for end in ends if end is not None), None)
        if end is not None:
            tokens.append(text[i:end])
        i = i + 1 if end is None else end
    return tokens


def random_captions(seed, count):
    """Short strings out of a few pools, so that the rules meet each other, and of any assigned characters."""
    rng = random.Random(seed)
    known = (chr(code) for code in range(0x80, 0x110000, 7) if unicodedata.category(chr(code)) != "Cn")
    anything = [character for character in known if not regex.match(r"\p{Cn}", character)]
    pools = [
        "aBc1_23#* .,-+<^é",
        "\u0301\u0308\u20e3\ufe0e\ufe0f\u200c\u200d\u20e3\ufe0f\u200d\U000e0100",
        "कखिी्ฟนา้ำäÅΣσاب",
        "红鳥々〇〡〩〸〻㐀豈𠀀あカー・한국〆⼈",
        "😀👍👩❤☀\U0001faff🏽🏿🇩🇪🇫🏴\U000e0067\U000e007f©°™‼↔→＋\ufffd\ud800",
        anything,
    ]
    for _ in range(count):
        chosen = rng.sample(pools, rng.randint(1, 4))
        yield "".join(rng.choice(rng.choice(chosen)) for _ in range(rng.randint(1, 12)))


@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_those_of_a_slow_tokenizer(vocabulary, seed):
    seen = set()
    for caption in random_captions(seed, 3000):
        expected = slow_tokens(caption) if not caption.isascii() else RegexpTokenizer(r"\w+").tokenize(caption.lower())
        assert vocabulary.tokenize(caption) == expected, ascii(caption)
        seen.update(map(len, expected))
    assert seen > set(range(1, 7))


def test_every_single_character_as_the_slow_tokenizer(vocabulary):
    """A sample of Unicode, after a letter and before the selector for emoji."""
    for code in (*range(0x80, 0x3100), *range(0x3100, 0x110000, 29)):
        # Of places that this Python or `regex` does not know, those kept for emoji and ideographs are tested above.
        if unicodedata.category(chr(code)) != "Cn" and not regex.match(r"\p{Cn}", chr(code)):
            caption = f"ä{chr(code)} {chr(code)}\ufe0f"
            assert vocabulary.tokenize(caption) == slow_tokens(caption), hex(code)


def test_the_rules_agree_on_ascii():
    """So that one word beyond ASCII does not change how the others of a caption are read."""
    rng = random.Random(5)
    for _ in range(3000):
        caption = "".join(chr(rng.randrange(128)) for _ in range(rng.randint(0, 12)))
        assert _unicode_tokens(caption) == RegexpTokenizer(r"\w+").tokenize(caption.lower()), ascii(caption)


def test_ascii_only_keeps_the_published_rule(vocabulary):
    published = Vocabulary(vocabulary.words, ascii_only=True)
    for caption in random_captions(7, 3000):
        tokens = RegexpTokenizer(r"\w+").tokenize(caption.lower())
        expected = [token.encode("ascii", "ignore").decode("ascii") for token in tokens]
        assert published.tokenize(caption) == [token for token in expected if token]


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
    with pytest.raises(ValueError, match="unknown: expected one of the 2 words but the first, or None, got '<end>'"):
        Vocabulary(["<end>", "a"], unknown="<end>")
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


def test_check_same_compares_words_alone(vocabulary):
    vocabulary.check_same(vocabulary, "a.pickle", "b.vlm.pt")
    vocabulary.check_same(Vocabulary(vocabulary.words, unknown=None, ascii_only=True), "a.pickle", "b.vlm.pt")
    other = Vocabulary(["<end>", "<unk>", "zebra"], ascii_only=True)
    with pytest.raises(ValueError, match=r"^a.pickle: expected the vocabulary of b.vlm.pt, got another") as error:
        vocabulary.check_same(other, "a.pickle", "b.vlm.pt")
    assert str(error.value) == (
        "a.pickle: expected the vocabulary of b.vlm.pt, got another "
        f"({len(vocabulary)} words against 3; first differing ids 2: 'a' / 'zebra'): "
        "use the captions.pickle that came with this text encoder, "
        "or pretrain a matcher on this data (vlm-plugin pretrain)"
    )
    with pytest.raises(ValueError, match=r"2 words against 3; the first 2 agree, id 2 is 'zebra' in the longer one\)"):
        Vocabulary(["<end>", "<unk>"]).check_same(other, "a.pickle", "b.vlm.pt")
