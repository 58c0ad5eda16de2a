"""The packaged files: small, whole, and as good as they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm_plugin import TERMS, VLM, DualVLMLoss
from vlm_plugin.baselines.attngan.trainer import AttnGAN
from vlm_plugin.baselines.dfgan.trainer import DFGAN
from vlm_plugin.data import ATTRIBUTES, BirdTruth, CaptionedImages, Record, make_birds, open_split
from vlm_plugin.evaluation.judge import PACKAGED, Judge, attribute_accuracy
from vlm_plugin.files import ASSETS, read_checkpoint
from vlm_plugin.gans.find import baseline
from vlm_plugin.gans.settings import read_config
from vlm_plugin.matcher.identity import fingerprint
from vlm_plugin.training import stream as stream

MATCHER = ASSETS / "birds.vlm.pt"
BASELINES = {name: Path(__file__).parents[1] / "baselines" / name for name in ("attngan", "dfgan")}
STARTS = {name: folder / "assets" / "birds.pt" for name, folder in BASELINES.items()}
TRAINERS = {"attngan": AttnGAN, "dfgan": DFGAN}
# What decides the shapes, and what a generator reads.
MADE_WITH = {
    "attngan": ("base_size", "stages", "gf_dim", "df_dim", "z_dim", "condition_dim", "residual_blocks"),
    "dfgan": ("image_size", "nf", "z_dim"),
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Record], torch.Tensor, BirdTruth]:
    """200 test birds of a seed that nothing packaged was trained or chosen on."""
    root = make_birds(tmp_path_factory.mktemp("fresh") / "birds", 0, 0, 200, 64, seed=4711)
    records = open_split(root, "test")
    images = CaptionedImages(records, 64, train=False)
    return records, torch.stack([images[i].image for i in range(200)]), BirdTruth(root)


@pytest.mark.parametrize(
    ("path", "megabytes"), [(MATCHER, 4), (PACKAGED, 2), *((start, 6) for start in STARTS.values())]
)
def test_files_are_small(path: Path, megabytes: int) -> None:
    assert 0 < path.stat().st_size <= megabytes * 2**20


def test_the_matcher_says_where_it_comes_from() -> None:
    vlm = VLM.load("birds.vlm.pt")
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
    vlm = VLM.load("birds.vlm.pt")
    captions = [record.captions[i % 10] for i, record in enumerate(records)]
    with torch.no_grad():
        image, text = vlm.encode_image(images), vlm.encode_text(captions)
        others = vlm.encode_text(captions[100:] + captions[:100])
        own, other = (vlm.scorer(image, anchor, "caption") for anchor in (text, others))
    assert (own > other).float().mean() > 0.85


@pytest.mark.parametrize("name", BASELINES)
def test_a_start_belongs_to_the_matcher_and_the_settings(name: str) -> None:
    start, vlm = STARTS[name], VLM.load("birds.vlm.pt")
    settings = read_config(BASELINES[name] / "cfg" / "synthetic.yml", baseline(name)).settings
    notes = read_checkpoint(start, f"vlm_plugin.{TRAINERS[name].name}", 1)["notes"]
    assert notes["matcher"] == vlm.fingerprint
    assert notes["text_fingerprint"] == fingerprint(vlm.text_encoder)
    assert not notes["with_vlm"]
    for setting in (*MADE_WITH[name], "normalise_text"):
        assert notes["settings"][setting] == getattr(settings, setting), setting
    trainer = TRAINERS[name](settings, vlm, torch.device("cpu"), torch.float32)
    assert trainer.load_start(start, vlm) == ["generator", *trainer.discriminators]


@pytest.mark.parametrize("name", BASELINES)
def test_a_start_is_whole_and_half_as_wide(name: str) -> None:
    weights = read_checkpoint(STARTS[name], f"vlm_plugin.{TRAINERS[name].name}", 1)["weights"]
    values = [value for network in weights.values() for value in network.values()]
    # A BatchNorm counts its batches in whole numbers.
    floating = [value for value in values if value.is_floating_point()]
    assert all(value.dim() == 0 for value in values if not value.is_floating_point())
    assert {value.dtype for value in floating} == {torch.float16}
    assert all(value.isfinite().all() for value in floating)
    assert STARTS[name].stat().st_size < 1.1 * 2 * sum(value.numel() for value in floating)


@pytest.mark.parametrize("name", BASELINES)
def test_a_start_draws_what_the_caption_says(name: str, fresh: tuple[list[Record], torch.Tensor, BirdTruth]) -> None:
    records, *_ = fresh
    vlm, judge = VLM.load("birds.vlm.pt"), Judge.load()
    settings = read_config(BASELINES[name] / "cfg" / "synthetic.yml", baseline(name)).settings
    trainer = TRAINERS[name](settings, vlm, torch.device("cpu"), torch.float32)
    trainer.load_start(STARTS[name], vlm)
    captions = [record.captions[i % 10] for i, record in enumerate(records[:100])]
    noise = stream.noise((100, trainer.noise_dim), torch.device("cpu"), 0)
    with torch.no_grad():
        pictures = trainer.sample(noise, vlm.encode_text(captions))
        same = trainer.sample(noise[:4], vlm.encode_text(["a red bird with black wings."] * 4))
    assert pictures.shape == (100, 3, 64, 64)
    assert pictures.isfinite().all()
    found = judge.find(pictures)
    assert attribute_accuracy(found, captions).mean() > 0.5
    assert attribute_accuracy(found.roll(50, 0), captions).mean() < 0.3
    # Four noises, four pictures of one caption, none of them flat.
    assert same.flatten(1).std(1).min() > 0.05
    assert same.std(0).mean() > 0.01
