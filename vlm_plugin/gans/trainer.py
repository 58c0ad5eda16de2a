"""What the baselines' trainers share: a generator, its averaged copy, discriminators, two Adams, and their files."""

from __future__ import annotations

import abc
import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_plugin import VLM, DualVLMLoss, Features, distributed
from vlm_plugin.data.dataset import Batch
from vlm_plugin.files import write_file
from vlm_plugin.gans.config import Settings
from vlm_plugin.gans.saved import NetworkFiles, check_weights
from vlm_plugin.matching import unit
from vlm_plugin.training import stream as stream
from vlm_plugin.training.bad_steps import Guard, load_optimizer, optimizer_for
from vlm_plugin.training.device import autocast


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float, bad: Tensor | None = None) -> None:
    """Move an exponential moving average of weights towards `network`; buffers are copied.

    Args:
        average: the average.
        network: the weights as they are now.
        decay: share of the average that stays.
        bad: `()` bool; true leaves the average where it is.
    """
    share: float | Tensor = 1 - decay
    if bad is not None and bad.device.type == "cpu":
        share = 0.0 if bad else share
    elif bad is not None:  # without a wait for the GPU
        share = torch.where(bad, 0.0, share).float()
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, share)
    for mean, value in zip(average.buffers(), network.buffers(), strict=True):
        mean.copy_(value)


class Trainer(NetworkFiles):
    """Networks and optimisers of a GAN; a baseline adds its `update`, and how its files are read.

    Args:
        settings: of `settings_type`, or whatever has such attributes; `generator_lr`, `discriminator_lr`, `adam_betas`,
            `ema` and `normalise_text` are read here.
        generator: the generator.
        discriminators: by name; the names stand in checkpoints.
        noise_dim: width of the noise that a picture needs.
        image_size: side of the finished pictures.
        device: where to train.
        dtype: autocast type.

    Attributes:
        settings_type: the dataclass of the baseline's settings.
        trained_with: of the networks that `load_start` took, see `Saved`.
        start_is_checked: they say which text encoder conditioned them; published ones do not.
        guard: looks at every step, and knows what was wrong with the last one.
    """

    settings_type: type[Settings] = Settings

    def __init__(
        self,
        settings: Settings,
        generator: nn.Module,
        discriminators: Mapping[str, nn.Module],
        *,
        noise_dim: int,
        image_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.noise_dim, self.image_size, self.device, self.dtype = noise_dim, image_size, device, dtype
        self.trained_with: frozenset[str] = frozenset()
        self.start_is_checked = True
        self.ema, self.seed = settings.ema, int(torch.initial_seed() % 2**31)
        self.normalise_text = settings.normalise_text
        self.generator = self._place(generator)
        self.discriminators = {name: self._place(network) for name, network in discriminators.items()}
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self._judging = [p for n in self.discriminators.values() for p in n.parameters() if p.requires_grad]
        betas, of_device = tuple(settings.adam_betas), optimizer_for(device)
        self._generator_adam = torch.optim.Adam(self.generator.parameters(), settings.generator_lr, betas, **of_device)
        self._discriminator_adam = torch.optim.Adam(self._judging, settings.discriminator_lr, betas, **of_device)
        self.guard = Guard(device, {"generator": self.generator, **self.discriminators})

    def step(self, batch: Batch, text: Features, step: int, vlm_loss: DualVLMLoss | None) -> dict[str, Tensor]:
        """One update of every network; from the first on that is NaN or infinite, none (see `guard`).

        Args:
            batch, text, step, vlm_loss: see `update`.

        Returns:
            What `update` does; nothing where NaN or infinity was an error there.

        Raises:
            NotFiniteError: it was, with other ranks waiting.
        """
        (images,) = self.guard.begin(batch.images)
        values: dict[str, Tensor] = {}
        try:
            values = self.update(batch._replace(images=images), text, step, vlm_loss)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            self.guard.abandon(error)
        self.guard.note(values)
        return values

    @abc.abstractmethod
    def update(self, batch: Batch, text: Features, step: int, vlm_loss: DualVLMLoss | None) -> dict[str, Tensor]:
        """One update of every network, by `update_discriminators` and `update_generator`.

        Args:
            batch: real pictures `(B, 3, S, S)` in [-1, 1] on the device, with class ids.
            text: the captions' Features.
            step: number of the step, decides the noise.
            vlm_loss: the dual loss, or None for a plain run.

        Returns:
            Detached scalars by name, `discriminator` and `generator` among them.
        """

    @torch.no_grad()
    def sample(self, noise: Tensor, text: Features) -> Tensor:
        """`(B, 3, S, S)` pictures in [-1, 1] of the averaged generator, from noise `(B, noise_dim)`."""
        return self.average.draw(noise, self.condition(text))[0]

    def condition(self, text: Features) -> Features:
        """The Features that generator and discriminators read, at the scale that the settings ask for."""
        return scaled(text) if self.normalise_text else text.detach()

    def noise(self, batch: int, step: int) -> Tensor:
        """`(batch, noise_dim)` of a step, another on every rank."""
        return stream.noise((batch, self.noise_dim), self.device, self.seed, step, distributed.rank())

    def autocast(self) -> torch.autocast:
        """Autocast as the run's precision asks for."""
        return autocast(self.device, self.dtype)

    def update_discriminators(self, loss: Tensor) -> None:
        """One step of the discriminators' Adam."""
        self.guard.update(self._discriminator_adam, loss, self.discriminators)

    def update_generator(self, loss: Tensor) -> None:
        """One step of the generator's Adam and of its average."""
        self.guard.update(self._generator_adam, loss, {"generator": self.generator})
        update_average(self.average, self.generator, self.ema, self.guard.bad)

    @contextlib.contextmanager
    def frozen_discriminators(self) -> Iterator[None]:
        """For the generator's update: only the path to the image is wanted, not the weights' gradients."""
        for parameter in self._judging:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self._judging:
                parameter.requires_grad_(True)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        for name, part in self._parts().items():
            if isinstance(part, torch.optim.Optimizer):
                load_optimizer(part, state[name])
            else:
                part.load_state_dict(state[name])

    def save_start(self, path: Path, notes: Mapping[str, Any]) -> None:
        """Write the averaged generator and the discriminators as float16: a small file for others to go on from."""
        networks = {"generator": self.average, **self.discriminators}
        weights = {n: {k: _halved(v) for k, v in m.state_dict().items()} for n, m in networks.items()}
        content = {"format": f"vlm_plugin.{self.name}", "version": 1, "notes": dict(notes), "weights": weights}
        write_file(content, path)

    def load_start(self, path: Path, matcher: VLM, *, discriminators: bool = True) -> list[str]:
        """Begin from saved networks (see `read`); optimisers start anew.

        Args:
            path: a run's folder or a file.
            matcher: its text encoder will condition the generator.
            discriminators: take those too, where they are there.

        Returns:
            Names of the networks taken.

        Raises:
            FileNotFoundError, ValueError: the message names the file.
        """
        saved = self.read(path, discriminators=discriminators)
        saved.check(matcher, str(path))
        if saved.normalise_text != self.normalise_text:
            raise ValueError(
                f"{path}: trained with normalise_text {saved.normalise_text}, the settings say {self.normalise_text}: "
                "--cfg takes others (cfg/bird.yml and coco.yml are those of published generators)"
            )
        networks = {"generator": self.generator, **self.discriminators}
        taken = {n: w for n, w in saved.weights.items() if n == "generator" or discriminators}
        # All before the first is loaded: who catches the error goes on with the networks as they were.
        for name, state in taken.items():
            check_weights(networks.get(name), state, f"{path}, {name}")
        for name, state in taken.items():
            networks[name].load_state_dict(state)
        self.average.load_state_dict(self.generator.state_dict())
        self.trained_with, self.start_is_checked = saved.trained_with, saved.text_fingerprint is not None
        return list(taken)

    def _parts(self) -> dict[str, Any]:
        return {
            "generator": self.generator,
            **self.discriminators,
            "average": self.average,
            "generator_adam": self._generator_adam,
            "discriminator_adam": self._discriminator_adam,
        }

    def _place(self, network: nn.Module) -> nn.Module:
        return network.to(self.device, memory_format=torch.channels_last)


def scaled(text: Features) -> Features:
    """Word and sentence vectors brought to the length sqrt(D), without gradient. Source: ours.

    Networks expect inputs of about unit size in each component. A matcher trained on cosines leaves lengths open.
    """
    root = text.pooled.shape[1] ** 0.5
    return Features(unit(text.local.detach()) * root, unit(text.pooled.detach()) * root, text.mask)


def _halved(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return value.half() if value.is_floating_point() else value
