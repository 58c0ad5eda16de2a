"""DF-GAN's training step. The dual loss enters at one place, the generator's update."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_plugin import VLM, DualVLMLoss, Features
from vlm_plugin.data.dataset import Batch
from vlm_plugin.gans.saved import bare
from vlm_plugin.gans.trainer import Trainer

from .losses import discriminator_loss, discriminator_terms, generator_loss
from .networks import ConditionalHead, Discriminator, Generator, generator_of
from .settings import DFGANSettings

# Name of a network here -> in published checkpoints.
_PUBLISHED = {"generator": "netG", "discriminator": "netD", "head": "netC"}


class DFGAN(Trainer):
    """Networks, optimisers and one step of DF-GAN.

    Args:
        settings: see `DFGANSettings`.
        matcher: its text encoder gave the captions' Features.
        device: where to train.
        dtype: autocast type.
    """

    name = "DFGAN"
    settings_type = DFGANSettings

    def __init__(self, settings: DFGANSettings, matcher: VLM, device: torch.device, dtype: torch.dtype) -> None:
        nf, size, width = settings.nf, settings.image_size, matcher.embed_dim
        generator, discriminator = Generator(nf, settings.z_dim, width, size), Discriminator(nf, size)
        for block in discriminator.DBlocks:
            nn.init.constant_(block.gamma, settings.residual_start)
        super().__init__(
            settings, generator, {"discriminator": discriminator, "head": ConditionalHead(nf, width)},
            noise_dim=settings.z_dim, image_size=size, device=device, dtype=dtype,
        )  # fmt: skip

    def update(self, batch: Batch, text: Features, step: int, vlm_loss: DualVLMLoss | None) -> dict[str, Tensor]:
        """One update of discriminator and generator; DF-GAN reads the sentence vectors alone. See `Trainer.update`."""
        sentence = self.condition(text).pooled
        discriminator, head = self.discriminators["discriminator"], self.discriminators["head"]
        with self.autocast():
            fake = self.generator(self.noise(len(sentence), step), sentence)
            terms = discriminator_terms(discriminator, head, batch.images, fake.detach(), sentence)
            hinge = discriminator_loss(terms.real, terms.fake, terms.mismatched)
        self.update_discriminators(hinge + terms.penalty)

        with self.frozen_discriminators():
            with self.autocast():
                adversarial = generator_loss(head(discriminator(fake), sentence))
                values = {"discriminator": hinge, "penalty": terms.penalty, "generator": adversarial}
                total = adversarial
                if vlm_loss is not None:
                    dual, dual_terms = vlm_loss(fake, text, batch.images, class_ids=batch.class_ids)
                    total, values = total + dual, values | dual_terms
            self.update_generator(total)
        return {name: value.detach() for name, value in values.items()}

    generator_of = staticmethod(generator_of)

    @staticmethod
    def published(content: Mapping[str, Any], path: Path, discriminators: bool) -> dict[str, Mapping[str, Tensor]]:
        """The state of a published training, `{"model": {"netG": ..., "netD": ..., "netC": ...}}` with or without the
        outer `model`, or the bare state dict of `NetG`."""
        part = content.get("model", content)
        if not isinstance(part, Mapping) or "netG" not in part:
            part = {"netG": part}
        found = {ours: bare(part[name], f"{path}, {name}") for ours, name in _PUBLISHED.items() if name in part}
        if "GBlocks.0.c1.weight" not in found["generator"]:
            raise ValueError(f"{path}: expected a DF-GAN training state or generator, without GBlocks.0.c1.weight")
        return found
