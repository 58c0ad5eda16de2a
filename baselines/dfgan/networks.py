"""DF-GAN's three networks: generator, image discriminator, and the head that judges an image against a sentence.

Source: "DF-GAN: A Simple and Effective Baseline for Text-to-Image Synthesis" (Tao et al., arXiv 2008.05865): one stage
of up-sampling residual blocks whose features are modulated by the text ("Deep text-image Fusion Block"), and a
discriminator with one conditional logit ("One-Way Output"). Parameter names, shapes and outputs agree with the
published networks `NetG`, `NetD` and `NetC` of the 2022 release, so their checkpoints load with `strict=True`.

Channel widths, counted from the image inwards, double from `nf` until they reach the cap of `8 * nf`; the 4x4 end is
always `8 * nf` wide. Known facts fix this for 64 and 256 pixels (and so for every size from 32 up, where the doubling
has reached the cap by itself). At 16 pixels it has not; there the last step jumps from `2 * nf` to `8 * nf`, which is
this project's choice: it keeps `ConditionalHead` independent of the image size.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_plugin import Features
from vlm_plugin.checks import check_positive

__all__ = ["ConditionalHead", "Discriminator", "Generator", "generator_of"]

_SLOPE = 0.2  # of every leaky ReLU
_BASE = 4  # side of the smallest feature map
_CAP = 8  # the widest layers have _CAP * nf channels


def _widths(nf: int, image_size: int) -> list[int]:
    """Channel widths at the resolutions image_size, image_size / 2, ..., 4 (see the module's docstring)."""
    check_positive(nf=nf, image_size=image_size)
    if image_size < 16 or image_size & (image_size - 1):
        raise ValueError(f"image_size: expected a power of two of at least 16, got {image_size}")
    steps = (image_size // _BASE).bit_length() - 1
    return [nf * min(2**step, _CAP) for step in range(steps)] + [nf * _CAP]


def _check_shape(name: str, value: Tensor, *expected: int) -> None:
    """Compare everything but the batch axis."""
    if value.dim() != len(expected) + 1 or tuple(value.shape[1:]) != expected:
        wanted = ", ".join(str(size) for size in ("B", *expected))
        raise ValueError(f"{name}: expected shape ({wanted}), got {tuple(value.shape)}")


def _check_batch(first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    if first.shape[0] != second.shape[0]:
        raise ValueError(
            f"{first_name} and {second_name}: expected the same batch size, got {first.shape[0]} and {second.shape[0]}"
        )


class _MLP(nn.Module):
    """Two linear layers: the condition (B, C) -> one number per channel (B, channels)."""

    def __init__(self, cond_dim: int, channels: int, start: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(cond_dim, channels)
        self.linear2 = nn.Linear(channels, channels)
        # The published shapes and outputs say nothing about the start of training. Here every modulation starts as
        # the identity (scale 1, shift 0) whatever the text: a 256-pixel generator's 24 affine layers would otherwise
        # each multiply the features by small random numbers and begin with a grey image.
        nn.init.zeros_(self.linear2.weight)
        nn.init.constant_(self.linear2.bias, start)

    def forward(self, condition: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(condition)))


class _Affine(nn.Module):
    """Text-conditioned scale and shift of every channel: gamma(c) * x + beta(c) (the paper's AFF)."""

    def __init__(self, cond_dim: int, channels: int) -> None:
        super().__init__()
        self.fc_gamma = _MLP(cond_dim, channels, start=1.0)
        self.fc_beta = _MLP(cond_dim, channels, start=0.0)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gamma = self.fc_gamma(condition)[:, :, None, None]
        beta = self.fc_beta(condition)[:, :, None, None]
        return gamma * x + beta


class _Fusion(nn.Module):
    """Affine, leaky ReLU, affine, leaky ReLU (inside the paper's Deep text-image Fusion Block)."""

    def __init__(self, cond_dim: int, channels: int) -> None:
        super().__init__()
        self.affine0 = _Affine(cond_dim, channels)
        self.affine1 = _Affine(cond_dim, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = F.leaky_relu(self.affine0(x, condition), _SLOPE)
        return F.leaky_relu(self.affine1(x, condition), _SLOPE)


class _UpBlock(nn.Module):
    """Residual block of the generator: twice the side, `width_in` -> `width_out` channels, two text fusions."""

    def __init__(self, cond_dim: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.c2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.fuse1 = _Fusion(cond_dim, width_in)
        self.fuse2 = _Fusion(cond_dim, width_out)
        self.c_sc = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        # The paper up-samples first. Nearest-neighbour copies commute with everything that acts on each pixel alone,
        # so the first fusion and the 1x1 shortcut run before it, on a quarter of the pixels, with the same result.
        shortcut = x if self.c_sc is None else self.c_sc(x)
        h = self.c1(_double(self.fuse1(x, condition)))
        h = self.c2(self.fuse2(h, condition))
        # `h` first: a sum takes its memory layout from there, and convolutions with channels_last weights set it, while
        # the shortcut of the first block still has the linear layer's.
        return h + _double(shortcut)


def _double(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W), every pixel copied to a 2x2 square."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class Generator(nn.Module):
    """One-stage generator (`NetG`): noise and a sentence vector to an image.

    Args:
        nf: width of the layer next to the image; the widest layers have `8 * nf` channels.
        z_dim: size of the noise vector.
        cond_dim: size of the sentence vector.
        image_size: side of the image, a power of two of at least 16.

    Raises:
        ValueError: an argument is not a positive integer, or `image_size` is no power of two of at least 16.
    """

    def __init__(self, nf: int = 32, z_dim: int = 100, cond_dim: int = 256, image_size: int = 256) -> None:
        super().__init__()
        widths = _widths(nf, image_size)[::-1]
        self.nf, self.image_size = nf, image_size
        self.noise_dim, self.embed_dim = z_dim, cond_dim
        check_positive(z_dim=z_dim, cond_dim=cond_dim)
        self.z_dim, self.cond_dim = z_dim, cond_dim
        self.fc = nn.Linear(z_dim, widths[0] * _BASE * _BASE)
        # The noise enters every modulation beside the sentence, not the first layer alone: a fact of the shapes.
        self.GBlocks = nn.ModuleList(
            _UpBlock(z_dim + cond_dim, width_in, width_out) for width_in, width_out in pairwise(widths)
        )
        self.to_rgb = nn.Sequential(nn.LeakyReLU(_SLOPE), nn.Conv2d(nf, 3, 3, padding=1))

    def forward(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """Draw images.

        Args:
            noise: (B, z_dim), standard normal in training.
            sentence: (B, cond_dim), the text encoder's sentence vectors.

        Returns:
            Images (B, 3, image_size, image_size) in [-1, 1]; float32 under autocast (float64 for a float64 network),
            as real images are.

        Raises:
            ValueError: a shape differs from the above.
        """
        _check_shape("noise", noise, self.z_dim)
        _check_shape("sentence", sentence, self.cond_dim)
        _check_batch("noise", noise, "sentence", sentence)
        condition = torch.cat([noise, sentence], dim=1)
        x = self.fc(noise).unflatten(1, (-1, _BASE, _BASE))
        for block in self.GBlocks:
            x = block(x, condition)
        rgb = self.to_rgb(x)
        return torch.tanh(rgb if rgb.dtype == torch.float64 else rgb.float())

    def draw(self, noise: Tensor, text: Features) -> tuple[Tensor, list[Tensor]]:
        """Pictures of captions from noise (B, noise_dim); no attention, since DF-GAN reads the sentence alone."""
        return self(noise, text.pooled), []


class _DownBlock(nn.Module):
    """Residual block of the discriminator: half the side, `width_in` -> `width_out` channels."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv_r = nn.Sequential(
            nn.Conv2d(width_in, width_out, 4, stride=2, padding=1, bias=False),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(width_out, width_out, 3, padding=1, bias=False),
            nn.LeakyReLU(_SLOPE),
        )
        # Published checkpoints hold a 1x1 shortcut for every block, but the output shows that blocks of equal widths
        # pass their input on as it is. The idle weights are kept for the checkpoint's sake and frozen, because
        # DistributedDataParallel waits for the gradient of every parameter that asks for one.
        self.conv_s = nn.Conv2d(width_in, width_out, 1).requires_grad_(width_in != width_out)
        # Zero, as in the original family: every block starts as its shortcut, and the residual half grows in.
        self.gamma = nn.Parameter(torch.zeros(1))
        self.learned_shortcut = width_in != width_out

    def forward(self, x: Tensor) -> Tensor:
        # Pooling before the 1x1 convolution: both are linear and commute, and the convolution sees a quarter.
        shortcut = F.avg_pool2d(x, 2)
        if self.learned_shortcut:
            shortcut = self.conv_s(shortcut)
        residual = self.conv_r(x)
        # `to`: a float32 gamma would widen all that follows to float32 under autocast.
        return shortcut + self.gamma.to(residual.dtype) * residual


class Discriminator(nn.Module):
    """Image half of the discriminator (`NetD`): images to a 4x4 grid of features.

    Args:
        nf: width of the layer next to the image.
        image_size: side of the images, a power of two of at least 16.

    Raises:
        ValueError: `nf` is not a positive integer, or `image_size` is no power of two of at least 16.
    """

    def __init__(self, nf: int = 32, image_size: int = 256) -> None:
        super().__init__()
        widths = _widths(nf, image_size)
        self.nf, self.image_size = nf, image_size
        self.conv_img = nn.Conv2d(3, nf, 3, padding=1)
        self.DBlocks = nn.ModuleList(_DownBlock(width_in, width_out) for width_in, width_out in pairwise(widths))

    def forward(self, images: Tensor) -> Tensor:
        """Look at images.

        Args:
            images: (B, 3, image_size, image_size) in [-1, 1].

        Returns:
            Features (B, 8 * nf, 4, 4).

        Raises:
            ValueError: the shape differs from the above.
        """
        _check_shape("images", images, 3, self.image_size, self.image_size)
        x = self.conv_img(images)
        for block in self.DBlocks:
            x = block(x)
        return x


class ConditionalHead(nn.Module):
    """Conditional half of the discriminator (`NetC`): does this image look real *and* fit this sentence?

    The paper's "One-Way Output": one logit for the pair, no unconditional logit beside it.

    Args:
        nf: as the discriminator's.
        cond_dim: size of the sentence vector.

    Raises:
        ValueError: an argument is not a positive integer.
    """

    def __init__(self, nf: int = 32, cond_dim: int = 256) -> None:
        super().__init__()
        check_positive(nf=nf, cond_dim=cond_dim)
        self.nf, self.cond_dim = nf, cond_dim
        self.joint_conv = nn.Sequential(
            nn.Conv2d(_CAP * nf + cond_dim, 2 * nf, 3, padding=1, bias=False),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(2 * nf, 1, _BASE, bias=False),
        )

    def forward(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Judge pairs.

        Args:
            features: (B, 8 * nf, 4, 4), from the discriminator.
            sentence: (B, cond_dim).

        Returns:
            Logits (B,), unbounded; the hinge losses push real pairs above 1 and others below -1.

        Raises:
            ValueError: a shape differs from the above.
        """
        _check_shape("features", features, _CAP * self.nf, _BASE, _BASE)
        _check_shape("sentence", sentence, self.cond_dim)
        _check_batch("features", features, "sentence", sentence)
        # `to`: concatenation under autocast would otherwise widen the features to the sentence's float32.
        tiled = sentence.to(features.dtype)[:, :, None, None].expand(-1, -1, _BASE, _BASE)
        return self.joint_conv(torch.cat([features, tiled], dim=1)).flatten()


def generator_of(state: Mapping[str, Tensor]) -> Generator:
    """A generator of the sizes that the shapes of a `NetG` state dict tell, without its weights.

    Raises:
        KeyError: no such state dict.
    """
    z_dim = state["fc.weight"].shape[1]
    doublings = sum(name.startswith("GBlocks.") and name.endswith(".c1.weight") for name in state)
    return Generator(
        nf=state["to_rgb.1.weight"].shape[1],
        z_dim=z_dim,
        cond_dim=state["GBlocks.0.fuse1.affine0.fc_gamma.linear1.weight"].shape[1] - z_dim,
        image_size=_BASE << doublings,
    )
