"""What a matcher's file holds: settings and weights of the parts, the vocabulary, plain notes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlm_plugin.files import first_few, misfits, not_finite
from vlm_plugin.matcher.identity import encoder_fingerprints
from vlm_plugin.matcher.image_encoders import build_image_encoder, rebuildable
from vlm_plugin.matcher.scorer import MatchingScoreBlock
from vlm_plugin.matcher.text_encoder import LSTMTextEncoder
from vlm_plugin.matcher.vocabulary import Vocabulary

FORMAT = "vlm_plugin.VLM"
VERSION = 1

Parts = Mapping[str, nn.Module]
"""`image_encoder`, `text_encoder` and, where there is one, `scorer`: the networks, out of whatever wraps them."""


def pack(
    parts: Parts,
    vocabulary: Vocabulary,
    max_words: int,
    notes: Mapping[str, object],
    *,
    half: bool,
    path: str | os.PathLike,
) -> dict[str, Any]:
    """A file's content, which `unpack` and `load_weights` turn into the parts again.

    Args:
        parts: the networks.
        vocabulary: the matcher's.
        max_words: likewise.
        notes: likewise.
        half: store weights as float16 instead of float32. The fingerprints are those of the rounded weights.
        path: the file, for messages.

    Raises:
        ValueError: the image encoder is none of this package's, a weight is NaN or infinite as it is stored, or
            `notes` holds something else than plain values.
    """
    image_encoder, text_encoder, scorer = (parts.get(name) for name in ("image_encoder", "text_encoder", "scorer"))
    if not rebuildable(image_encoder):
        raise ValueError(
            "image_encoder: expected one of vlm_plugin.matcher.image_encoders, which a file can name, got "
            f"{type(image_encoder).__name__}: save its state_dict() yourself"
        )
    weights = _stored_weights(parts, path, half)
    _check_plain("notes", notes)
    stamped = scorer.encoder_fingerprints if scorer else None
    # What is loaded is float32, so of encoders of another type the fingerprints are others there.
    if scorer and stamped in (None, encoder_fingerprints(image_encoder, text_encoder)):
        stamped = encoder_fingerprints(_restored(weights["image_encoder"]), _restored(weights["text_encoder"]))
    return {
        "format": FORMAT,
        "version": VERSION,
        "settings": {
            "image_encoder": {"name": image_encoder.name, **image_encoder.settings},
            "text_encoder": dict(text_encoder.settings),
            **({"scorer": dict(scorer.settings)} if scorer else {}),
        },
        "max_words": max_words,
        "vocabulary": vocabulary.state_dict(),
        "notes": notes,
        "weights": weights,
        "scorer_trained_on": stamped,
    }


def unpack(content: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `VLM` that a file's content describes; its networks still have random weights."""
    settings = content["settings"]
    scorer = MatchingScoreBlock(**settings["scorer"]) if "scorer" in settings else None
    return {
        "image_encoder": build_image_encoder(**settings["image_encoder"]),
        "text_encoder": LSTMTextEncoder(**settings["text_encoder"]),
        "vocabulary": Vocabulary.from_state_dict(content["vocabulary"]),
        "scorer": scorer,
        "max_words": content["max_words"],
        "notes": content["notes"],
    }


def load_weights(parts: Parts, content: Mapping[str, Any]) -> None:
    """Give the parts that `unpack` made their weights, and the scorer the names of its encoders."""
    for name in content["settings"]:
        state = content["weights"][name]
        if problems := misfits(parts[name].state_dict(), state):
            raise ValueError(f"{name}: {first_few(problems)}")
        parts[name].load_state_dict(_restored(state))
    if "scorer" in parts:
        parts["scorer"].encoder_fingerprints = content["scorer_trained_on"]


def _stored_weights(parts: Parts, path: str | os.PathLike, half: bool) -> dict[str, dict[str, Tensor]]:
    """All weights as the file holds them; a ValueError where one of them is no number there."""
    weights = {n: {k: _stored(v, half) for k, v in part.state_dict().items()} for n, part in parts.items()}
    if name := not_finite(weights):
        rounded = half and not not_finite({n: part.state_dict() for n, part in parts.items()})
        reason = "too large for half precision: leave half out" if rounded else "no number to keep"
        raise ValueError(f"{path}: expected finite weights, got NaN or infinity in {name}: {reason}")
    return weights


def _stored(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu()
    return value.to(torch.float16 if half else torch.float32) if value.is_floating_point() else value.clone()


def _restored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.float() if v.dtype == torch.float16 else v for k, v in state.items()}


def _check_plain(name: str, value: object) -> None:
    """Refuse what a file that executes no code cannot hold."""
    if found := _not_plain(value, name):
        raise ValueError(
            f"{found[0]}: expected plain values (strings, numbers, lists, dicts), got {found[1]}: float(...) or "
            "str(...) makes one"
        )


def _not_plain(value: object, name: str) -> tuple[str, str] | None:
    """Name and type of the first part of `value` that is not plain."""
    if isinstance(value, Mapping):
        parts = [(key, f"{name}[{key!r}]") for key in value] + [(v, f"{name}[{k!r}]") for k, v in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(part, f"{name}[{number}]") for number, part in enumerate(value)]
    else:
        # Not isinstance: numpy's float64 is a float.
        is_plain = value is None or type(value) in (str, int, float, bool, Tensor)
        return None if is_plain else (name, type(value).__name__)
    return next(filter(None, itertools.starmap(_not_plain, parts)), None)
