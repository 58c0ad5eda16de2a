"""The packaged files: small, whole, and as good as they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from easydict import EasyDict

from baselines.dfgan.trainer import DFGAN
from vlm_plugin import TERMS, VLM, DualVLMLoss
from vlm_plugin.data import ATTRIBUTES, BirdTruth, CaptionedImages, Record, make_birds, open_split
from vlm_plugin.model import ASSETS, read_checkpoint
from vlm_plugin.tools import gan, training
from vlm_plugin.tools.judge import PACKAGED, Judge, attribute_accuracy

START = Path(__file__).parents[1] / "baselines" / "dfgan" / "assets" / "birds.pt"
MATCHER = ASSETS / gan.PACKAGED_MATCHER


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Record], torch.Tensor, BirdTruth]:
    """200 test birds of a seed that nothing packaged was trained or chosen on."""
    root = make_birds(tmp_path_factory.mktemp("fresh") / "birds", 0, 0, 200, 64, seed=4711)
    records = open_split(root, "test")
    images = CaptionedImages(records, 64, train=False)
    return records, torch.stack([images[i].image for i in range(200)]), BirdTruth(root)


@pytest.mark.parametrize(("path", "megabytes"), [(MATCHER, 4), (PACKAGED, 2), (START, 8)])
def test_files_are_small(path: Path, megabytes: int) -> None:
    assert 0 < path.stat().st_size <= megabytes * 2**20


def test_the_matcher_says_where_it_comes_from() -> None:
    vlm = VLM.load(gan.PACKAGED_MATCHER)
    assert vlm.embed_dim == 128
    assert vlm.scorer is not None
    notes = vlm.notes["held_out"]
    for name in ("local", "global", "general"):
        assert notes[f"{name}_swapped"] > 0.7, name
    assert 0 < notes["local_r1"] <= notes["ceiling_r1"] + 0.05
    assert vlm.notes["pretraining"]["encoder"] == "conv"
    # The scorer belongs to these very encoders, so the loss takes all three levels.
    assert DualVLMLoss(vlm, lambda_vvm=0.1, lambda_vlm=0.1).terms == TERMS


def test_the_judge_is_as_good_as_it_says(fresh: tuple[list[Record], torch.Tensor, BirdTruth]) -> None:
    records, images, truth = fresh
    judge = Judge.load()
    assert set(judge.accuracy) == set(ATTRIBUTES)
    assert min(judge.accuracy.values()) >= 0.9, judge.accuracy
    found = judge.find(images)
    right = (found == truth.pictures([record.key for record in records])).float().mean(0)
    measured = dict(zip(ATTRIBUTES, right.tolist(), strict=True))
    assert min(measured.values()) >= 0.87, measured
    # What real pictures reach in the table's first column.
    captions = [record.captions[i % 10] for i, record in enumerate(records)]
    assert attribute_accuracy(found, captions).mean() >= 0.9
    assert attribute_accuracy(found.roll(100, 0), captions).mean() < 0.5


def test_the_matcher_tells_fresh_captions_apart(fresh: tuple[list[Record], torch.Tensor, BirdTruth]) -> None:
    records, images, _ = fresh
    vlm = VLM.load(gan.PACKAGED_MATCHER)
    captions = [record.captions[i % 10] for i, record in enumerate(records)]
    with torch.no_grad():
        image, text = vlm.encode_image(images), vlm.encode_text(captions)
        others = vlm.encode_text(captions[100:] + captions[:100])
        own, other = (vlm.scorer(image, anchor, "caption") for anchor in (text, others))
    assert (own > other).float().mean() > 0.85


def test_the_start_belongs_to_the_matcher() -> None:
    settings = gan.read_config(START.parents[1] / "cfg" / "synthetic.yml", START.parents[1] / "cfg" / "synthetic.yml")
    vlm = VLM.load(gan.PACKAGED_MATCHER)
    content = read_checkpoint(START, "vlm_plugin.DFGAN", 1)
    assert vlm.fingerprint in content["notes"].values()
    trainer = DFGAN(settings, vlm.embed_dim, torch.device("cpu"), torch.float32)
    trainer.load_start(START)
    made_with = EasyDict(content["notes"]["settings"])
    for name in ("nf", "z_dim", "image_size", "normalise_sentence"):
        assert made_with[name] == settings[name], name
    noise = training.noise((4, settings.z_dim), torch.device("cpu"), 0)
    pictures = trainer.sample(noise, vlm.encode_text(["a red bird with black wings."] * 4).detach())
    assert pictures.shape == (4, 3, 64, 64)
    assert pictures.isfinite().all()
    # Four noises, four pictures, none of them flat.
    assert pictures.flatten(1).std(1).min() > 0.05
    assert pictures.std(0).mean() > 0.01
