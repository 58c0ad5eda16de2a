"""AttnGAN's networks: a generator of several stages that attends to words, and one discriminator a stage.

Source: "AttnGAN: Fine-Grained Text to Image Generation with Attentional Generative Adversarial Networks" (Xu et al.,
arXiv 1711.10485). Parameter names, shapes and outputs agree with the published networks `G_NET`, `D_NET64`, `D_NET128`
and `D_NET256`, so their state dicts load with `strict=True`.

One defect of the published code stays out: it tiles the mask of the word attention in the wrong order, so that in a
batch of captions of unequal lengths a pixel ignores another caption's padding and attends to its own. Here each sample
is masked with its own caption.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_plugin import Features

__all__ = ["Discriminator", "Generated", "Generator", "generator_of"]

_SLOPE = 0.2  # of every leaky ReLU
_BASE = 4  # side of the smallest feature map


def _side(name: str, value: int) -> int:
    """Doublings from the 4x4 map to `value`."""
    if value < 16 or value & (value - 1):
        raise ValueError(f"{name}: expected a power of two of at least 16, got {value}")
    return (value // _BASE).bit_length() - 1


def _at_least_float32(x: Tensor) -> Tensor:
    """What autocast made narrower goes on in float32: exponentials, softmaxes and finished pictures want it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _conv3(width_in: int, width_out: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)


def _up(width_in: int, width_out: int) -> nn.Sequential:
    """Twice the side: (B, width_in, H, W) -> (B, width_out, 2H, 2W)."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        _conv3(width_in, 2 * width_out),
        nn.BatchNorm2d(2 * width_out),
        nn.GLU(dim=1),
    )


class _Condition(nn.Module):
    """Conditioning augmentation: a Gaussian around what the sentence says, instead of the sentence itself."""

    def __init__(self, embed_dim: int, condition_dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(embed_dim, 4 * condition_dim)

    def forward(self, sentence: Tensor, augmentation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = (_at_least_float32(part) for part in F.glu(self.fc(sentence)).chunk(2, dim=1))
        noise = torch.randn_like(mu) if augmentation is None else augmentation
        return mu + noise * (0.5 * logvar).exp(), mu, logvar


class _FirstStage(nn.Module):
    """Noise and condition to features (B, gf_dim, base_size, base_size)."""

    def __init__(self, input_dim: int, gf_dim: int, base_size: int) -> None:
        super().__init__()
        self.doublings = _side("base_size", base_size)
        width = gf_dim << self.doublings
        self.fc = nn.Sequential(
            nn.Linear(input_dim, 2 * width * _BASE * _BASE, bias=False),
            nn.BatchNorm1d(2 * width * _BASE * _BASE),
            nn.GLU(dim=1),
        )
        for number in range(1, self.doublings + 1):
            setattr(self, f"upsample{number}", _up(width, width // 2))
            width //= 2

    def forward(self, condition: Tensor, noise: Tensor) -> Tensor:
        h = self.fc(torch.cat([condition, noise], dim=1)).unflatten(1, (-1, _BASE, _BASE))
        for number in range(1, self.doublings + 1):
            h = getattr(self, f"upsample{number}")(h)
        return h


class _WordAttention(nn.Module):
    """For each pixel, the words that it should look at."""

    def __init__(self, gf_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.conv_context = nn.Conv2d(embed_dim, gf_dim, 1, bias=False)

    def forward(self, h: Tensor, text: Features) -> tuple[Tensor, Tensor]:
        """Features (B, C, H, W) -> word context of every pixel (B, C, H, W), attention (B, T, H, W)."""
        words = self.conv_context(text.local.transpose(1, 2)[..., None]).squeeze(3)
        scores = _at_least_float32(torch.einsum("bchw,bct->bthw", h, words))
        attention = scores.masked_fill(~text.mask[:, :, None, None], float("-inf")).softmax(dim=1)
        return torch.einsum("bthw,bct->bchw", attention.to(words.dtype), words), attention


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            _conv3(width, 2 * width),
            nn.BatchNorm2d(2 * width),
            nn.GLU(dim=1),
            _conv3(width, width),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class _NextStage(nn.Module):
    """Features (B, gf_dim, H, W) and words to features of twice the side."""

    def __init__(self, gf_dim: int, embed_dim: int, residual_blocks: int) -> None:
        super().__init__()
        self.att = _WordAttention(gf_dim, embed_dim)
        self.residual = nn.Sequential(*(_Residual(2 * gf_dim) for _ in range(residual_blocks)))
        self.upsample = _up(2 * gf_dim, gf_dim)

    def forward(self, h: Tensor, text: Features) -> tuple[Tensor, Tensor]:
        context, attention = self.att(h, text)
        return self.upsample(self.residual(torch.cat([h, context], dim=1))), attention


class _ToImage(nn.Module):
    def __init__(self, gf_dim: int) -> None:
        super().__init__()
        self.img = nn.Sequential(_conv3(gf_dim, 3), nn.Tanh())

    def forward(self, h: Tensor) -> Tensor:
        return self.img[1](_at_least_float32(self.img[0](h)))


class Generated(NamedTuple):
    """What the generator draws, and how."""

    images: list[Tensor]
    """One (B, 3, S, S) in [-1, 1] a stage, from small to large."""
    attention: list[Tensor]
    """One (B, T, S, S) a stage after the first, S the side of the stage before: for each pixel a distribution over the
    words of its caption."""
    mu: Tensor
    """(B, condition_dim), mean of the conditioning augmentation."""
    logvar: Tensor
    """(B, condition_dim), logarithm of its variance."""


class Generator(nn.Module):
    """The generator of AttnGAN (`G_NET`).

    Args:
        gf_dim: channels of each stage's features at full resolution.
        stages: pictures drawn, each twice the side of the one before; words are attended to from the second on.
        base_size: side of the first picture, a power of two of at least 16.
        z_dim: width of the noise.
        condition_dim: width of the conditioning augmentation.
        embed_dim: D of the text's Features.
        residual_blocks: in each stage after the first.

    Raises:
        ValueError: fewer than one stage, or a `base_size` as above says it must not be.
    """

    def __init__(
        self,
        gf_dim: int,
        stages: int = 3,
        base_size: int = 64,
        z_dim: int = 100,
        condition_dim: int = 100,
        embed_dim: int = 256,
        residual_blocks: int = 2,
    ) -> None:
        super().__init__()
        if stages < 1:
            raise ValueError(f"stages: expected at least 1, got {stages}")
        self.stages, self.z_dim, self.condition_dim, self.embed_dim = stages, z_dim, condition_dim, embed_dim
        self.noise_dim = z_dim + condition_dim
        self.image_sizes = [base_size << stage for stage in range(stages)]
        self.ca_net = _Condition(embed_dim, condition_dim)
        self.h_net1 = _FirstStage(z_dim + condition_dim, gf_dim, base_size)
        self.img_net1 = _ToImage(gf_dim)
        for number in range(2, stages + 1):
            setattr(self, f"h_net{number}", _NextStage(gf_dim, embed_dim, residual_blocks))
            setattr(self, f"img_net{number}", _ToImage(gf_dim))

    def forward(self, z: Tensor, text: Features, augmentation: Tensor | None = None) -> Generated:
        """Draw a picture of each caption at every stage.

        Args:
            z: (B, z_dim), standard normal.
            text: B captions' Features; the words' mask is each caption's own.
            augmentation: (B, condition_dim), standard normal, what the conditioning augmentation draws; from torch's
                global randomness when left out, in eval mode too, as published.

        Returns:
            `(images, attention, mu, logvar)`.

        Raises:
            ValueError: shapes other than these; the message names the argument.
        """
        if z.dim() != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z: expected (B, {self.z_dim}), got {tuple(z.shape)}")
        if text.pooled.shape != (len(z), self.embed_dim) or text.local.shape[::2] != (len(z), self.embed_dim):
            raise ValueError(
                f"text: expected local ({len(z)}, T, {self.embed_dim}) and pooled ({len(z)}, {self.embed_dim}), "
                f"got {tuple(text.local.shape)} and {tuple(text.pooled.shape)}"
            )
        if augmentation is not None and augmentation.shape != (len(z), self.condition_dim):
            raise ValueError(
                f"augmentation: expected ({len(z)}, {self.condition_dim}), got {tuple(augmentation.shape)}"
            )
        condition, mu, logvar = self.ca_net(text.pooled, augmentation)
        h = self.h_net1(condition, z)
        images, attention = [self.img_net1(h)], []
        for number in range(2, self.stages + 1):
            h, weights = getattr(self, f"h_net{number}")(h, text)
            images.append(getattr(self, f"img_net{number}")(h))
            attention.append(weights)
        return Generated(images, attention, mu, logvar)

    def split(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Noise (B, noise_dim) as `z` and `augmentation`: all that a picture depends on besides its caption."""
        return tuple(noise.split([self.z_dim, self.condition_dim], dim=1))

    def draw(self, noise: Tensor, text: Features) -> tuple[Tensor, list[Tensor]]:
        """The last stage's pictures, and every attention, from noise (B, noise_dim)."""
        z, augmentation = self.split(noise)
        generated = self(z, text, augmentation)
        return generated.images[-1], generated.attention


def generator_of(state: Mapping[str, Tensor]) -> Generator:
    """A generator of the sizes that the shapes of a `G_NET` state dict tell, without its weights.

    Raises:
        KeyError: no such state dict.
    """
    fours, embed_dim = state["ca_net.fc.weight"].shape
    condition_dim = fours // 4
    doublings = sum(name.startswith("h_net1.upsample") and name.endswith(".1.weight") for name in state)
    return Generator(
        gf_dim=state["img_net1.img.0.weight"].shape[1],
        stages=sum(name.endswith(".img.0.weight") for name in state),
        base_size=_BASE << doublings,
        z_dim=state["h_net1.fc.0.weight"].shape[1] - condition_dim,
        condition_dim=condition_dim,
        embed_dim=embed_dim,
        residual_blocks=sum(name.startswith("h_net2.") and name.endswith(".block.0.weight") for name in state),
    )


def _down(width_in: int, width_out: int) -> list[nn.Module]:
    """Half the side."""
    conv = nn.Conv2d(width_in, width_out, 4, stride=2, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(width_out), nn.LeakyReLU(_SLOPE, inplace=True)]


def _narrow(width_in: int, width_out: int) -> nn.Sequential:
    """Fewer channels at the same side."""
    return nn.Sequential(_conv3(width_in, width_out), nn.BatchNorm2d(width_out), nn.LeakyReLU(_SLOPE, inplace=True))


class _Head(nn.Module):
    """Features, and the sentence where there is one, to a logit. The published heads end in a sigmoid; ours do not,
    since the losses are steadier on logits."""

    def __init__(self, width: int, embed_dim: int = 0) -> None:
        super().__init__()
        if embed_dim:
            self.jointConv = _narrow(width + embed_dim, width)
        self.outlogits = nn.Sequential(nn.Conv2d(width, 1, _BASE, stride=_BASE))

    def forward(self, features: Tensor, sentence: Tensor | None = None) -> Tensor:
        if sentence is not None:
            tiled = sentence.to(features.dtype)[:, :, None, None].expand(-1, -1, _BASE, _BASE)
            features = self.jointConv(torch.cat([features, tiled], dim=1))
        return self.outlogits(features).flatten()


class Discriminator(nn.Module):
    """The discriminator of one stage (`D_NET64`, `D_NET128`, `D_NET256`).

    Published ones take 64, 128 and 256 pixels. Below 64 the first layers are left out, and it begins wider: ours, so
    that small runs end in the same 4x4 map of `8 * df_dim` channels.

    Args:
        df_dim: channels after the first layer (at 64 pixels and more).
        image_size: side of the pictures, a power of two of at least 16.
        embed_dim: D of the sentence vectors.

    Raises:
        ValueError: an `image_size` as above says it must not be.
    """

    def __init__(self, df_dim: int, image_size: int, embed_dim: int = 256) -> None:
        super().__init__()
        doublings = _side("image_size", image_size)
        self.image_size, self.embed_dim = image_size, embed_dim
        widths = [df_dim << step for step in range(max(4 - doublings, 0), 4)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1, bias=False)]
        layers.append(nn.LeakyReLU(_SLOPE, inplace=True))
        for narrow, wide in pairwise(widths):
            layers += _down(narrow, wide)
        self.img_code_s16 = nn.Sequential(*layers)
        # Beyond 64 pixels: halve the side and double the width until 4x4, then come back to 8 * df_dim.
        width, self._rest = 8 * df_dim, []
        for extra in range(1, doublings - 3):
            self._add(f"img_code_s{16 << extra}", nn.Sequential(*_down(width, 2 * width)))
            width *= 2
        for number in range(1, doublings - 3):
            self._add(f"img_code_s{1 << doublings}_{number}", _narrow(width, width // 2))
            width //= 2
        self.UNCOND_DNET = _Head(width)
        self.COND_DNET = _Head(width, embed_dim)

    def _add(self, name: str, layer: nn.Module) -> None:
        self.add_module(name, layer)
        self._rest.append(name)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 8 * df_dim, 4, 4) of pictures (B, 3, S, S) in [-1, 1].

        Raises:
            ValueError: pictures of another size.
        """
        if tuple(images.shape[1:]) != (3, self.image_size, self.image_size):
            raise ValueError(
                f"images: expected (B, 3, {self.image_size}, {self.image_size}), got {tuple(images.shape)}"
            )
        h = self.img_code_s16(images)
        for name in self._rest:
            h = getattr(self, name)(h)
        return h

    def unconditional(self, features: Tensor) -> Tensor:
        """Logits (B,) that a picture is real."""
        return self.UNCOND_DNET(features)

    def conditional(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Logits (B,) that a picture is real and belongs to its sentence (B, D)."""
        return self.COND_DNET(features, sentence)
