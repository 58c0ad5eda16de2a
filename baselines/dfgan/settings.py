"""DF-GAN's own knobs, beside those of every trainer."""

from __future__ import annotations

import dataclasses

from vlm_plugin.gans.config import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class DFGANSettings(Settings):
    """Settings of a run of DF-GAN; their values stand in `cfg/*.yml`."""

    # ---- the networks' sizes
    image_size: int
    """Side of the pictures in pixels: a power of two from 16 up."""
    nf: int
    """Channels at full resolution, from 1 up; at most 8 * nf elsewhere."""
    z_dim: int
    """Width of the noise, from 1 up."""

    # ---- the discriminator's beginning
    residual_start: float
    """Scale of its residual branches before the first step. Published: 0, from where it stays linear for long; at 64
    pixels the generator was then seen to saturate."""
