"""AttnGAN's own knobs, beside those of every trainer."""

from __future__ import annotations

import dataclasses

from vlm_plugin.gans.config import Section, Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class DAMSMSettings(Section):
    """What makes the generator of a plain run follow the caption; with `--vlm` the dual loss stands in its place."""

    weight: float
    """Of the four losses' sum (AttnGAN's lambda). Published: 5 for birds, 50 for COCO."""
    gamma1: float
    """How sharply a word picks its regions: the factor of its attention's cosines."""
    gamma2: float
    """How far a caption's best matching words count for more than its others."""
    gamma3: float
    """Factor of the scores that a batch's captions compete with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttnGANSettings(Settings):
    """Settings of a run of AttnGAN; their values stand in `cfg/*.yml`."""

    # ---- the networks' sizes
    base_size: int
    """Side of the first stage's pictures in pixels, a power of two from 16 up; each further stage doubles it."""
    stages: int
    """How many generators, each with a discriminator of its own, refine the picture: from 1 up."""
    gf_dim: int
    """Channels of a stage's features, from 1 up."""
    df_dim: int
    """Channels after a discriminator's first layer at 64 pixels, from 1 up."""
    z_dim: int
    """Width of the noise, from 1 up."""
    condition_dim: int
    """Width of the condition that is drawn around the sentence vector, from 1 up."""
    residual_blocks: int
    """In each stage after the first, from 0 up."""

    # ---- the generator's losses
    adversarial_weight: float
    """Of the sum over stages of the mean of both heads; AttnGAN's code sums the heads, which is a weight of 2 here."""
    kl_weight: float
    """Of the divergence of that condition's distribution from the standard normal one."""
    damsm: DAMSMSettings
