"""Captions as word ids: tokens, vocabularies built from captions, and the vocabularies of published DAMSM encoders."""

from __future__ import annotations

import functools
import os
import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import regex
import torch
from torch import Tensor

from vlm_plugin.checks import check_positive
from vlm_plugin.unpickle import load_pickle

if TYPE_CHECKING:
    from nltk.tokenize.api import TokenizerI

__all__ = ["END", "UNKNOWN", "Vocabulary", "is_undivided"]

# Neither can come out of either tokenizer, so no caption can spell one.
END = "<end>"
UNKNOWN = "<unk>"
MAX_WORDS = 18  # what AttnGAN's and DF-GAN's data settings keep of a caption
# What a user can do about a vocabulary that is not the text encoder's.
REMEDY = (
    "use the captions.pickle that came with this text encoder, or pretrain a matcher on this data (vlm-plugin pretrain)"
)
_KEYCAP = r"[0-9#*]\uFE0F?\u20E3"
# Letters and numbers of the script, not its radicals, which are symbols; also the places that Unicode keeps for more.
_HAN = (
    r"[\u3005\u3007\u3021-\u3029\u3038-\u303B\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF"
    r"\U00020000-\U0002FFFD\U00030000-\U0003FFFD]"
)
_LETTER = r"[\pL\pN\p{Pc}]"
# A digit that begins a keycap ends the word before it.
_IN_WORD = rf"(?:[[\pL\pN\p{{Pc}}\pM]--[0-9]--{_HAN}]|[0-9](?!\uFE0F?\u20E3))"
_FLAG = r"[\U0001F1E6-\U0001F1FF]{2}"
# Symbols and skin tones, and what is unassigned among the pictographs, which are emoji to come. U+FFFD is a symbol, but
# stands for text that was lost.
_PICTURE = r"[[\p{So}\U0001F3FB-\U0001F3FF[\p{Cn}&&[\U0001F000-\U0001FAFF]]]--\uFFFD]"
_ASKED_TO_BE_ONE = r"[[\pP\pS]--[\p{Pc}\uFFFD]]\uFE0F"
# Marks, skin tones and tags.
_WITH_EMOJI = r"[\pM\U0001F3FB-\U0001F3FF\U000E0020-\U000E007F]"
_EMOJI = f"(?:{_FLAG}|{_PICTURE}|{_ASKED_TO_BE_ONE}){_WITH_EMOJI}*"
_TOKEN = regex.compile(
    rf"{_KEYCAP}|{_EMOJI}(?:\u200D{_EMOJI})*|{_HAN}\pM*|{_LETTER}(?:{_IN_WORD}|[\u200C\u200D]+(?={_IN_WORD}))*",
    regex.VERSION1,
)
# Scripts without blanks between words, but for Han, whose letters are words; without marks, which differ in number.
_UNSPACED_LETTER = regex.compile(
    r"[[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Hiragana}\p{Katakana}\p{Javanese}\p{Balinese}\p{Tai_Tham}"
    r"\p{New_Tai_Lue}\p{Tai_Viet}\u30FC]&&\pL]",
    regex.VERSION1,
)
# Letters of one; most words have two to six.
_LONGEST_UNSPACED_WORD = 8


class Vocabulary:
    r"""The words an encoder knows; a word's id is its place in the list. Id 0 ends and pads captions.

    Tokens of an ASCII caption, and with `ascii_only` of any, are the runs of word characters of the lower-case caption
    (nltk's `RegexpTokenizer(r"\w+")`), as in the published text-to-image pipelines; the handling of unknown words is
    ours. Of other captions, in lower case and Unicode's composed form (NFC), a token is

    - a word: a run of letters, numbers, underscores (Unicode categories L, N, Pc) and the marks (M) upon them; a
      zero-width joiner or non-joiner between two such characters belongs to it. Scripts that put no blanks between
      words (Hiragana, Katakana, Thai, ...) are not divided any further; Hangul has blanks.
    - a Han ideograph, each by itself, with the marks upon it.
    - an emoji: a symbol (category So, or anything else that a variation selector asks to be one) with its marks, skin
      tones, tags and the symbols that a zero-width joiner adds; a keycap; a pair of regional indicators (a flag).

    Everything else separates tokens, also characters that are newer than the `regex` package.

    Attributes:
        words: all words, `words[0]` is `"<end>"`.
        unknown: the word that stands for unknown ones, or None: then they are dropped.
        ascii_only: whether non-ASCII characters of a token are dropped, as in the published pipelines.
        dropped: how many unknown words this object has dropped so far.
    """

    def __init__(self, words: Sequence[str], *, unknown: str | None = UNKNOWN, ascii_only: bool = False) -> None:
        """Use a list of words.

        Args:
            words: distinct words, `"<end>"` first.
            unknown: one of `words`, or None.
            ascii_only: see the class.

        Raises:
            TypeError: `words` is no sequence of strings.
            ValueError: `words` has duplicates, does not start with `"<end>"` or does not have `unknown`.
        """
        if isinstance(words, str) or not isinstance(words, Sequence):
            raise TypeError(f"words: expected a list of strings, got {type(words).__name__}")
        for i, word in enumerate(words):
            if not isinstance(word, str):
                raise TypeError(f"words[{i}]: expected a string, got {type(word).__name__}")
        if not words or words[0] != END:
            raise ValueError(f"words: expected {END!r} first (id 0), got {_short(words[0]) if words else 'no words'}")
        self._ids = {word: i for i, word in enumerate(words)}
        if len(self._ids) != len(words):
            twice = next(word for i, word in enumerate(words) if self._ids[word] != i)
            raise ValueError(f"words: expected distinct words, got {_short(twice)} more than once")
        # Id 0 is the padding: no word may become it.
        if unknown is not None and not self._ids.get(unknown):
            raise ValueError(
                f"unknown: expected one of the {len(words)} words but the first, or None, got {_short(unknown)}"
            )
        self.words = tuple(words)
        self.unknown = unknown
        self.ascii_only = bool(ascii_only)
        self.dropped = 0

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 1) -> Vocabulary:
        """The vocabulary of a collection of captions: `"<end>"`, `"<unk>"`, then the words in alphabetical order.

        Args:
            captions: strings; every order of them gives the same vocabulary.
            min_count: how often a word must occur to get an id.

        Raises:
            TypeError: a caption is no string, or `captions` is one.
            ValueError: `min_count` is below 1, or no word occurs that often.
        """
        check_positive(min_count=min_count)
        if isinstance(captions, str):
            raise TypeError("captions: expected a collection of strings, got one string")
        counts: Counter[str] = Counter()
        for i, caption in enumerate(captions):
            counts.update(_tokens(caption, f"captions[{i}]", ascii_only=False))
        words = sorted(word for word, count in counts.items() if count >= min_count)
        if not words:
            raise ValueError(f"captions: expected a word that occurs at least {min_count} times, found none")
        return cls([END, UNKNOWN, *words])

    @classmethod
    def from_damsm(cls, path_or_ixtoword: str | os.PathLike[str] | Mapping[Any, str] | Sequence[Any]) -> Vocabulary:
        """The vocabulary of a published DAMSM text encoder.

        Such vocabularies hold lower-case ASCII words and no word for unknown ones, which are dropped.

        Args:
            path_or_ixtoword: a captions pickle (the list `[train captions, test captions, ixtoword, wordtoix]` or only
                the dict `ixtoword`, written by Python 2 or 3), or that content.

        Raises:
            OSError: the file cannot be opened.
            TypeError, ValueError: the content is something else, or its ids are not 0, 1, 2, ... with `"<end>"` first.
        """
        if isinstance(path_or_ixtoword, (str, os.PathLike)):
            return vocabulary_of(load_pickle(path_or_ixtoword), os.fspath(path_or_ixtoword))
        return vocabulary_of(path_or_ixtoword, "path_or_ixtoword")

    def tokenize(self, caption: str) -> list[str]:
        """A caption's words in lower case, known or not.

        Raises:
            TypeError: `caption` is no string.
        """
        return _tokens(caption, "caption", self.ascii_only)

    def encode(
        self,
        caption: str,
        max_words: int = MAX_WORDS,
        generator: random.Random | torch.Generator | None = None,
    ) -> list[int]:
        """A caption's word ids, without `"<end>"`.

        Of a caption of more than `max_words` words that many are kept, in order: a random choice of them with a
        `generator` (as the published pipelines do while training), else evenly spaced ones.

        Returns:
            Between 1 and `max_words` ids.

        Raises:
            TypeError: `caption` is no string.
            ValueError: the caption has no word of this vocabulary, or `max_words` is below 1.
        """
        return self._ids_of(_tokens(caption, "caption", self.ascii_only), caption, "caption", max_words, generator)

    def _ids_of(
        self,
        tokens: Sequence[str],
        caption: str,
        name: str,
        max_words: int,
        generator: random.Random | torch.Generator | None,
    ) -> list[int]:
        """`encode` for the tokens of a caption that the caller calls `name`."""
        check_positive(max_words=max_words)
        ids = [self._ids[token] for token in tokens if token in self._ids]
        if not ids:
            found = f"none of its {len(tokens)} words is in the vocabulary" if tokens else "it has no words"
            raise ValueError(
                f"{name}: expected at least one word of the vocabulary ({len(self)} words), {found}: {_short(caption)}"
            )
        if self.unknown is None:
            self.dropped += len(tokens) - len(ids)
        else:
            unknown = self._ids[self.unknown]
            ids = [self._ids.get(token, unknown) for token in tokens]
        if len(ids) <= max_words:
            return ids
        return [ids[i] for i in _choose(len(ids), max_words, generator)]

    def encode_batch(
        self,
        captions: Sequence[str],
        max_words: int = MAX_WORDS,
        generator: random.Random | torch.Generator | None = None,
        *,
        words: list[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Several captions as one tensor.

        Args:
            captions: B strings.
            max_words: see `encode`.
            generator: see `encode`.
            words: takes the words of all captions, known or not, so that a caller need not divide them again.

        Returns:
            Ids `(B, T)` int64, zero past each caption's end, T the longest caption's length; lengths `(B,)` int64.

        Raises:
            TypeError: `captions` is no sequence of strings.
            ValueError: there are no captions, or one has no word of this vocabulary (the message has its place).
        """
        if isinstance(captions, (str, bytes)) or not isinstance(captions, Sequence):
            raise TypeError(f"captions: expected a list of strings, got {type(captions).__name__}")
        if not captions:
            raise ValueError("captions: expected at least one, got none")
        rows = []
        for i, caption in enumerate(captions):
            tokens = _tokens(caption, name := f"captions[{i}]", self.ascii_only)
            rows.append(self._ids_of(tokens, caption, name, max_words, generator))
            if words is not None:
                words += tokens
        # On the CPU, whatever a host has made the default device.
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64, device="cpu")
        tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64, device="cpu")
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row, dtype=torch.int64, device="cpu")
        return tokens, lengths

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The words of one caption's ids, up to the first 0, joined by blanks.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        words = []
        for i in ids.tolist() if isinstance(ids, Tensor) else ids:
            i = int(i)
            if i == 0:
                break
            if not 0 < i < len(self):
                raise ValueError(f"ids: expected 0 to {len(self) - 1}, got {i}")
            words.append(self.words[i])
        return " ".join(words)

    def __len__(self) -> int:
        """The number of words, `"<end>"` and `"<unk>"` included."""
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        """Whether a (lower-case) word has an id."""
        return word in self._ids

    def __eq__(self, other: object) -> bool:
        """Whether both give every caption the same ids."""
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return (self.words, self.unknown, self.ascii_only) == (other.words, other.unknown, other.ascii_only)

    def __hash__(self) -> int:
        """A hash that fits `==`."""
        return hash((self.words, self.unknown, self.ascii_only))

    def __repr__(self) -> str:
        """A short description for messages."""
        return f"Vocabulary({len(self)} words, unknown={self.unknown!r}, ascii_only={self.ascii_only})"

    def describe_difference(self, other: Vocabulary) -> str:
        """How two vocabularies differ, for error messages: both sizes and the first differing words."""
        if self == other:
            return f"both vocabularies have the same {len(self)} words"
        parts = self._differing_words(other)
        for name in ("unknown", "ascii_only"):
            if getattr(self, name) != getattr(other, name):
                parts.append(f"{name} {getattr(self, name)!r} against {getattr(other, name)!r}")
        return "; ".join(parts)

    def check_same(self, other: Vocabulary, ids_from: str, checkpoint: str) -> None:
        """Refuse ids that another vocabulary made. How captions are split and what is unknown does not matter to ids.

        Args:
            other: what made the ids.
            ids_from: the file or argument that `other` comes from, for the message.
            checkpoint: whose vocabulary this is, for the message.

        Raises:
            ValueError: the words differ. The message has both names, both sizes, the first differing words (this
                vocabulary's first) and what to do.
        """
        if self.words != other.words:
            difference = "; ".join(self._differing_words(other))
            raise ValueError(
                f"{ids_from}: expected the vocabulary of {checkpoint}, got another ({difference}): {REMEDY}"
            )

    def _differing_words(self, other: Vocabulary) -> list[str]:
        """Both sizes and, where the words differ, the first that do."""
        parts = [f"{len(self)} words against {len(other)}"]
        differing = [i for i, (a, b) in enumerate(zip(self.words, other.words, strict=False)) if a != b]
        if differing:
            shown = ", ".join(f"{i}: {_short(self.words[i])} / {_short(other.words[i])}" for i in differing[:3])
            parts.append(f"first differing ids {shown}")
        elif len(self) != len(other):
            longer = self if len(self) > len(other) else other
            first = min(len(self), len(other))
            parts.append(f"the first {first} agree, id {first} is {_short(longer.words[first])} in the longer one")
        return parts

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint; `torch.load(weights_only=True)` reads them."""
        return {"words": list(self.words), "unknown": self.unknown, "ascii_only": self.ascii_only}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary that `state_dict` describes.

        Raises:
            TypeError, ValueError: `state` is something else.
        """
        expected = {"words", "unknown", "ascii_only"}
        if not isinstance(state, Mapping) or set(state) != expected:
            got = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"state: expected a dict with the keys {sorted(expected)}, got {_short(got)}")
        return cls(state["words"], unknown=state["unknown"], ascii_only=state["ascii_only"])


def is_undivided(word: str) -> bool:
    """Whether a token looks like a whole phrase of a script that puts no blanks between words.

    Those of Thai, Lao, Khmer, Burmese, Tibetan, Javanese and the like and of kana are not divided, see `Vocabulary`.

    Args:
        word: a token.
    """
    return len(_UNSPACED_LETTER.findall(word)) > _LONGEST_UNSPACED_WORD


def vocabulary_of(content: object, source: str) -> Vocabulary:
    """What `Vocabulary.from_damsm` makes of a file's content.

    Args:
        content: `[train captions, test captions, ixtoword, wordtoix]`, or only `ixtoword`.
        source: the file or argument, for messages.

    Raises:
        TypeError, ValueError: see `Vocabulary.from_damsm`.
    """
    if isinstance(content, (list, tuple)):
        if len(content) != 4:
            raise ValueError(
                f"{source}: expected [train captions, test captions, ixtoword, wordtoix], "
                f"got {type(content).__name__} of {len(content)}"
            )
        content = content[2]
    if not isinstance(content, Mapping):
        raise TypeError(f"{source}: expected a dict ixtoword of id to word, got {type(content).__name__}")
    try:
        by_id = {int(key): word for key, word in content.items()}
    except (TypeError, ValueError):
        raise ValueError(f"{source}: expected a dict ixtoword whose keys are ids, got {_short(content)}") from None
    missing = next((i for i in range(len(content)) if i not in by_id), None)
    if missing is not None:
        raise ValueError(f"{source}: expected the ids 0 to {len(content) - 1} in ixtoword, {missing} is missing")
    words = [by_id[i] for i in range(len(content))]
    words = [word.decode("latin1") if isinstance(word, bytes) else word for word in words]
    try:
        return Vocabulary(words, unknown=None, ascii_only=True)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{source}: ixtoword: {error}") from None


def _short(value: object, limit: int = 60) -> str:
    """`repr(value)`, cut for messages."""
    # Cut before repr as well: a caption may be megabytes long.
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


@functools.cache
def _word_tokenizer() -> TokenizerI:
    # Not at the top: nltk takes as long to import as the rest of the drop-in.
    from nltk.tokenize import RegexpTokenizer

    return RegexpTokenizer(r"\w+")


def _tokens(caption: str, name: str, ascii_only: bool) -> list[str]:
    """The words of a caption that the caller calls `name`."""
    if not isinstance(caption, str):
        raise TypeError(f"{name}: expected a string, got {type(caption).__name__}")
    if caption.isascii():
        return _word_tokenizer().tokenize(caption.lower())
    if not ascii_only:
        return _unicode_tokens(caption)
    tokens = _word_tokenizer().tokenize(caption.lower())
    # After splitting: "red\u2014brown" is two words, and dropping the dash first would make it one.
    tokens = [token.encode("ascii", "ignore").decode("ascii") for token in tokens]
    return [token for token in tokens if token]


def _unicode_tokens(caption: str) -> list[str]:
    """The tokens of a caption that is not all ASCII, see `Vocabulary`."""
    return _TOKEN.findall(unicodedata.normalize("NFC", caption).lower())


def _choose(count: int, keep: int, generator: random.Random | torch.Generator | None) -> list[int]:
    """`keep` of `count` places in order; `keep` is smaller."""
    if generator is None:
        return [i * (count - 1) // max(keep - 1, 1) for i in range(keep)]
    if isinstance(generator, random.Random):
        return sorted(generator.sample(range(count), keep))
    if isinstance(generator, torch.Generator):
        return sorted(torch.randperm(count, generator=generator, device=generator.device)[:keep].tolist())
    raise TypeError(f"generator: expected a random.Random, a torch.Generator or None, got {type(generator).__name__}")
