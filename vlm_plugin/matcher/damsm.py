"""The files of published DAMSM encoders: what is in them, and which of them belong together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from vlm_plugin.files import first_few, misfits, read_file
from vlm_plugin.foreign import without_wrappers
from vlm_plugin.matcher.image_encoders import InceptionEncoder
from vlm_plugin.matcher.text_encoder import LSTMTextEncoder
from vlm_plugin.matcher.vocabulary import REMEDY, Vocabulary

# Where the published pipelines keep the vocabulary that a DAMSM text encoder was trained with.
VOCABULARIES = ("captions.pickle", "captions_DAMSM.pickle")


class DamsmPair(NamedTuple):
    """A published pair of encoders, and the vocabulary that they were trained with."""

    image_encoder: InceptionEncoder
    text_encoder: LSTMTextEncoder
    vocabulary: Vocabulary


def read_damsm(
    text_encoder_path: str | os.PathLike,
    image_encoder_path: str | os.PathLike,
    vocabulary: Vocabulary | str | os.PathLike,
) -> DamsmPair:
    """Rebuild a pair of encoders; see `VLM.from_damsm`, which makes a matcher of them.

    Args:
        text_encoder_path: state dict of DAMSM's RNN_ENCODER.
        image_encoder_path: state dict of DAMSM's CNN_ENCODER.
        vocabulary: a Vocabulary, or the captions pickle that holds it.

    Raises:
        FileNotFoundError, ValueError: as `VLM.from_damsm`.
    """
    text_state = damsm_text_state(text_encoder_path)
    image_state = _state_dict(image_encoder_path, "emb_features.weight", what="DAMSM image encoder", ranks=(4,))
    source = ""
    if not isinstance(vocabulary, Vocabulary):
        source = f" ({os.fspath(vocabulary)})"
        vocabulary = Vocabulary.from_damsm(vocabulary)
    rows, word_dim = text_state["encoder.weight"].shape
    if rows != len(vocabulary):
        raise ValueError(
            f"vocabulary: {text_encoder_path} was trained with {rows} words, the vocabulary has {len(vocabulary)}"
            f"{source}: {REMEDY}"
        )
    embed_dim = 2 * text_state["rnn.weight_hh_l0"].shape[1]
    global_layer = "Mixed_7c" if any(k.startswith("Mixed_7c.") for k in image_state) else "Mixed_7b"
    image_encoder = InceptionEncoder(image_state["emb_features.weight"].shape[0], global_layer)
    text_encoder = LSTMTextEncoder(rows, embed_dim, word_dim)
    for network, state, path in (
        (image_encoder, image_state, image_encoder_path),
        (text_encoder, text_state, text_encoder_path),
    ):
        if problems := misfits(network.state_dict(), state):
            raise ValueError(f"{path}: not a published DAMSM encoder: {first_few(problems)}")
        # Of the file's type, whatever a host has made the default.
        network.float().load_state_dict(state)
    return DamsmPair(image_encoder, text_encoder, vocabulary)


def damsm_text_state(path: str | os.PathLike) -> dict[str, Tensor]:
    """The state dict of a published DAMSM text encoder, on the CPU.

    Raises:
        FileNotFoundError, ValueError: the message names the file.
    """
    return _state_dict(path, "encoder.weight", "rnn.weight_hh_l0", what="DAMSM text encoder", ranks=(2, 2))


def _state_dict(path: str | os.PathLike, *keys: str, what: str, ranks: tuple[int, ...]) -> dict[str, Tensor]:
    """A file's state dict, in which `what` has these keys at least, with as many dimensions each."""
    state = read_file(path, "state dict")
    state = without_wrappers(state) if isinstance(state, Mapping) else state
    if missing := [key for key in keys if not isinstance(state, dict) or key not in state]:
        raise ValueError(f"{path}: expected the state dict of a {what} (with {missing[0]!r}), got something else")
    for key, rank in zip(keys, ranks, strict=True):
        found = state[key]
        if not isinstance(found, Tensor) or found.ndim != rank:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{path}: {key}: expected a tensor of {rank} dimensions, got {got}")
    return dict(state)


def find_image_encoder(text_encoder: Path) -> Path:
    """The file beside a text encoder's with `image_encoder` for `text_encoder` in its name.

    Raises:
        FileNotFoundError: one of the two is missing.
        ValueError: the text encoder's name does not have it.
    """
    if not text_encoder.is_file():
        raise FileNotFoundError(f"{text_encoder}: expected a DAMSM text encoder, found no such file")
    image_encoder = text_encoder.with_name(text_encoder.name.replace("text_encoder", "image_encoder"))
    if image_encoder == text_encoder:
        raise ValueError(
            f"{text_encoder}: expected 'text_encoder' in the file's name, by which its image encoder is found"
        )
    if not image_encoder.is_file():
        raise FileNotFoundError(f"{image_encoder}: expected the image encoder of {text_encoder}, found no such file")
    return image_encoder


def find_vocabulary(text_encoder: Path, data: Path | None) -> Path:
    """The vocabulary's file, one of `VOCABULARIES`, in the data folder or beside a text encoder.

    Of several that hold different words it is the one that has as many as the encoder.

    Args:
        text_encoder: the file of a published text encoder.
        data: the data folder, or None.

    Raises:
        FileNotFoundError: there is none.
        ValueError: none has as many words as the encoder, or several that do differ.
    """
    beside = text_encoder.parent
    folders = [beside] if data is None or os.path.realpath(data) == os.path.realpath(beside) else [data, beside]
    candidates = [folder / name for folder in folders for name in VOCABULARIES]
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise FileNotFoundError(
            f"{text_encoder}: expected its vocabulary, {' or '.join(VOCABULARIES)}, in "
            f"{' or '.join(map(str, folders))}, found neither"
        )
    if len(found) == 1:
        return found[0]
    vocabularies = [(path, Vocabulary.from_damsm(path)) for path in found]
    rows = damsm_text_state(text_encoder)["encoder.weight"].shape[0]
    fitting = [(path, vocabulary) for path, vocabulary in vocabularies if len(vocabulary) == rows]
    if not fitting:
        sizes = ", ".join(f"{path} with {len(vocabulary)}" for path, vocabulary in vocabularies)
        raise ValueError(
            f"{text_encoder}: expected a vocabulary of {rows} words, as it was trained with, got {sizes}: {REMEDY}"
        )
    path, first = fitting[0]
    for other_path, other in fitting[1:]:
        if other.words != first.words:
            raise ValueError(
                f"{text_encoder}: expected one vocabulary of {rows} words, got two that differ, "
                f"{path} and {other_path} ({first.describe_difference(other)}): "
                "keep the one that came with this text encoder and move the other away"
            )
    return path
