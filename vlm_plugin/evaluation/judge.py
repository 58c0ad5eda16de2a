"""The judge of the synthetic birds: an attribute classifier that has no part in training any generator.

Its network, its data seed and its training have nothing in common with the matcher's, so that a generator which learns
to please the matcher does not please the judge by construction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_plugin.data import BirdTruth, CaptionedImages, Record, collate, find_truth, open_split
from vlm_plugin.data.birds.attributes import ATTRIBUTES
from vlm_plugin.data.birds.captions import said_by
from vlm_plugin.data.dataset import Batch
from vlm_plugin.files import ASSETS, check_writable, first_few, misfits, read_checkpoint, whole, write_file
from vlm_plugin.training.device import autocast, choose_device, choose_precision
from vlm_plugin.training.ranks import progress
from vlm_plugin.training.stream import Stream, check_seed, endless_batches, mix

_FORMAT = "vlm_plugin.Judge"
PACKAGED = ASSETS / "birds.judge.pt"
SIDE = 64  # of the pictures that the network takes


class Judge(nn.Module):
    """Finds a bird's attributes in a picture.

    Args:
        width: channels of the first stage.

    Attributes:
        num_features: width of `features`, under the name that torchmetrics looks for.
        accuracy: attribute -> share of held-out pictures judged right.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.width = width
        stages: list[nn.Module] = []
        channels = 3
        for wide in (width, 2 * width, 4 * width, 6 * width):
            stages += [
                nn.Conv2d(channels, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True),
                nn.Conv2d(wide, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]  # fmt: skip
            channels = wide
        self.trunk = nn.Sequential(*stages)
        self.num_features = 128
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(channels * 16, self.num_features), nn.ReLU()
        )
        self.heads = nn.ModuleDict({name: nn.Linear(self.num_features, len(v)) for name, v in ATTRIBUTES.items()})
        self.accuracy: dict[str, float] = {}

    def features(self, images: Tensor) -> Tensor:
        """What the heads see.

        Args:
            images: `(B, 3, 64, 64)` in [-1, 1]; other sizes are resized.

        Returns:
            `(B, num_features)` non-negative.
        """
        if images.shape[-2:] != (SIDE, SIDE):
            images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        return self.hidden(self.trunk(images))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Attribute -> `(B, values)` logits of `(B, 3, H, W)` images in [-1, 1]."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}

    def find(self, images: Tensor) -> Tensor:
        """`(B, A)` most likely value indices, attributes in the order of `ATTRIBUTES`."""
        return torch.stack([logits.argmax(1) for logits in self(images).values()], dim=1)

    @classmethod
    def load(cls, path: str | Path = PACKAGED) -> Judge:
        """Read a judge (the packaged one without a path), in eval mode."""
        content = read_checkpoint(path, _FORMAT, 1)
        with whole(path):
            state = content["weights"]
            # The weights' own, so that a damaged number makes no network of any size.
            judge = cls(len(state["trunk.0.weight"]))
            if problems := misfits(judge.state_dict(), state):
                raise ValueError(first_few(problems))
            judge.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
            judge.accuracy = {str(name): float(share) for name, share in content["accuracy"].items()}
        return judge.eval().requires_grad_(False)

    def save(self, path: str | Path, notes: dict | None = None) -> None:
        """Write weights (as float16), accuracies and notes to one file."""
        weights = {k: v.cpu().half() if v.is_floating_point() else v.cpu() for k, v in self.state_dict().items()}
        content = {"format": _FORMAT, "version": 1, "width": self.width, "weights": weights}
        write_file({**content, "accuracy": self.accuracy, "notes": notes or {}}, path)


def attribute_accuracy(found: Tensor, captions: Sequence[str]) -> Tensor:
    """Share of the attributes that each caption names which the judge found in the picture. Source: ours.

    Args:
        found: `(B, A)` of `Judge.find`.
        captions: B captions of synthetic birds.

    Returns:
        `(B,)` in [0, 1].
    """
    values, named = (part.to(found.device) for part in said_by(captions))
    return ((found == values) & named).sum(1) / named.sum(1)


def train_judge(
    data: str | Path, out: str | Path, *, epochs: int = 12, batch: int = 64, seed: int = 1, device: str | None = None
) -> Judge:
    """Train a judge on the train split and write it with its accuracies on the test split.

    A file that the same call wrote is left alone, whatever else lies there is refused.

    Args:
        data: folder of synthetic birds; take another `--seed` than the matcher's data.
        out: file to write.
        epochs: passes over the train split.
        batch: pictures a step.
        seed: initial weights and order.
        device: the GPU when left out, where there is one.
    """
    truth = find_truth(data)
    if truth is None:
        raise ValueError(f"{data}: expected synthetic birds (with attributes.json): only their attributes are known")
    check_seed(seed)
    if epochs < 1 or batch < 2:
        raise ValueError(f"epochs, batch: expected at least 1 and 2, got {epochs} and {batch}")
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"out: expected a file to write, got the folder {out}")
    notes = {"data": Path(data).name, "epochs": epochs, "batch": batch, "seed": seed}
    if out.exists():
        if (found := read_checkpoint(out, _FORMAT, 1)["notes"]) != notes:
            raise ValueError(f"out: expected a new file, got {out}, made with {found}: name another one")
        print(f"{out}: finished already, with {notes}", flush=True)
        return Judge.load(out)
    check_writable(out)
    place = choose_device(device)
    torch.manual_seed(seed)
    judge = Judge().to(place, memory_format=torch.channels_last)
    images = CaptionedImages(open_split(data, "train"), SIDE, train=True)
    batches = endless_batches(Stream(images, seed), batch, collate, device=place)
    _train(judge, batches, epochs * max(len(images) // batch, 1), truth, seed, place)
    judge.accuracy = held_out_accuracy(judge, open_split(data, "test"), truth, place)
    judge.save(out, notes)
    print(f"wrote {out}", flush=True)
    return judge


def _train(
    judge: Judge, batches: Iterator[Batch], steps: int, truth: BirdTruth, seed: int, device: torch.device
) -> None:
    """The steps of `train_judge`, on birds with these attributes."""
    dtype = choose_precision(device)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    judge.train()
    bar = progress(range(steps), desc="judge")
    for step in bar:
        batch = next(batches)
        target = truth.pictures(batch.keys).to(device)
        images = _roughened(batch.images, mix(seed, step)).to(device, memory_format=torch.channels_last)
        with autocast(device, dtype):
            logits = judge(images)
        loss = sum(F.cross_entropy(o.float(), target[:, i]) for i, o in enumerate(logits.values())) / len(ATTRIBUTES)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}")


def _roughened(images: Tensor, seed: int) -> Tensor:
    """Half of the pictures blurred or with noise: generated pictures are never as crisp as rendered ones."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.rand(len(images), 1, 1, 1, generator=generator, device="cpu")
    blurred = F.interpolate(
        F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True),
        size=images.shape[-2:],
        mode="bilinear",
    )
    noisy = images + 0.15 * torch.randn(images.shape, generator=generator, device="cpu")
    return torch.where(strength < 0.25, blurred, torch.where(strength < 0.5, noisy, images)).clamp(-1, 1)


@torch.no_grad()
def held_out_accuracy(
    judge: Judge, records: Sequence[Record], truth: BirdTruth, device: torch.device
) -> dict[str, float]:
    """Attribute -> share of the pictures in which the judge finds its true value."""
    judge.eval()
    images = CaptionedImages(records, SIDE, train=False)
    right = []
    for start in range(0, len(images), 100):
        batch = collate([images[i] for i in range(start, min(start + 100, len(images)))])
        right.append(judge.find(batch.images.to(device)).cpu() == truth.pictures(batch.keys))
    shares = torch.cat(right).float().mean(0)
    return dict(zip(ATTRIBUTES, shares.tolist(), strict=True))
