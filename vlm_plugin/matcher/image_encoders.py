"""Networks that turn images and captions into `Features`: Inception-v3, a small CNN, a bidirectional LSTM.

All of them give local vectors `(B, N, D)`, one pooled vector `(B, D)` and a mask `(B, N)`, which is all that the
matching scores know. Each keeps the plain values that rebuild it in `settings`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_plugin.checks import check_image_batch, check_positive, first_tensor
from vlm_plugin.features import Features
from vlm_plugin.files import read_state_dict
from vlm_plugin.matcher.identity import unwrapped

__all__ = ["ConvEncoder", "ImageEncoder", "InceptionEncoder", "ShuffleNetEncoder", "build_image_encoder"]


def _sized(images: Tensor, size: int) -> Tensor:
    """Square images of `size` pixels: bilinear, antialiased."""
    if images.shape[-2:] == (size, size):
        return images
    # A CPU has no antialiased resizing in half precision.
    single = images.to(torch.promote_types(images.dtype, torch.float32))
    resized = F.interpolate(single, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return resized.to(images.dtype)


def _image_features(regions: Tensor, pooled: Tensor) -> Features:
    """`Features` of a region map `(B, D, h, w)`, regions in row-major order, and global vectors `(B, D)`."""
    local = regions.flatten(2).transpose(1, 2)
    return Features(local, pooled, torch.ones(local.shape[:2], dtype=torch.bool, device=local.device))


class ImageEncoder(nn.Module):
    """What the image encoders here share: `forward` looks at what it is given, unless the caller has done so.

    A subclass has `_features`, the network without the look.
    """

    def forward(self, images: Tensor, *, checked: bool = False) -> Features:
        """Encode images.

        Args:
            images: `(B, 3, H, W)` in [-1, 1], of the encoder's device and dtype (outside autocast); H and W of any
                size from 1 up.
            checked: the caller has looked at `images` already.

        Returns:
            Features, all regions of them valid.

        Raises:
            TypeError, ValueError: `images` are something else; values are not looked at.
        """
        if not checked:
            check_image_batch(images, first_tensor(self))
        return self._features(images)

    def _features(self, images: Tensor) -> Features:
        """The network itself, for images that were looked at."""
        raise NotImplementedError


def encode_checked(encoder: nn.Module, images: Tensor) -> object:
    """What an image encoder makes of images that its caller has looked at.

    One of ours does not look again, whatever it is wrapped in. Any other module, and a subclass with a `forward` of its
    own, is called as it is.

    Args:
        encoder: an `ImageEncoder`, or a host's module.
        images: as the encoder takes them.
    """
    forward = unwrapped(encoder).forward
    if getattr(forward, "__func__", None) is ImageEncoder.forward:
        return encoder(images, checked=True)
    return encoder(images)


class InceptionEncoder(ImageEncoder):
    """Inception-v3 as visual encoder: 289 regions from Mixed_6e and one global vector.

    Source: arXiv 2208.09596, the visual encoder. Regions are Mixed_6e's 768x17x17 through a 1x1 convolution, the global
    vector is 2048-d through a linear layer, from Mixed_7b (paper); the resize to 299 (ours, implied by 17x17) and the
    average pooling are those of DAMSM's published encoder, whose state dict loads with `strict=True` where
    `global_layer` is `"Mixed_7c"`.

    Attributes:
        embed_dim: D.
        grid: rows and columns of the regions, (17, 17).
        input_range: the value range of the images, (-1, 1), in which ImageNet's weights were trained too.
        global_layer: the layer behind the global vector.
        settings: plain values that rebuild the encoder (without weights).
    """

    name = "inception"
    grid = (17, 17)
    input_range = (-1, 1)
    input_size = 299

    def __init__(
        self,
        embed_dim: int = 256,
        global_layer: str | None = None,
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        """Build the network, and load weights if asked to. Nothing is ever downloaded.

        Args:
            embed_dim: D.
            global_layer: `"Mixed_7b"` (the paper) or `"Mixed_7c"` (published DAMSM encoders). None takes what the
                weights have where they are an encoder's, else `"Mixed_7b"`.
            weights: None for random ones; `"imagenet"` for torchvision's, from its cache; or a file with the state dict
                of torchvision's `inception_v3` (its classifiers are ignored) or of an encoder like this, a DAMSM one
                included.

        Raises:
            FileNotFoundError: the weights are not there; for `"imagenet"` the message says where they were expected.
            ValueError: an argument is none of these, or the file does not fit.
        """
        super().__init__()
        check_positive(embed_dim=embed_dim)
        if global_layer not in (None, "Mixed_7b", "Mixed_7c"):
            raise ValueError(f"global_layer: expected 'Mixed_7b', 'Mixed_7c' or None, got {global_layer!r}")
        source, state = _inception_weights(weights)
        stored_layer = None
        if "emb_cnn_code.weight" in state:
            stored_layer = "Mixed_7c" if any(key.startswith("Mixed_7c.") for key in state) else "Mixed_7b"
            if global_layer not in (None, stored_layer):
                raise ValueError(
                    f"global_layer: expected {stored_layer!r}, on which the encoder in {source} was trained, "
                    f"got {global_layer!r}"
                )
        self.embed_dim = embed_dim
        self.global_layer = global_layer or stored_layer or "Mixed_7b"
        self.settings: dict[str, Any] = {"embed_dim": embed_dim, "global_layer": self.global_layer}

        # Not at the top: it takes longer to import than torch, and other encoders do without.
        from torchvision.models import inception as blocks

        # The blocks' own default initialisation: torchvision's model class spends minutes on a truncated normal.
        self.Conv2d_1a_3x3 = blocks.BasicConv2d(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = blocks.BasicConv2d(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = blocks.BasicConv2d(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = blocks.BasicConv2d(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = blocks.BasicConv2d(80, 192, kernel_size=3)
        self.Mixed_5b = blocks.InceptionA(192, pool_features=32)
        self.Mixed_5c = blocks.InceptionA(256, pool_features=64)
        self.Mixed_5d = blocks.InceptionA(288, pool_features=64)
        self.Mixed_6a = blocks.InceptionB(288)
        self.Mixed_6b = blocks.InceptionC(768, channels_7x7=128)
        self.Mixed_6c = blocks.InceptionC(768, channels_7x7=160)
        self.Mixed_6d = blocks.InceptionC(768, channels_7x7=160)
        self.Mixed_6e = blocks.InceptionC(768, channels_7x7=192)
        self.Mixed_7a = blocks.InceptionD(768)
        self.Mixed_7b = blocks.InceptionE(1280)
        if self.global_layer == "Mixed_7c":
            self.Mixed_7c = blocks.InceptionE(2048)
        self.emb_features = nn.Conv2d(768, embed_dim, kernel_size=1, bias=False)
        self.emb_cnn_code = nn.Linear(2048, embed_dim)
        if state:
            self._load_weights(state, source)

    def _load_weights(self, state: dict[str, Tensor], source: str) -> None:
        """Load a state dict that may be torchvision's: without the projections, with classifiers and Mixed_7c."""
        if "emb_cnn_code.weight" not in state:
            unused = ("fc.", "AuxLogits.") + (() if self.global_layer == "Mixed_7c" else ("Mixed_7c.",))
            state = {key: value for key, value in state.items() if not key.startswith(unused)}
            # The projections have no pretrained values: they keep their random ones and have to be trained.
            state.update({key: value for key, value in self.state_dict().items() if key.startswith("emb_")})
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{source}: expected the weights of torchvision's inception_v3 or of an InceptionEncoder with "
                f"embed_dim={self.embed_dim}, got other ones ({reason})"
            ) from None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: object, **kwargs: object) -> None:
        """Supply `num_batches_tracked`, which files from before PyTorch 0.4.1 lack; runs before the children load.

        Only that counter: it plays no part in what the network computes, everything else stays strict.
        """
        for name, buffer in self.named_buffers():
            if name.endswith("num_batches_tracked"):
                state_dict.setdefault(prefix + name, torch.zeros_like(buffer))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _features(self, images: Tensor) -> Features:
        """`local` (B, 289, D) in row-major order of the 17x17 grid, `pooled` (B, D).

        Images of another size are resized bilinearly to 299x299; larger ones are not antialiased, as in DAMSM.
        """
        size = (self.input_size, self.input_size)
        x = images
        if x.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, kernel_size=3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, kernel_size=3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        regions = self.emb_features(x)
        x = self.Mixed_7b(self.Mixed_7a(x))
        if self.global_layer == "Mixed_7c":
            x = self.Mixed_7c(x)
        return _image_features(regions, self.emb_cnn_code(x.mean(dim=(2, 3))))


def _inception_weights(weights: str | os.PathLike[str] | None) -> tuple[str, dict[str, Tensor]]:
    """Where the weights come from, for messages, and their state dict (empty for none)."""
    if weights is None:
        return "", {}
    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(f"weights: expected None, 'imagenet' or a path, got {type(weights).__name__}")
    if weights == "imagenet":
        from torchvision.models import Inception_V3_Weights

        url = Inception_V3_Weights.IMAGENET1K_V1.url
        weights = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
        if not os.path.isfile(weights):
            raise FileNotFoundError(
                f"weights: 'imagenet' expected torchvision's file at {weights}, which does not exist; download {url} "
                "there (nothing here downloads by itself), or pass the path of a copy"
            )
    return os.fspath(weights), read_state_dict(weights)


class _DownBlock(nn.Module):
    """A residual block that halves the size: 3x3 with stride 2, then `kernel`; the shortcut averages 2x2, then 1x1."""

    def __init__(self, channels_in: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels_in, H, W)` -> `(B, channels, H/2, W/2)`."""
        y = F.leaky_relu(self.norm1(self.conv1(x)), 0.1)
        y = self.norm2(self.conv2(y))
        return F.leaky_relu(y + self.shortcut(F.avg_pool2d(x, 2)), 0.1)


class ConvEncoder(ImageEncoder):
    """A small residual CNN for 64-pixel images, quick enough to train on a CPU: 8x8 regions and one global vector.

    Source: ours. A region sees 24x24 pixels, about a part of the object; the global vector is pooled over all of them.
    The normalisation is BatchNorm: in a frozen matcher in eval mode it is a fixed scale and shift, whereas a group or
    layer norm would let every region see statistics of the whole picture. Leaky slopes keep a gradient for every pixel
    of a poor fake.

    Attributes:
        embed_dim: D.
        grid: rows and columns of the regions, (8, 8).
        input_range: the value range of the images, (-1, 1).
        settings: plain values that rebuild the encoder.
    """

    name = "conv"
    grid = (8, 8)
    input_range = (-1, 1)
    input_size = 64

    def __init__(self, embed_dim: int = 128, width: int = 32) -> None:
        """Build the network with random weights.

        Args:
            embed_dim: D.
            width: channels of the first stage; the later ones have 2, 4 and 8 times as many.

        Raises:
            ValueError: an argument is no positive integer.
        """
        super().__init__()
        check_positive(embed_dim=embed_dim, width=width)
        self.embed_dim = embed_dim
        self.settings: dict[str, Any] = {"embed_dim": embed_dim, "width": width}
        self.stem = nn.Conv2d(3, width, 4, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.stage1 = _DownBlock(width, 2 * width, kernel=3)
        self.stage2 = _DownBlock(2 * width, 4 * width, kernel=1)
        self.to_regions = nn.Conv2d(4 * width, embed_dim, 1)
        self.stage3 = _DownBlock(4 * width, 8 * width, kernel=1)
        self.to_pooled = nn.Linear(8 * width, embed_dim)

    def _features(self, images: Tensor) -> Features:
        """`local` (B, 64, D) in row-major order of the 8x8 grid, `pooled` (B, D).

        Images of another size are resized to 64x64 (bilinear, antialiased).
        """
        x = F.leaky_relu(self.stem_norm(self.stem(_sized(images, self.input_size))), 0.1)
        x = self.stage2(self.stage1(x))
        regions = self.to_regions(x)
        return _image_features(regions, self.to_pooled(self.stage3(x).mean(dim=(2, 3))))


class ShuffleNetEncoder(ImageEncoder):
    """ShuffleNet V2 for 64-pixel images: 8x8 regions of the third stage, one global vector.

    Torchvision's `shufflenet_v2_x1_0` without its max pooling, which 64 pixels cannot spare. It shares no
    block with `ConvEncoder`: a matcher built on it gives a second opinion on a generator that learned from the other.

    Attributes:
        embed_dim: D.
        grid: rows and columns of the regions, (8, 8).
        input_range: the value range of the images, (-1, 1).
        settings: plain values that rebuild the encoder.
    """

    name = "shufflenet"
    grid = (8, 8)
    input_range = (-1, 1)
    input_size = 64

    def __init__(self, embed_dim: int = 128) -> None:
        """Build the network with random weights.

        Args:
            embed_dim: D.

        Raises:
            ValueError: the argument is no positive integer.
        """
        super().__init__()
        check_positive(embed_dim=embed_dim)
        self.embed_dim = embed_dim
        self.settings: dict[str, Any] = {"embed_dim": embed_dim}
        from torchvision.models import shufflenet_v2_x1_0

        network = shufflenet_v2_x1_0(weights=None)
        self.to_stage3 = nn.Sequential(network.conv1, network.stage2, network.stage3)
        self.to_stage5 = nn.Sequential(network.stage4, network.conv5)
        # What these stages give is asked of them, not repeated here.
        channels, wide = network.stage4[0].branch1[0].in_channels, network.fc.in_features
        self.to_regions = nn.Conv2d(channels, embed_dim, 1)
        self.to_pooled = nn.Linear(wide, embed_dim)

    def _features(self, images: Tensor) -> Features:
        """As `ConvEncoder`'s."""
        x = self.to_stage3(_sized(images, self.input_size))
        return _image_features(self.to_regions(x), self.to_pooled(self.to_stage5(x).mean(dim=(2, 3))))


_IMAGE_ENCODERS: dict[str, Callable[..., nn.Module]] = {
    encoder.name: encoder for encoder in (ConvEncoder, InceptionEncoder, ShuffleNetEncoder)
}


def rebuildable(encoder: nn.Module) -> bool:
    """Whether `build_image_encoder` can make another from its `name` and `settings`."""
    return type(encoder) in _IMAGE_ENCODERS.values()


def build_image_encoder(name: str, **settings: object) -> nn.Module:
    """An image encoder by name, as checkpoints store it.

    Args:
        name: `"conv"`, `"inception"` or `"shufflenet"`, an encoder's `name`.
        **settings: its arguments, an encoder's `settings`.

    Raises:
        TypeError: an argument that the encoder does not have.
        ValueError: any other name, or a value outside its range.
    """
    if name not in _IMAGE_ENCODERS:
        raise ValueError(f"name: expected one of {sorted(_IMAGE_ENCODERS)}, got {name!r}")
    return _IMAGE_ENCODERS[name](**settings)
