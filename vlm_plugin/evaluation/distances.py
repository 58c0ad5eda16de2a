"""Distances between sets of pictures: Frechet distance, and Inception's numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlm_plugin.foreign import foreign

FOLDS = 10  # of the pictures, equal ones, that a spread is of; two pictures in each are the fewest that give one
SUBSETS, LARGEST_SUBSET = 100, 1000  # KID's, as published for 50,000 pictures


class Number(NamedTuple):
    """A number and its spread: the standard deviation over ten equal parts of the pictures (KID: over its subsets),
    where the parts hold two pictures each."""

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

    with torch.device("cpu"):  # whatever the default device
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
    """FID, KID and Inception Score; the first two are computed by torchmetrics.

    Args:
        real: `(N, 2048)` features of `Inception`, on the CPU; N at least 2.
        fake: `(M, 2048)` features; M at least 2.
        logits: `(M, 1008)` logits of the same pictures as `fake`.

    Returns:
        By the names of columns. Where ten parts would hold fewer than two pictures each, KID has no spread and there is
        no Inception Score.
    """
    # KID's subsets and the Inception Score's parts are drawn from the global randomness.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        numbers = {"fid": Number(frechet_distance(real, fake)), "kid": _kernel_distance(real, fake)}
        if len(logits) >= 2 * FOLDS:
            numbers["inception_score"] = _inception_score(logits)
    return numbers


def _kernel_distance(real: Tensor, fake: Tensor) -> Number:
    """KID over random subsets; arguments as those of `inception_numbers`.

    Source: Binkowski et al. 2018, section 4, for subsets of 1,000. Ours: subsets hold at most half of the pictures, for
    subsets that are all there is differ in nothing; of fewer than 20 pictures one distance is taken, without a spread.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    least = min(len(real), len(fake))
    enough = least >= 2 * FOLDS
    metric = KernelInceptionDistance(
        feature=GivenFeatures(real.shape[1]), sync_on_compute=False,
        subsets=SUBSETS if enough else 1, subset_size=min(least // 2, LARGEST_SUBSET) if enough else least,
    )  # fmt: skip
    metric.update(real, real=True)
    metric.update(fake, real=False)
    mean, spread = metric.compute()
    return Number(float(mean), float(spread) if enough else None)


def _inception_score(logits: Tensor) -> Number:
    """exp of the mean divergence of a picture's classes from those of its part; mean and deviation over ten parts.

    Source: Salimans et al. 2016. Of parts as equal as can be, in random order.

    Args:
        logits: `(M, classes)`, M at least 20.
    """
    scores = []
    for part in logits[torch.randperm(len(logits), device="cpu")].tensor_split(FOLDS):
        classes = part.softmax(1)
        divergence = (classes * (part.log_softmax(1) - classes.mean(0, keepdim=True).log())).sum(1)
        scores.append(divergence.mean().exp())
    return Number(float(torch.stack(scores).mean()), float(torch.stack(scores).std()))
