"""A host may have set torch's default device: what is drawn or counted on the CPU stays there. Meta stands for CUDA."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import vlm_plugin
from vlm_plugin import DualVLMLoss
from vlm_plugin.augment import RandomView
from vlm_plugin.checks import as_integers
from vlm_plugin.data import CaptionedImages, collate, find_truth, open_split
from vlm_plugin.data.birds.captions import said_by
from vlm_plugin.evaluation.captions import items, subject
from vlm_plugin.metrics import VLMS, RPrecision, caption_ids, mean_and_spread
from vlm_plugin.training.stream import Stream, noise

PACKAGE = Path(vlm_plugin.__path__[0])
FACTORIES = {
    "arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn",
    "randperm", "tensor", "zeros",
}  # fmt: skip
# Torchmetrics moves a metric's states to the metric's own device.
FOLLOWS_THE_DEFAULT = {("metrics/base.py", "add_state")}


@pytest.fixture
def on_meta() -> Iterator[Callable[[], None]]:
    before = torch.get_default_device()
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(before)


def without_device(path: Path) -> list[str]:
    """Lines of a module that make a tensor wherever the default device is."""
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    spared = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if (path.relative_to(PACKAGE).as_posix(), node.func.attr) in FOLLOWS_THE_DEFAULT
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and (node.func.value.id, node.func.attr in FACTORIES) == ("torch", True)
            and not any(keyword.arg == "device" for keyword in node.keywords)
            and id(node) not in spared
        ):
            found.append(f"{path.name}, line {node.lineno}: torch.{node.func.attr}")
    return found


def test_every_tensor_says_where_it_is_made() -> None:
    assert [line for path in sorted(PACKAGE.rglob("*.py")) for line in without_device(path)] == []


def test_a_tensor_that_does_not_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text(
        "import torch\ntorch.rand(3)\ntorch.rand(3, device='cpu')\nx.add_state(torch.ones(1))\n"
    )
    assert without_device(tmp_path / "a.py") == ["a.py, line 2: torch.rand", "a.py, line 4: torch.ones"]


# Made before the default is set, as a host's networks and pictures may be.
VLM = tiny.build_matcher()
LOSS = DualVLMLoss(VLM, lambda_vvm=1.0, lambda_vlm=1.0)
PICTURES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
CAPTIONS = ["a small bird", "a red bird", "a blue bird", "a black bird"]
RECORDS = list(open_split(tiny.birds(), "test"))
IDS = torch.tensor([3, 4])


def r_precision() -> Tensor:
    with torch.device("cpu"):  # where the metric is, as its class says; the meta device keeps no states
        metric = RPrecision(VLM, candidates=2)
    metric.update(PICTURES, CAPTIONS)
    return torch.stack(metric.compute())


def vlms() -> Tensor:
    with torch.device("cpu"):
        metric = VLMS(VLM)
    metric.update(PICTURES, CAPTIONS)
    return metric.values()


def sample(train: bool = True) -> Tensor:
    return Stream(CaptionedImages(RECORDS, 32, train=train), 3)[5].image


def batch() -> tuple[Tensor, ...]:
    images = CaptionedImages(RECORDS, 32, train=False)
    found = collate([images[i] for i in range(3)])
    return found.images, found.class_ids, found.indices, found.caption_indices


def view() -> Tensor:
    torch.manual_seed(0)
    return RandomView()(PICTURES)


CASES: dict[str, Callable[[], Tensor | tuple[Tensor, ...]]] = {
    "spread": lambda: mean_and_spread(PICTURES.flatten()),
    "caption ids": lambda: caption_ids(["a", "b"]),
    "integers of a tensor": lambda: as_integers(IDS, "ids"),
    "integers of a list": lambda: as_integers([1, 2], "ids"),
    "integers of an array": lambda: as_integers(np.array([1, 2]), "ids"),
    "noise": lambda: noise((3, 4), torch.device("cpu"), 1, 2),
    "tokens": lambda: VLM.vocabulary.encode_batch(CAPTIONS),
    "loss": lambda: LOSS(PICTURES, LOSS.encode_text(CAPTIONS), PICTURES.flip(3), class_ids=[1, 2, 3, 3]).total,
    "R-precision": r_precision,
    "VLMS": vlms,
    "said": lambda: said_by(["a small bird with a red crown"]),
    "truth": lambda: find_truth(tiny.birds()).pictures([record.key for record in RECORDS]),
    "evaluated": lambda: subject(RECORDS, items([1] * len(RECORDS), 5), None).facts,
    "a sample": sample,
    "a batch": batch,
    "a view": view,
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_do_not_depend_on_the_default_device(name: str, on_meta: Callable[[], None]) -> None:
    expected = CASES[name]()
    on_meta()
    found = CASES[name]()
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for ours, theirs in pairs:
        assert ours.device.type == "cpu"
        assert torch.equal(ours, theirs)
