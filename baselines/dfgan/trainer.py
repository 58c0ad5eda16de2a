"""DF-GAN's training step. The dual loss enters at one place, the generator's update."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from easydict import EasyDict
from torch import Tensor, nn

from baselines.dfgan.losses import discriminator_loss, discriminator_terms, generator_loss
from baselines.dfgan.networks import ConditionalHead, Discriminator, Generator
from vlm_plugin import DualVLMLoss, Features, distributed
from vlm_plugin.data.dataset import Batch
from vlm_plugin.matching import unit
from vlm_plugin.model import read_checkpoint
from vlm_plugin.tools import training

_START = "vlm_plugin.DFGAN"


class DFGAN:
    """Networks, optimisers and one step of DF-GAN.

    Args:
        settings: see cfg/synthetic.yml.
        cond_dim: width of a sentence vector.
        device: where to train.
        dtype: autocast type.
    """

    def __init__(self, settings: EasyDict, cond_dim: int, device: torch.device, dtype: torch.dtype) -> None:
        nf, size = settings.nf, settings.image_size
        self.z_dim, self.device, self.dtype = settings.z_dim, device, dtype
        self.normalise_sentence = settings.normalise_sentence
        self.ema, self.seed = settings.ema, int(torch.initial_seed() % 2**31)
        self.generator = self._place(Generator(nf, self.z_dim, cond_dim, size))
        self.discriminator = self._place(Discriminator(nf, size))
        self.head = self._place(ConditionalHead(nf, cond_dim))
        for block in self.discriminator.DBlocks:
            nn.init.constant_(block.gamma, settings.residual_start)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        betas = tuple(settings.adam_betas)
        self.judges = [p for n in (self.discriminator, self.head) for p in n.parameters() if p.requires_grad]
        self.generator_adam = torch.optim.Adam(self.generator.parameters(), settings.generator_lr, betas)
        self.discriminator_adam = torch.optim.Adam(self.judges, settings.discriminator_lr, betas)

    def _place(self, network: nn.Module) -> nn.Module:
        return network.to(self.device, memory_format=torch.channels_last)

    def step(self, batch: Batch, text: Features, step: int, vlm_loss: DualVLMLoss | None) -> dict[str, Tensor]:
        """One update of discriminator and generator.

        Args:
            batch: real pictures `(B, 3, S, S)` in [-1, 1] on the device, with class ids.
            text: the captions' Features; DF-GAN reads the sentence vectors.
            step: number of the step, decides the noise.
            vlm_loss: the dual loss, or None for plain DF-GAN.

        Returns:
            Detached scalars by name.
        """
        sentence = self._condition(text)
        noise = training.noise((len(sentence), self.z_dim), self.device, self.seed, step, distributed.rank())
        with training.autocast(self.device, self.dtype):
            fake = self.generator(noise, sentence)
            terms = discriminator_terms(self.discriminator, self.head, batch.images, fake.detach(), sentence)
            hinge = discriminator_loss(terms.real, terms.fake, terms.mismatched)
        self._update(self.discriminator_adam, hinge + terms.penalty, self.judges)

        # Only the path through the discriminator to the image is wanted here, not its weights' gradients.
        _require_gradient(self.judges, False)
        with training.autocast(self.device, self.dtype):
            adversarial = generator_loss(self.head(self.discriminator(fake), sentence))
            values = {"discriminator": hinge, "penalty": terms.penalty, "generator": adversarial}
            total = adversarial
            if vlm_loss is not None:
                dual, dual_terms = vlm_loss(fake, text, batch.images, class_ids=batch.class_ids)
                total, values = total + dual, values | dual_terms
        self._update(self.generator_adam, total, list(self.generator.parameters()))
        _require_gradient(self.judges, True)
        training.update_average(self.average, self.generator, self.ema)
        return {name: value.detach() for name, value in values.items()}

    def _update(self, optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list[nn.Parameter]) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        training.average_gradients(parameters)
        optimizer.step()

    @torch.no_grad()
    def sample(self, noise: Tensor, text: Features) -> Tensor:
        """`(B, 3, S, S)` pictures in [-1, 1] of the averaged generator."""
        return self.average(noise, self._condition(text))

    def _condition(self, text: Features) -> Tensor:
        """The sentence vectors that condition the networks, at the scale that the settings ask for."""
        sentence = text.pooled.detach()
        return unit(sentence) * sentence.shape[1] ** 0.5 if self.normalise_sentence else sentence

    def _parts(self) -> dict[str, Any]:
        names = ("generator", "discriminator", "head", "average", "generator_adam", "discriminator_adam")
        return {name: getattr(self, name) for name in names}

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def save_start(self, path: Path, notes: dict[str, Any]) -> None:
        """Write the averaged generator and the discriminator as float16: what training needs to go on, made small."""
        networks = {"generator": self.average, "discriminator": self.discriminator, "head": self.head}
        weights = {n: {k: v.cpu().half() for k, v in m.state_dict().items()} for n, m in networks.items()}
        training.save_atomically({"format": _START, "version": 1, "notes": notes, "weights": weights}, path)

    def load_start(self, path: Path) -> None:
        """Take the networks that `save_start` wrote; optimisers start anew."""
        weights = read_checkpoint(path, _START, 1)["weights"]
        for name, network in (
            ("generator", self.generator),
            ("discriminator", self.discriminator),
            ("head", self.head),
        ):
            network.load_state_dict({k: v.float() for k, v in weights[name].items()})
        self.average.load_state_dict(self.generator.state_dict())


def _require_gradient(parameters: list[nn.Parameter], wanted: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(wanted)
