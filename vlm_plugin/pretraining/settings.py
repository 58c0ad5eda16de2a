"""Every knob of a pretraining, in one place."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

from vlm_plugin.checks import is_integer
from vlm_plugin.training.bad_steps import MAX_BAD_STEPS, check_max_bad_steps
from vlm_plugin.training.stream import check_seed


class EncoderDefaults(NamedTuple):
    """What an image encoder is trained with where nothing else is asked for."""

    image_size: int
    learning_rate: float
    embed_dim: int


DEFAULTS = {
    "conv": EncoderDefaults(64, 1e-3, 128),
    "inception": EncoderDefaults(256, 2e-4, 256),
    "shufflenet": EncoderDefaults(64, 1e-3, 128),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """How a matcher is trained. None stands for what was left out; `filled_in` has the value that takes its place."""

    # ---- what is trained
    encoder: str | None = None
    """The image encoder: "conv" (64 pixels, a CPU will do; taken when left out), "shufflenet" (64 pixels, thrice as
    slow; for a second matcher that judges) or "inception" (256 pixels, which it enlarges to 299)."""
    embed_dim: int | None = None
    """D of the common space; the encoder's of `DEFAULTS` when left out."""
    image_weights: str | None = None
    """Of the Inception trunk, which then stays frozen, as DAMSM's does: "imagenet" or a file."""
    damsm: str | Path | None = None
    """A published DAMSM text encoder, to start from it and from what `damsm_pair` finds with it."""
    freeze_encoders: bool = False
    """Train nothing but a scorer for the DAMSM encoders."""

    # ---- how it is trained
    epochs: int = 30
    """Passes over the train split."""
    batch: int = 64
    """Pictures a step (paper: 64)."""
    image_size: int | None = None
    """Pixels that the pictures are cropped to; the encoder's of `DEFAULTS` when left out."""
    learning_rate: float | None = None
    """AdamW's at its peak; the encoder's of `DEFAULTS` when left out."""
    seed: int = 0
    """Decides initial weights, order and negatives."""
    skip_bad: bool = False
    """Leave out pictures that cannot be read, and those without a caption of known words, and list them in `out` +
    ".skipped.txt". A run that began so goes on so."""

    max_bad_steps: int = MAX_BAD_STEPS
    """As many steps in a row with NaN or infinity end the training, from 1 up; fewer are passed over."""

    # ---- on what, and what is written
    device: str | None = None
    """Where to compute, "cuda" or "cpu"; the GPU when left out, where there is one."""
    precision: str = "auto"
    """Of the computation: "auto", "float32" or "bfloat16". A resumed run may have another, as another machine may."""
    half: bool = False
    """Store the weights as float16."""


def filled_in(settings: PretrainSettings) -> PretrainSettings:
    """The settings with a value for whatever has a default that depends on the encoder, after a look at every value.

    Raises:
        ValueError: a value that is none, or two that exclude each other; the message names the setting.
    """
    for name in ("encoder", "embed_dim", "image_weights"):
        if settings.damsm is not None and (value := getattr(settings, name)) is not None:
            raise ValueError(f"{name}: the DAMSM files decide on it, leave it out, got {value!r}")
    if settings.freeze_encoders and settings.damsm is None:
        raise ValueError("freeze_encoders: expected DAMSM encoders with it (--damsm), new ones have to be trained")
    encoder = settings.encoder or ("conv" if settings.damsm is None else "inception")
    if not isinstance(encoder, str) or encoder not in DEFAULTS:
        raise ValueError(f"encoder: expected one of {sorted(DEFAULTS)}, got {encoder!r}")
    if encoder != "inception" and settings.image_weights is not None:
        raise ValueError(
            f"image_weights: only the inception encoder takes any, got {settings.image_weights!r} for {encoder}"
        )
    for name, least in (("epochs", 1), ("batch", 2), ("embed_dim", 1), ("image_size", 1)):
        value = getattr(settings, name)
        if value is not None and not is_integer(value, least):
            raise ValueError(f"{name}: expected a whole number from {least} up, got {value}")
    rate = settings.learning_rate
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf):
        raise ValueError(f"learning_rate: expected a number above 0, got {rate!r}")
    check_seed(settings.seed)
    check_max_bad_steps(settings.max_bad_steps, MAX_BAD_STEPS)
    left_out = {name: v for name, v in DEFAULTS[encoder]._asdict().items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, encoder=encoder, **left_out)
