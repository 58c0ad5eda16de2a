"""The matcher that a command line names: the packaged one, a checkpoint file, or published DAMSM files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from vlm_plugin.files import ASSETS, find_file, read_file
from vlm_plugin.foreign import without_wrappers
from vlm_plugin.matcher.damsm import find_image_encoder, find_vocabulary
from vlm_plugin.matcher.identity import fingerprint
from vlm_plugin.matcher.vlm import VLM
from vlm_plugin.matcher.vocabulary import Vocabulary

PACKAGED = "packaged"
# The share of unknown words up to which nothing is said where the captions are those of a data set.
TOLERATED_UNKNOWN = 0.02
# Unknown words that are named, and the most letters of each.
_WORDS_NAMED, _WORD_LETTERS = 5, 30


def load_matcher(name: str, data: Path | None = None, device: torch.device | str = "cpu") -> VLM:
    """Load a matcher, told by what is in the file.

    Args:
        name: `PACKAGED`, which no file in the working folder shadows; the file of a VLM (the bare name of a packaged
            one will do); or the state dict of a published DAMSM text encoder, see `damsm_pair`.
        data: the data folder, where a DAMSM vocabulary is looked for.
        device: where to put the weights.

    Returns:
        The matcher in eval mode; from DAMSM files it has no scorer.

    Raises:
        FileNotFoundError, ValueError: the message names the file, or what was looked for and where.
    """
    path = ASSETS / "birds.vlm.pt" if name == PACKAGED else find_file(name)
    what = "VLM checkpoint or state dict of a DAMSM text encoder"
    content = read_file(path, what)
    if isinstance(content, dict) and "format" in content:
        return VLM.from_content(content, path).to(device)
    if isinstance(content, dict) and "encoder.weight" in without_wrappers(content):
        return damsm_pair(path, data).to(device)
    raise ValueError(f"{path}: expected a {what}, got something else")


def is_packaged(name: str | Path) -> bool:
    """Whether `load_matcher` takes a packaged file, which knows the synthetic birds, for this name.

    Raises:
        FileNotFoundError: there is no such matcher.
    """
    return str(name) == PACKAGED or find_file(name).resolve().parent == ASSETS.resolve()


def unknown_words(captions: Sequence[str], vocabulary: Vocabulary, name: str, tolerated: float = 0.0) -> str | None:
    """Say how many words of captions a matcher does not know, and name the most frequent of them.

    Args:
        captions: any number.
        vocabulary: the matcher's.
        name: what `load_matcher` took.
        tolerated: the share of the words up to which nothing is said.

    Returns:
        One line; None where there is nothing to say.
    """
    words = Counter(word for caption in captions for word in vocabulary.tokenize(caption))
    unknown = Counter({word: count for word, count in words.items() if word not in vocabulary})
    if unknown.total() <= tolerated * words.total():
        return None
    matcher = "the packaged matcher" if name == PACKAGED else Path(name).name
    named = [word for word, _ in unknown.most_common(_WORDS_NAMED)]
    shown = [word if len(word) <= _WORD_LETTERS else f"{word[: _WORD_LETTERS - 3]}..." for word in named]
    return (
        f"{unknown.total()} of {words.total()} words in {len(captions)} caption{'' if len(captions) == 1 else 's'} "
        f"{'is' if unknown.total() == 1 else 'are'} unknown to {matcher}: {', '.join(shown)}"
        f"{', ...' if len(unknown) > _WORDS_NAMED else ''}"
    )


def marks(vlm: VLM) -> frozenset[str]:
    """Fingerprints by which a matcher is known again as the one that trained a generator: its own and its image
    encoder's, for what fools the latter fools every matcher that sees with it."""
    return frozenset({vlm.fingerprint, fingerprint(vlm.image_encoder)})


def damsm_pair(text_encoder: Path, data: Path | None) -> VLM:
    """A matcher without scorer from a published DAMSM text encoder and what belongs to it.

    The image encoder lies beside it, with `image_encoder` for `text_encoder` in the file's name. The vocabulary is
    `captions.pickle` or `captions_DAMSM.pickle` in the data folder or beside the encoder: of several that hold
    different words the one that has as many as the encoder.

    Args:
        text_encoder: for example `text_encoder200.pth`.
        data: the data folder, or None.

    Returns:
        The matcher on the CPU, in eval mode.

    Raises:
        FileNotFoundError: one of the three files is missing; the message says where it was looked for.
        ValueError: the files are something else, or do not belong together; or several vocabularies of the right size
            differ.
    """
    return VLM.from_damsm(text_encoder, find_image_encoder(text_encoder), find_vocabulary(text_encoder, data))
