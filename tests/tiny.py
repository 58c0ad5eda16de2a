"""A tiny world for tests that train: birds of 32 pixels, a matcher and a judge of a few channels, on the CPU."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from vlm_plugin import VLM, ConvEncoder, LSTMTextEncoder, MatchingScoreBlock, Vocabulary
from vlm_plugin.data import make_birds, open_split
from vlm_plugin.evaluation.judge import Judge

ROOT = Path(__file__).resolve().parents[1]
DIM, SIZE = 8, 32
_SIZES = {
    "dfgan": {"image_size": SIZE, "nf": 2},
    "attngan": {
        "base_size": SIZE // 2, "stages": 2, "gf_dim": 2, "df_dim": 2, "condition_dim": 4, "residual_blocks": 1,
    },
}  # fmt: skip


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="tiny-birds-")


@functools.cache
def birds() -> Path:
    """40 train birds of 4 classes, 20 validation and 20 test birds; shared, so copy before changing anything."""
    return make_birds(Path(_folder().name) / "birds", 40, 20, 20, SIZE, seed=5)


def build_matcher(seed: int = 0, scorer: bool = True) -> VLM:
    vocabulary = Vocabulary.build(caption for record in open_split(birds(), "train") for caption in record.captions)
    torch.manual_seed(seed)
    return VLM(
        ConvEncoder(DIM, width=2),
        LSTMTextEncoder(len(vocabulary), DIM, word_dim=8),
        vocabulary,
        MatchingScoreBlock(DIM, layers=1, heads=2) if scorer else None,
    ).eval()


@functools.cache
def matcher() -> Path:
    path = Path(_folder().name) / "tiny.vlm.pt"
    build_matcher().save(path)
    return path


@functools.cache
def evaluator() -> Path:
    """Another matcher than `matcher`."""
    path = Path(_folder().name) / "evaluator.vlm.pt"
    build_matcher(seed=9).save(path)
    return path


@functools.cache
def judge() -> Path:
    path = Path(_folder().name) / "tiny.judge.pt"
    torch.manual_seed(1)
    Judge(width=2).save(path)
    return path


def settings(baseline: str = "dfgan", **changes: object) -> dict[str, Any]:
    """A baseline's settings at 32 pixels (AttnGAN's: two stages, 16 and 32); `a__b` changes `b` of the part `a`."""
    path = ROOT / "baselines" / baseline / "cfg" / "synthetic.yml"
    result = yaml.safe_load(path.read_text(encoding="utf-8"))
    result |= {
        "z_dim": 4, "batch": 4, "steps": 4, "precision": "float32", "evaluated": 10, "log_every": 1, "sample_every": 3,
        "checkpoint_every": 2, **_SIZES[baseline],
    }  # fmt: skip
    result["vlm"] |= {"lambda_vvm": 0.5, "lambda_vlm": 0.5, "vvm_warmup": 0, "vlm_warmup": 0}
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        (result[part] if part else result)[key] = value
    return result


def config(path: Path, baseline: str = "dfgan", **changes: object) -> Path:
    """A settings file with `settings`."""
    path.write_text(yaml.safe_dump(settings(baseline, **changes)), encoding="utf-8")
    return path


def contents(path: Path) -> dict[str, Any]:
    """What a file holds, without its checksum: as a file of an earlier release, to be changed and written again."""
    content = torch.load(path, weights_only=True)
    content.pop("vlm_plugin.checksum", None)
    return content


class Bomb:
    """A pickle that makes a folder when read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)
