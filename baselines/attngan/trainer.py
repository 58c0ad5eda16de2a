"""AttnGAN's training step. DAMSM makes the generator follow the caption, or the dual loss in its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_plugin import VLM, DualVLMLoss, Features
from vlm_plugin.data.dataset import Batch
from vlm_plugin.files import read_file
from vlm_plugin.gans.saved import bare
from vlm_plugin.gans.trainer import Trainer

from .losses import damsm_loss, discriminator_loss, generator_loss, kl_loss
from .networks import Discriminator, Generator, generator_of
from .settings import AttnGANSettings


class AttnGAN(Trainer):
    """Networks, optimisers and one step of AttnGAN.

    Args:
        settings: see `AttnGANSettings`.
        matcher: its text encoder gave the captions' Features; its image encoder serves DAMSM in plain runs.
        device: where to train.
        dtype: autocast type.
    """

    name = "AttnGAN"
    settings_type = AttnGANSettings
    learns_from_matcher = True  # DAMSM

    def __init__(self, settings: AttnGANSettings, matcher: VLM, device: torch.device, dtype: torch.dtype) -> None:
        s, width = settings, matcher.embed_dim
        generator = Generator(s.gf_dim, s.stages, s.base_size, s.z_dim, s.condition_dim, width, s.residual_blocks)
        sizes = generator.image_sizes
        discriminators = {f"discriminator{size}": Discriminator(s.df_dim, size, width) for size in sizes}
        for network in (generator, *discriminators.values()):
            network.apply(_initialise)
        super().__init__(
            settings, generator, discriminators,
            noise_dim=generator.noise_dim, image_size=sizes[-1], device=device, dtype=dtype,
        )  # fmt: skip
        self.settings, self.matcher = settings, matcher

    def update(self, batch: Batch, text: Features, step: int, vlm_loss: DualVLMLoss | None) -> dict[str, Tensor]:
        """One update of the discriminators and the generator; see `Trainer.update`."""
        s, condition = self.settings, self.condition(text)
        judges = list(self.discriminators.values())
        reals = [_resized(batch.images, size) for size in self.generator.image_sizes]
        with self.autocast():
            z, augmentation = self.generator.split(self.noise(len(batch.images), step))
            fake = self.generator(z, condition, augmentation)
            losses = [
                discriminator_loss(*three, condition.pooled) for three in zip(judges, reals, fake.images, strict=True)
            ]
        self.update_discriminators(sum(losses))

        with self.frozen_discriminators():
            with self.autocast():
                adversarial, kl = generator_loss(judges, fake.images, condition.pooled), kl_loss(fake.mu, fake.logvar)
                total = s.adversarial_weight * adversarial + s.kl_weight * kl
                values = {"discriminator": sum(losses), "generator": adversarial, "kl": kl}
                if vlm_loss is not None:
                    dual, terms = vlm_loss(fake.images[-1], text, batch.images, class_ids=batch.class_ids)
                    total = total + dual
                else:
                    image = self.matcher.encode_image(fake.images[-1])
                    classes = batch.class_ids.to(self.device, non_blocking=True)
                    damsm = damsm_loss(image, text, classes, s.damsm.gamma1, s.damsm.gamma2, s.damsm.gamma3)
                    total, terms = total + s.damsm.weight * sum(damsm), damsm._asdict()
            self.update_generator(total)
        return {name: value.detach() for name, value in {**values, **terms}.items()}

    generator_of = staticmethod(generator_of)

    @classmethod
    def published(cls, content: Mapping[str, Any], path: Path, discriminators: bool) -> dict[str, Mapping[str, Tensor]]:
        """A bare `G_NET` state dict, and the discriminators `netD0.pth`, `netD1.pth`, ... where they lie beside it."""
        weights = {"generator": bare(content, str(path))}
        if "ca_net.fc.weight" not in weights["generator"]:
            raise ValueError(
                f"{path}: expected the state dict of AttnGAN's generator (G_NET), without ca_net.fc.weight"
            )
        if not discriminators:
            return weights
        with torch.device("meta"):  # its sizes alone are asked for
            sizes = cls._sized(weights["generator"], str(path)).image_sizes
        for number, size in enumerate(sizes):
            beside = path.with_name(f"netD{number}.pth")
            if beside.is_file():
                weights[f"discriminator{size}"] = bare(read_file(beside, "state dict"), str(beside))
        return weights


def _resized(images: Tensor, size: int) -> Tensor:
    """Real pictures for a smaller stage, filtered as PIL does it."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _initialise(module: nn.Module) -> None:
    """Orthogonal weights, and scales near 1: as published."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.orthogonal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
