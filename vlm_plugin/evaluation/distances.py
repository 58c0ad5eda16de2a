"""Distances between sets of pictures: Frechet distance, and Inception's numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlm_plugin.foreign import foreign


class Number(NamedTuple):
    """A number and its spread: the standard deviation of ten equal parts of the pictures, where these hold two each."""

    value: float
    spread: float | None = None


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Frechet distance of two sets of features, each taken as a Gaussian. Computed by torchmetrics.

    Args:
        real: `(N, F)`.
        fake: `(M, F)`.

    Returns:
        A distance >= 0. It is an FID only for Inception's features, and must be named after the network that made
        these.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=GivenFeatures(real.shape[1]), sync_on_compute=False)
    metric.update(real.cpu(), real=True)
    metric.update(fake.cpu(), real=False)
    return float(metric.compute())


class GivenFeatures(nn.Module):
    """Features in place of pictures, for torchmetrics: each picture is encoded once for all measures."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class Inception(nn.Module):
    """The Inception network of FID, KID and Inception Score, as torchmetrics has it, with weights from a file.

    Args:
        path: the state dict `pt_inception-2015-12-05-6726825d.pth` (torch-fidelity).

    Raises:
        ImportError: torch-fidelity is missing.
        FileNotFoundError, ValueError: the file is missing or something else.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"--inception {path}: no such file")
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
        except ModuleNotFoundError as error:
            raise ImportError('--inception needs torch-fidelity: in the repository: pip install ".[eval]"') from error
        except Exception as error:
            reason = foreign(path) or " ".join(str(error).split())[:300]
            raise ValueError(
                f"--inception {path}: expected torch-fidelity's Inception weights, got {reason}"
            ) from error
        self.checksum = hashlib.sha256(path.read_bytes()).hexdigest()

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, 2048)` features and `(B, 1008)` logits of pictures in [-1, 1]."""
        byte = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        features = self.network(byte)
        # The Inception Score's "logits_unbiased": the classifier without its bias.
        return features, features @ self.network.fc.weight.T


def inception_numbers(real: Tensor, fake: Tensor, logits: Tensor) -> dict[str, Number]:
    """FID, KID and Inception Score. Computed by torchmetrics.

    Args:
        real: `(N, 2048)` features of `Inception`.
        fake: `(M, 2048)` features.
        logits: `(M, 1008)` logits of the same pictures as `fake`.
    """
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    # KID's and the Inception Score's parts are drawn from the global randomness.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kid = KernelInceptionDistance(
            feature=GivenFeatures(real.shape[1]), subset_size=min(len(real), len(fake), 1000), sync_on_compute=False
        )
        kid.update(real, real=True)
        kid.update(fake, real=False)
        score = InceptionScore(feature=GivenFeatures(logits.shape[1]), sync_on_compute=False)
        score.update(logits)
        return {
            "fid": Number(frechet_distance(real, fake)),
            "kid": _number(kid.compute()),
            "inception_score": _number(score.compute()),
        }


def _number(pair: tuple[Tensor, Tensor]) -> Number:
    mean, spread = pair
    return Number(float(mean), float(spread))
