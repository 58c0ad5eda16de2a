"""The baselines' runs, plain and with the dual loss: what they share, how they survive kills, what they refuse.

What concerns the run loop alone, such as refused arguments, runs with one baseline.
"""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tokenize
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny
import torch
import yaml
from easydict import EasyDict
from PIL import Image

from vlm_plugin import TERMS, VLM
from vlm_plugin.baselines.attngan.trainer import AttnGAN
from vlm_plugin.baselines.dfgan.trainer import DFGAN
from vlm_plugin.cli.main import main
from vlm_plugin.data import open_split
from vlm_plugin.data.birds.make import BIRDS_FOLDER
from vlm_plugin.data.images import to_bytes
from vlm_plugin.data.records import digest_records
from vlm_plugin.evaluation.examination import Examination
from vlm_plugin.evaluation.judge import Judge
from vlm_plugin.evaluation.painter import Painter
from vlm_plugin.files import not_finite, read_file, write_json
from vlm_plugin.gans import run as run_module
from vlm_plugin.gans.config import RunConfig, parser
from vlm_plugin.gans.configure import configure
from vlm_plugin.gans.export import export
from vlm_plugin.gans.find import baseline, find_networks
from vlm_plugin.gans.loop import weights_at
from vlm_plugin.gans.saved import load_weights
from vlm_plugin.gans.settings import Original, read_config
from vlm_plugin.gans.trainer import Trainer
from vlm_plugin.matcher.choose import PACKAGED, marks
from vlm_plugin.matcher.identity import fingerprint
from vlm_plugin.training.run_folder import Log

CPU = torch.device("cpu")


class Baseline(NamedTuple):
    trainer: type[Trainer]
    always: set[str]
    """What every run logs."""
    alone: set[str]
    """What plain runs log beside that, in place of the dual loss."""
    judges: tuple[str, ...]
    """Names of the tiny discriminators."""


BASELINES = {
    "dfgan": Baseline(DFGAN, {"discriminator", "penalty", "generator"}, set(), ("discriminator", "head")),
    "attngan": Baseline(
        AttnGAN,
        {"discriminator", "generator", "kl"},
        {"damsm_w0", "damsm_w1", "damsm_s0", "damsm_s1"},
        ("discriminator16", "discriminator32"),
    ),
}
PICTURES = ("sample_sheet", "loss_curves", "attention_sheet")
both = pytest.mark.parametrize("name", BASELINES)


def folder_of(name: str) -> Path:
    return tiny.ROOT / "baselines" / name


def use_tiny_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge.load(tiny.judge())
    monkeypatch.setattr(Judge, "load", classmethod(lambda cls: judge))
    monkeypatch.setattr("vlm_plugin.evaluation.scorers.EVALUATOR", tiny.evaluator())


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PICTURES:
        monkeypatch.setattr(f"vlm_plugin.gans.show.{name}", lambda path, *_: path.write_bytes(b""))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge of a few channels, and pictures that are nothing but files: they take half of a tiny run's time."""
    use_tiny_judge(monkeypatch)
    draw_nothing(monkeypatch)


class Seen:
    """Builds trainers that keep what they were given, and what they gave."""

    def __init__(self, name: str = "dfgan", before_step: Callable[[int], None] = lambda step: None) -> None:
        self.matcher: VLM
        self.batches: list[tuple[list[str], list[str]]] = []
        self.values: list[dict[str, float]] = []
        seen = self

        class Watched(BASELINES[name].trainer):
            def __init__(self, settings, matcher, device, dtype):
                super().__init__(settings, matcher, device, dtype)
                seen.matcher = matcher

            def step(self, batch, text, step, vlm_loss):
                before_step(step)
                values = super().step(batch, text, step, vlm_loss)
                seen.batches.append((batch.keys, batch.captions))
                seen.values.append({name: float(value) for name, value in values.items()})
                return values

        self.build = Watched


def run(*words: object, name: str = "dfgan", build: type[Trainer] | None = None) -> Path:
    build = build or BASELINES[name].trainer
    return run_module.run(name, folder_of(name), build, ["--device", "cpu", *(str(word) for word in words)])


def configured(name: str, folder: Path, *words: object) -> RunConfig:
    """What a command line asks for, of a baseline whose files lie in a folder."""
    arguments = parser(name).parse_args([str(word) for word in words])
    return configure(baseline(name)._replace(folder=folder), arguments)


def plain(out: Path, cfg: Path, *words: object, **how) -> Path:
    data = ("--data", tiny.birds(), "--text-encoder", tiny.matcher())
    return run(*data, "--out", out, "--cfg", cfg, *words, **how)


def with_vlm(out: Path, cfg: Path, *words: object, **how) -> Path:
    return run("--data", tiny.birds(), "--vlm", tiny.matcher(), "--out", out, "--cfg", cfg, *words, **how)


def checkpoint(run_folder: Path) -> dict:
    return torch.load(run_folder / "checkpoint.pt", weights_only=True)


def options_of(run_folder: Path) -> dict:
    return json.loads((run_folder / "options.json").read_text(encoding="utf-8"))


def results_of(run_folder: Path) -> dict:
    return json.loads((run_folder / "evaluation.json").read_text(encoding="utf-8"))


def assert_equal(a: object, b: object, where: str = "checkpoint") -> None:
    """Bit for bit, through all the dicts and lists of a checkpoint."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


# ---------------------------------------------------------------------------------------------------------------------
# One run
# ---------------------------------------------------------------------------------------------------------------------


class Finished(NamedTuple):
    folder: Path
    seen: Seen


@pytest.fixture(scope="module", params=BASELINES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def finished(name: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One whole run with the dual loss, pictures included."""
    root, seen = tmp_path_factory.mktemp(f"finished-{name}"), Seen(name)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_judge(patch)
        return Finished(
            with_vlm(root / "runs", tiny.config(root / "tiny.yml", name), name=name, build=seen.build), seen
        )


@pytest.fixture(scope="module")
def alone(name: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The same without the dual loss and the pictures."""
    root, seen = tmp_path_factory.mktemp(f"alone-{name}"), Seen(name)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_judge(patch)
        draw_nothing(patch)
        return Finished(plain(root / "runs", tiny.config(root / "tiny.yml", name), name=name, build=seen.build), seen)


def test_everything_is_written_and_opens(name: str, finished: Finished) -> None:
    folder, _ = finished
    assert folder.name == f"00000-{name}-vlm"
    assert {path.name for path in folder.iterdir()} == {
        "options.json", "log.jsonl", "checkpoint.pt", "checkpoint.previous.pt", "before.pt", "samples.png",
        "samples-000003.png", "curves.png", "attention.png", "evaluation.md", "evaluation.json", "report.pt",
        "report.html",
    }  # fmt: skip
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 100, path
    table = (folder / "evaluation.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:5]] == ["real", "before", "after"]
    results = results_of(folder)
    manifest = results["manifest"]
    assert manifest["pictures"] == 10
    assert manifest["trained_with"] == sorted(marks(VLM.load(tiny.matcher())))
    assert manifest["evaluator"]["fingerprint"] == VLM.load(tiny.evaluator()).fingerprint
    assert [row["name"] for row in results["rows"]] == ["real", "before", "after"]
    assert all(set(row["values"]) == set(results["columns"]) for row in results["rows"])


def test_every_term_is_logged_beside_its_floor(name: str, finished: Finished) -> None:
    folder, seen = finished
    rows = Log.read(folder / "log.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    names = {*BASELINES[name].always, "lambda_vvm", "lambda_vlm", *TERMS}
    for row, values in zip(rows, seen.values, strict=True):
        assert set(row) == {"step", *names, *(f"floor_{term}" for term in TERMS)}
        assert (row["lambda_vvm"], row["lambda_vlm"]) == (0.5, 0.5)
        assert all(row[name] == value for name, value in values.items())
        assert all(abs(value) < 1e6 for value in row.values())


def test_options_say_what_was_run(name: str, finished: Finished, alone: Finished) -> None:
    options, plain_options = options_of(finished.folder), options_of(alone.folder)
    matcher = VLM.load(tiny.matcher())
    assert options["baseline"] == name
    assert (options["vlm"], options["text_encoder"]) == (str(tiny.matcher()), None)
    assert (plain_options["vlm"], plain_options["text_encoder"]) == (None, str(tiny.matcher()))
    assert options["data"] == str(tiny.birds())
    assert options["start"] is None
    assert (options["steps"], options["epochs"], options["seed"]) == (4, None, 0)
    assert options["settings"]["vlm"]["lambda_vlm"] == 0.5
    assert options["matcher"] == matcher.fingerprint
    assert options["text_fingerprint"] == fingerprint(matcher.text_encoder)
    assert options["versions"]["torch"] == torch.__version__
    assert options["processes"] == 1
    counts = {use: pictures.split(" ")[0] for use, pictures in options["pictures"].items()}
    assert counts == {"train": "40", "evaluated": "10"}
    assert options["pictures"] == plain_options["pictures"]


def test_before_is_the_untrained_generator(finished: Finished) -> None:
    before = torch.load(finished.folder / "before.pt", weights_only=True)
    assert before["pictures"].shape == (10, 3, 32, 32)
    assert before["shown"].shape == (8, 4, 3, 32, 32)
    assert before["pictures"].dtype == torch.uint8


def test_an_interval_that_is_no_multiple_of_the_checkpoints_is_kept(finished: Finished) -> None:
    assert (finished.folder / "samples-000003.png").is_file()  # checkpoints every 2, samples every 3


# ---------------------------------------------------------------------------------------------------------------------
# With and without
# ---------------------------------------------------------------------------------------------------------------------


def test_both_see_the_same_and_start_the_same(name: str, alone: Finished, finished: Finished) -> None:
    folder, seen = alone
    dual, always = finished.seen, BASELINES[name].always
    assert folder.name == f"00000-{name}"
    assert seen.batches == dual.batches
    # The generator's first update comes after all values of step 0 are known.
    for term in always:
        assert seen.values[0][term] == dual.values[0][term]
        assert seen.values[2][term] != dual.values[2][term]
    a, b = (torch.load(f / "before.pt", weights_only=True) for f in (folder, finished.folder))
    assert_equal(a, b)


def test_a_plain_run_knows_nothing_of_the_dual_loss(name: str, alone: Finished) -> None:
    folder, seen = alone
    names = BASELINES[name].always | BASELINES[name].alone
    assert all(set(values) == names for values in seen.values)
    assert all(set(row) == {"step", *names} for row in Log.read(folder / "log.jsonl"))


def test_scores_of_the_matcher_that_trained_are_marked(name: str, alone: Finished, finished: Finished) -> None:
    """DAMSM asks the very matcher too."""
    for folder, expected in ((finished.folder, True), (alone.folder, name == "attngan")):
        circular = {name for name, column in results_of(folder)["columns"].items() if column["circular"]}
        assert circular == ({"r_precision_training", "vlms_training"} if expected else set())
        table = (folder / "evaluation.md").read_text(encoding="utf-8")
        assert ("| R-precision, own matcher* |" in table) == expected
        assert "| R-precision |" in table


def test_the_matcher_stays_as_it_is(alone: Finished, finished: Finished) -> None:
    for _, seen in (alone, finished):
        assert seen.matcher.fingerprint == VLM.load(tiny.matcher()).fingerprint
        assert all(parameter.grad is None for parameter in seen.matcher.parameters())


@both
def test_losses_of_weight_zero_change_nothing(name: str, tmp_path: Path) -> None:
    """AttnGAN's plain runs have a loss of their own in the dual one's place."""
    damsm = {"damsm__weight": 0.0} if name == "attngan" else {}
    cfg = tiny.config(tmp_path / "tiny.yml", name, vlm__lambda_vlm=0.0, vlm__lambda_vvm=0.0, **damsm)
    a = plain(tmp_path / "a", cfg, "--steps", 3, name=name)
    b = with_vlm(tmp_path / "b", cfg, "--steps", 3, name=name)
    assert checkpoint(a)["step"] == 3
    assert_equal(checkpoint(a), checkpoint(b))


def test_seed_batch_and_epochs_are_heard(tmp_path: Path) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml")
    first, second = Seen(), Seen()
    a = plain(tmp_path / "runs", cfg, "--batch", 20, "--epochs", 1, "--seed", 1, build=first.build)
    b = plain(tmp_path / "runs", cfg, "--batch", 20, "--steps", 1, "--seed", 2, build=second.build)
    assert (a.name, b.name) == ("00000-dfgan", "00001-dfgan")
    assert checkpoint(a)["step"] == options_of(a)["steps"] == 2  # 40 pictures
    assert len(first.batches[0][0]) == 20
    assert len({key for keys, _ in first.batches for key in keys}) == 40
    assert first.batches[0] != second.batches[0]
    assert first.values[0] != second.values[0]


def test_a_resumed_run_keeps_the_results_of_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be those of an evaluation that took longer than the run's own."""
    folder = plain(tmp_path / "runs", tiny.config(tmp_path / "tiny.yml"), "--steps", 1)
    assert "earlier results" not in capsys.readouterr().out
    (folder / "evaluation.json").write_text("of every caption, with FID")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "captions.csv").write_text("theirs")
    with monkeypatch.context() as patch:
        patch.setattr(Examination, "manifest", None)
        with pytest.raises(SystemExit, match=r"^dfgan: 'NoneType' object is not callable"):
            run("--resume", folder, "--steps", 2)
    assert (folder / "evaluation.json").read_text() == "of every caption, with FID"
    assert "earlier results" not in capsys.readouterr().out
    run("--resume", folder, "--steps", 2)
    assert "earlier results are kept as evaluation-1.json" in capsys.readouterr().out
    assert (folder / "evaluation-1.json").read_text() == "of every caption, with FID"
    assert (folder / "pictures-1" / "captions.csv").read_text() == "theirs"
    assert not (folder / "pictures").exists()
    assert len(results_of(folder)["rows"]) == 3


def test_without_memory_one_line_says_what_to_do(tmp_path: Path) -> None:
    def build(*arguments: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    words = ["--cfg", tiny.config(tmp_path / "tiny.yml"), "--data", tiny.birds(), "--text-encoder", tiny.matcher()]
    with pytest.raises(
        SystemExit, match=r"^dfgan: CUDA out of memory\..* GiB\. Try a smaller --batch \(of a run that has"
    ):
        run("--out", tmp_path / "runs", "--device", "cpu", *words, build=build)


@both
def test_from_random_weights_the_loss_begins_as_it_should(tmp_path: Path, name: str) -> None:
    """cfg/synthetic.yml goes on from a generator that draws; cfg/scratch.yml begins from nothing."""
    folder = packaged(tmp_path, name)
    for file, steps in (("synthetic", 11), ("scratch", 22)):
        tiny.config(folder / "cfg" / f"{file}.yml", name, steps=steps)
    (folder / "assets" / "birds.pt").write_bytes(b"")

    def steps_of(*words: str) -> int:
        return configured(name, folder, *words).steps

    for words in ((), ("--vlm",), ("--generator", "mine.pt", "--data", "x"), ("--generator", "mine.pt")):
        assert steps_of(*words) == 11
    for words in (("--from-scratch",), ("--data", "x", "--vlm", "mine.vlm.pt")):
        assert steps_of(*words) == 22
    assert steps_of("--from-scratch", "--cfg", str(folder / "cfg" / "synthetic.yml")) == 11
    # A run's generator goes on with that run's settings, and the loss begins at once.
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    settings = tiny.settings(name, steps=33, vlm__vlm_start=1000, vlm__vvm_start=1000)
    write_json({"baseline": name, "settings": settings}, earlier / "options.json")
    words = ["--generator", str(earlier), "--batch", "2"]
    found = configured(name, folder, *words).settings.plain()
    assert found == settings | {"batch": 2, "vlm": settings["vlm"] | {"vlm_start": 0, "vvm_start": 0}}
    assert steps_of(*words, "--cfg", str(folder / "cfg" / "synthetic.yml")) == 11
    del settings["ema"]
    write_json({"baseline": name, "settings": settings}, earlier / "options.json")
    with pytest.raises(ValueError, match=r"earlier/options\.json: missing setting ema$"):
        steps_of(*words)
    (folder / "assets" / "birds.pt").unlink()
    assert steps_of("--vlm") == 22


@pytest.mark.parametrize("length", ["--steps", "--epochs"])
def test_zero_steps_score_the_start(tmp_path: Path, length: str) -> None:
    never = Seen(before_step=fail_at(0)).build
    folder = plain(tmp_path / "runs", tiny.config(tmp_path / "tiny.yml"), length, 0, build=never)
    assert checkpoint(folder)["step"] == options_of(folder)["steps"] == 0
    rows = results_of(folder)["rows"]
    assert rows[2]["values"] == rows[1]["values"]
    assert not (folder / "curves.png").exists()


def test_halves_ramp_up_each_from_its_own_start() -> None:
    settings = EasyDict(lambda_vvm=2.0, lambda_vlm=1.0, vvm_start=4, vvm_warmup=4, vlm_start=0, vlm_warmup=2)
    found = [weights_at(step, settings) for step in range(9)]
    assert [vvm for vvm, _ in found] == [0, 0, 0, 0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert [vlm for _, vlm in found] == [0.5, 1, 1, 1, 1, 1, 1, 1, 1]
    settings.vvm_warmup = settings.vlm_warmup = 0
    assert [weights_at(step, settings) for step in (0, 3, 4)] == [(0, 1), (0, 1), (2, 1)]


def test_only_the_terms_asked_for(tmp_path: Path) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml", vlm__terms=["vlm_global"], vlm__augment=False, steps=1)
    folder = with_vlm(tmp_path / "runs", cfg)
    (row,) = Log.read(folder / "log.jsonl")
    assert {name for name in row if "vlm_" in name} == {"vlm_global", "floor_vlm_global"}
    assert not any("vvm_" in name for name in row)


def test_without_a_scorer_the_general_terms_are_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.build_matcher(scorer=False).save(tmp_path / "bare.pt")
    cfg = tiny.config(tmp_path / "tiny.yml", steps=1)
    folder = run("--data", tiny.birds(), "--out", tmp_path / "runs", "--cfg", cfg, "--vlm", tmp_path / "bare.pt")
    (row,) = Log.read(folder / "log.jsonl")
    assert {term for term in TERMS if term in row} == {"vlm_local", "vlm_global", "vvm_local", "vvm_global"}
    assert "this matcher has no scorer: the general terms are off" in capsys.readouterr().out


def test_an_original_settings_file_decides_the_run(tmp_path: Path) -> None:
    data, out = tmp_path / "birds", ("--out", tmp_path / "runs")
    data.symlink_to(tiny.birds())
    shutil.copy(tiny.matcher(), tmp_path / "text.pt")
    content = {
        "DATA_DIR": "birds", "WORKERS": 0, "TREE": {"BRANCH_NUM": 2, "BASE_SIZE": 16},
        "TRAIN": {"BATCH_SIZE": 20, "MAX_EPOCH": 1, "NET_E": "text.pt", "SMOOTH": {"LAMBDA": 0.0}},
        "GAN": {"GF_DIM": 2, "DF_DIM": 2, "Z_DIM": 4, "CONDITION_DIM": 3, "R_NUM": 1}, "TEXT": {"WORDS_NUM": 5},
    }  # fmt: skip
    cfg = tmp_path / "cfg" / "mine.yml"
    cfg.parent.mkdir()
    cfg.write_text(yaml.safe_dump(content), encoding="utf-8")
    seen = Seen("attngan")
    folder = run("--cfg", cfg, *out, name="attngan", build=seen.build)
    options = options_of(folder)
    assert (options["data"], options["text_encoder"]) == (str(tiny.birds()), str(tmp_path / "text.pt"))
    assert options["settings"]["damsm"]["weight"] == 0.0
    assert checkpoint(folder)["step"] == options["steps"] == 2  # one epoch
    assert seen.matcher.max_words == 5
    # The command line comes first, and a bare --vlm means the matcher that the file names.
    seen = Seen("attngan")
    folder = run("--cfg", cfg, *out, "--vlm", "--batch", 10, "--steps", 1, name="attngan", build=seen.build)
    assert options_of(folder)["vlm"] == str(tmp_path / "text.pt")
    assert len(seen.batches) == 1
    assert len(seen.batches[0][0]) == 10
    # The patch's lines mean what they mean there: a matcher that is named adds the loss.
    shutil.copy(tiny.matcher(), tmp_path / "matcher.pt")
    content["TRAIN"] |= {"VLM": "matcher.pt", "LAMBDA_VVM": 0.3, "LAMBDA_VLM": 0.7}
    cfg.write_text(yaml.safe_dump(content), encoding="utf-8")
    for words, expected in (
        ((), "matcher.pt"),
        (("--vlm",), "matcher.pt"),
        (("--vlm", tmp_path / "text.pt"), "text.pt"),
    ):
        config = configured("attngan", folder_of("attngan"), "--cfg", cfg, *words)
        assert config.vlm == str(tmp_path / expected)
        assert (config.settings.vlm.lambda_vvm, config.settings.vlm.lambda_vlm) == (0.3, 0.7)
    words = ("--cfg", cfg, "--text-encoder", tmp_path / "text.pt")
    assert configured("attngan", folder_of("attngan"), *words).vlm is None
    del content["TRAIN"]["VLM"]
    # A file that does not train: an evaluation of what there is.
    content["TRAIN"]["FLAG"] = False
    cfg.write_text(yaml.safe_dump(content), encoding="utf-8")
    folder = run("--cfg", cfg, *out, name="attngan", build=Seen("attngan", fail_at(0)).build)
    assert checkpoint(folder)["step"] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Kills
# ---------------------------------------------------------------------------------------------------------------------


def fail_at(when: int) -> Callable[[int], None]:
    def before_step(step: int) -> None:
        if step == when:
            raise RuntimeError("the power went")

    return before_step


def terminate_at(when: int, number: int = signal.SIGTERM) -> Callable[[int], None]:
    return lambda step: os.kill(os.getpid(), number) if step == when else None


@pytest.mark.parametrize("dual", [True, False])
def test_terminated_and_resumed_is_the_same_run(
    name: str, dual: bool, finished: Finished, alone: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, whole = (with_vlm, finished) if dual else (plain, alone)
    cfg = tiny.config(tmp_path / "tiny.yml", name)
    # Ctrl-C in the one, a scheduler's in the other.
    number = signal.SIGTERM if dual else signal.SIGINT
    # Step 2 is the third; its number is no multiple of the checkpoints'.
    with pytest.raises(SystemExit) as stop:
        start(tmp_path / "runs", cfg, name=name, build=Seen(name, terminate_at(2, number)).build)
    assert stop.value.code == 128 + number
    folder = tmp_path / "runs" / f"00000-{name}{'-vlm' if dual else ''}"
    assert checkpoint(folder)["step"] == 3
    assert f"stopped after step 3; go on with --resume {folder}" in capsys.readouterr().out
    assert not (folder / "evaluation.md").exists()
    torch.manual_seed(123)
    assert run("--resume", folder, name=name) == folder
    assert "at step 3 of 4" in capsys.readouterr().out
    assert_same_run(folder, whole.folder)


@pytest.mark.parametrize("damage", ["a bit", "gone"])
def test_from_a_damaged_checkpoint_a_run_goes_on_from_the_one_before(
    name: str, damage: str, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The finished run's last checkpoint is of step 4, the one before of step 2.
    folder = Path(shutil.copytree(finished.folder, tmp_path / finished.folder.name))
    file, older = folder / "checkpoint.pt", folder / "checkpoint.previous.pt"
    for path in (*folder.glob("evaluation.*"), *folder.glob("report.*")):
        path.unlink()
    if damage == "gone":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 16
        file.write_bytes(content)
    capsys.readouterr()
    run("--resume", folder, name=name)
    told = capsys.readouterr().out
    assert re.search(rf"^{re.escape(str(file))}: .*: going on from the one before, {older}, after step 2$", told, re.M)
    assert f"resuming {folder} at step 2 of 4" in told
    # The damaged one never takes the place of the whole one, at whatever moment a kill comes.
    aside = folder / "checkpoint.damaged.pt"
    assert aside.exists() == (damage == "a bit")
    assert checkpoint(folder)["step"] == 4
    assert torch.load(older, weights_only=True)["step"] == 2
    aside.unlink(missing_ok=True)
    assert_same_run(folder, finished.folder)


def test_without_a_whole_checkpoint_a_run_says_so(tmp_path: Path) -> None:
    folder = plain(tmp_path / "runs", tiny.config(tmp_path / "tiny.yml", steps=0), name="dfgan")
    for file in (folder / "checkpoint.pt", folder / "checkpoint.previous.pt"):
        file.write_bytes(b"")
        assert f"dfgan: {file}: not a readable checkpoint" in refused("--resume", folder)


def test_a_run_that_broke_goes_on_from_its_last_checkpoint(name: str, finished: Finished, tmp_path: Path) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml", name)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="the power went"):
        with_vlm(tmp_path / "runs", cfg, name=name, build=Seen(name, fail_at(3)).build)
    assert signal.getsignal(signal.SIGTERM) == before
    folder = tmp_path / "runs" / f"00000-{name}-vlm"
    assert checkpoint(folder)["step"] == 2
    log = folder / "log.jsonl"
    assert [row["step"] for row in Log.read(log)] == [0, 1, 2]
    with log.open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "disc')
    seen = Seen(name)
    run("--resume", folder, name=name, build=seen.build)
    assert seen.batches == finished.seen.batches[2:]
    assert_same_run(folder, finished.folder)


def assert_same_run(folder: Path, whole: Path) -> None:
    assert_equal(checkpoint(folder), checkpoint(whole))
    assert Log.read(folder / "log.jsonl") == Log.read(whole / "log.jsonl")
    assert results_of(folder)["rows"] == results_of(whole)["rows"]
    assert options_of(folder) == options_of(whole)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


def assert_broken_down(folder: Path, message: str, step: int, named: str, kept: int) -> None:
    assert f"step {step}: expected finite numbers, got NaN or infinity in {named}" in message
    assert f"{folder}/checkpoint.pt stays as it was after step {kept};" in message
    assert f"--generator {folder}" in message
    assert checkpoint(folder)["step"] == kept
    assert not_finite(checkpoint(folder)) is None
    assert not (folder / "evaluation.json").exists()
    batch = read_file(folder / "bad_batch.pt", "batch")
    assert batch["step"] == step
    assert batch["noise"].shape[0] == batch["batch"]["images"].shape[0] == len(batch["batch"]["captions"]) == 4


@both
def test_a_training_that_breaks_down_ends_at_its_log(name: str, tmp_path: Path) -> None:
    """Also where fewer steps are left than would end it: the checkpoint before the first bad one stays."""
    cfg = tiny.config(tmp_path / "tiny.yml", name, generator_lr=1.0e30, steps=4, checkpoint_every=2)
    for most, step in ((2, 2), (10, 3)):
        with pytest.raises(SystemExit) as stop:
            with_vlm(tmp_path / f"runs{most}", cfg, "--max-bad-steps", most, name=name)
        (folder,) = (tmp_path / f"runs{most}").iterdir()
        assert_broken_down(folder, str(stop.value.code), step, "discriminator", 0)
        assert f", as in {step} steps in a row: the training has" in str(stop.value.code)


def poisoned(steps: Collection[int], seen: list[int], signal_at: int = -1) -> type[Trainer]:
    """A trainer that is given pictures with NaN at some steps."""

    class Poisoned(DFGAN):
        def step(self, batch, text, step, vlm_loss):
            seen.append(step)
            terminate_at(signal_at)(step)
            images = torch.full_like(batch.images, float("nan")) if step in steps else batch.images
            return super().step(batch._replace(images=images), text, step, vlm_loss)

    return Poisoned


def test_a_bad_step_is_counted_and_passed_over_also_by_a_resumed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml")
    folder = with_vlm(tmp_path / "runs", cfg, build=poisoned({2}, []))
    assert f"passed over 1 bad steps: see {folder}/log.jsonl" in capsys.readouterr().out
    rows = Log.read(folder / "log.jsonl")
    assert [(row["step"], row.get("bad_steps"), row.get("not_finite")) for row in rows] == [
        (0, None, None), (1, None, None), (2, 1, "pictures"), (3, None, None),
    ]  # fmt: skip
    assert checkpoint(folder)["bad_steps"] == {"total": 1, "in_a_row": 0}
    assert not_finite(checkpoint(folder)) is None
    assert not (folder / "bad_batch.pt").exists()
    with pytest.raises(SystemExit):
        with_vlm(tmp_path / "cut", cfg, build=poisoned({2}, [], signal_at=1))
    cut = tmp_path / "cut" / "00000-dfgan-vlm"
    seen: list[int] = []
    run("--resume", cut, build=poisoned({2}, seen))
    assert seen == [2, 3]
    assert_same_run(cut, folder)


def test_bad_steps_in_a_row_are_counted_over_a_resume(tmp_path: Path) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml")
    with pytest.raises(SystemExit):
        plain(tmp_path / "runs", cfg, "--max-bad-steps", 2, build=poisoned({2, 3}, [], signal_at=2))
    folder = tmp_path / "runs" / "00000-dfgan"
    assert checkpoint(folder)["bad_steps"] == {"total": 1, "in_a_row": 1}
    with pytest.raises(SystemExit) as stop:
        run("--resume", folder, build=poisoned({2, 3}, []))
    assert_broken_down(folder, str(stop.value.code), 3, "pictures, as in 2 steps in a row:", 3)
    assert "expected a whole number from 1 up, got 0" in refused("--resume", folder, "--max-bad-steps", 0)
    # Told to bear more, it ends with two of them.
    run("--resume", folder, "--max-bad-steps", 3, build=poisoned({2, 3}, []))
    assert checkpoint(folder)["bad_steps"] == {"total": 2, "in_a_row": 2}


def test_weights_that_break_down_never_reach_the_checkpoint(tmp_path: Path) -> None:
    """Also between two lines of the log."""

    class Breaks(DFGAN):
        def step(self, batch, text, step, vlm_loss):
            values = super().step(batch, text, step, vlm_loss)
            if step == 3:
                self.average.get_parameter("fc.bias").data[0] = float("nan")
            return values

    cfg = tiny.config(tmp_path / "tiny.yml", steps=6, log_every=100)
    with pytest.raises(SystemExit) as stop:
        plain(tmp_path / "runs", cfg, build=Breaks)
    folder = tmp_path / "runs" / "00000-dfgan"
    assert_broken_down(folder, str(stop.value.code), 3, "average.fc.bias:", 2)


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    seen = Seen(before_step=fail_at(0))
    with pytest.raises(RuntimeError):
        plain(tmp_path / "runs", tiny.config(tmp_path / "tiny.yml"), build=seen.build)
    folder = tmp_path / "runs" / "00000-dfgan"
    assert checkpoint(folder)["step"] == 0
    run("--resume", folder, "--steps", 1)
    assert checkpoint(folder)["step"] == 1


def test_a_finished_run_can_be_lengthened(name: str, alone: Finished, tmp_path: Path) -> None:
    folder = plain(tmp_path / "runs", tiny.config(tmp_path / "tiny.yml", name), "--steps", 2, name=name)
    run("--resume", folder, "--steps", 4, name=name)
    assert_equal(checkpoint(folder), checkpoint(alone.folder))
    assert options_of(folder)["steps"] == 4


def test_a_run_cannot_be_shortened(name: str, alone: Finished, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(alone.folder, tmp_path / "run"))
    options = (folder / "options.json").read_bytes()
    for words, steps in ((("--steps", 3), 3), (("--steps", 0), 0), (("--epochs", 0), 0)):
        message = refused("--resume", folder, *words, name=name)
        assert f"--resume {folder}: expected 4 steps or more, which it has done, got {steps}" in message
    assert (folder / "options.json").read_bytes() == options


def test_a_resumed_run_keeps_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes: list[torch.dtype] = []

    class Watched(DFGAN):
        def __init__(self, settings, matcher, device, dtype):
            super().__init__(settings, matcher, device, dtype)
            dtypes.append(dtype)

    cfg = tiny.config(tmp_path / "tiny.yml", precision="auto")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    folder = plain(tmp_path / "runs", cfg, "--steps", 1, build=Watched)
    assert options_of(folder)["precision"] == "bfloat16"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    run("--resume", folder, "--steps", 2, build=Watched)
    plain(tmp_path / "runs", cfg, "--steps", 1, build=Watched)
    assert dtypes == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert options_of(folder)["precision"] == "bfloat16"
    # An earlier release's run does not say.
    write_json({k: v for k, v in options_of(folder).items() if k != "precision"}, folder / "options.json")
    run("--resume", folder, "--steps", 3, build=Watched)
    assert dtypes[-1] == torch.float32


def test_a_run_resumes_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml", steps=2)
    monkeypatch.chdir(tiny.matcher().parent)
    with pytest.raises(RuntimeError):
        run(
            "--data", "birds", "--out", tmp_path / "runs", "--cfg", cfg, "--vlm", "tiny.vlm.pt",
            build=Seen(before_step=fail_at(1)).build,
        )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    run("--resume", "runs/00000-dfgan-vlm")
    assert checkpoint(tmp_path / "runs" / "00000-dfgan-vlm")["step"] == 2


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["drawing the first birds", "the table at the end"])
def test_ctrl_c_outside_of_the_steps_is_one_line(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first = when == "drawing the first birds"
    cfg = tiny.config(tmp_path / "tiny.yml", steps=0)
    with monkeypatch.context() as patch:
        patch.setattr(f"vlm_plugin.gans.{'begin.make_birds' if first else 'show.Show.finish'}", interrupt)
        with pytest.raises(SystemExit) as stop:
            run("--cfg", cfg) if first else plain(tmp_path / "runs", cfg)
    assert stop.value.code == 130
    folder = tmp_path / "runs" / "00000-dfgan"
    kept = "" if first else f"; trained; --resume {folder} makes table and pictures"
    assert capsys.readouterr().err.splitlines()[-1] == f"dfgan: interrupted{kept}"
    if not first:
        run("--resume", folder)
        assert results_of(folder)["rows"]


@pytest.mark.parametrize(("encoding", "name"), [("ascii", "V\xf6gel"), ("utf-8", os.fsdecode(b"V\xf6gel"))])
def test_a_terminal_without_a_sign_of_the_table_loses_no_result(
    encoding: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    data = shutil.copytree(tiny.birds(), tmp_path / name / "data")
    folder = plain(tmp_path / name, tiny.config(tmp_path / "tiny.yml", steps=1), "--data", data)
    terminal.flush()
    assert results_of(folder)["rows"]
    assert (folder / "report.html").is_file()
    assert (rb"V\xf6gel" if encoding == "ascii" else rb"V\udcf6gel") in terminal.buffer.getvalue()
    # The same of the command that evaluates it again, under a name of its own.
    folder = folder.rename(tmp_path / name / name)
    assert main(["evaluate", str(folder), "--count", "4", "--device", "cpu"]) == 0
    assert results_of(folder)["rows"][-1]["name"] == name


def test_every_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    names = ("cfg", "data", "out", "resume", "generator", "vlm", "text_encoder")
    words = [f"--{name.replace('_', '-')}=~/{name}" for name in names]
    found = vars(parser("dfgan").parse_args([*words, "--sample=~/captions.txt"]))
    assert {name: str(found[name]) for name in names} == {name: str(tmp_path / name) for name in names}
    assert found["sample"] == [str(tmp_path / "captions.txt")]
    assert parser("dfgan").parse_args(["--vlm"]).vlm == PACKAGED


def refused(*words: object, name: str = "dfgan") -> str:
    with pytest.raises(SystemExit) as stop:
        run(*words, name=name)
    message = str(stop.value.code)
    assert "\n" not in message
    assert message.startswith(f"{name}: ")
    return message


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dfgan", {"nff": 3}, "tiny.yml: unknown setting nff; did you mean nf?"),
        ("dfgan", {"vlm__lamda_vlm": 3}, "tiny.yml: unknown setting vlm.lamda_vlm; did you mean vlm.lambda_vlm?"),
        ("attngan", {"damsm__wieght": 3}, "tiny.yml: unknown setting damsm.wieght; did you mean damsm.weight?"),
        ("dfgan", {"image_size": 48}, "image_size: expected a power of two"),
        ("attngan", {"base_size": 24}, "base_size: expected a power of two"),
        ("attngan", {"stages": 0}, "stages: expected at least 1, got 0"),
        ("dfgan", {"precision": "half"}, "precision: expected auto, float32 or bfloat16, got 'half'"),
        ("dfgan", {"batch": 1}, "batch: expected at least 2, got 1"),
        ("dfgan", {"steps": -5}, "steps: expected at least 0, got -5"),
        ("attngan", {"vlm__lambda_vlm": -1.0}, "vlm.lambda_vlm: expected a number from 0 up, got -1.0"),
        ("dfgan", {"vlm__vvm_warmup": -3}, "vlm.vvm_warmup: expected a number from 0 up, got -3"),
        ("dfgan", {"log_every": 0}, "log_every: expected at least 1, got 0"),
        ("dfgan", {"sample_every": 0}, "sample_every: expected at least 1, got 0"),
        ("dfgan", {"checkpoint_every": 0}, "checkpoint_every: expected at least 1, got 0"),
        ("dfgan", {"evaluated": 1}, "evaluated: expected at least 2, got 1"),
        ("dfgan", {"ema": 2.0}, "ema: expected a number from 0 to 1, got 2.0"),
        ("dfgan", {"ema": -0.1}, "ema: expected a number from 0 to 1, got -0.1"),
        ("dfgan", {"workers": "two"}, "workers: expected null, or a whole number from 0 up, got 'two'"),
        ("attngan", {"workers": -1}, "workers: expected null, or a whole number from 0 up, got -1"),
        ("dfgan", {"adam_betas": [0.0, 1.9]}, "adam_betas: expected two numbers from 0 to below 1, got [0.0, 1.9]"),
        ("dfgan", {"generator_lr": -1.0}, "generator_lr: expected a number from 0 up, got -1.0"),
        ("dfgan", {"vlm__lambda_vlm": float("nan")}, "tiny.yml: vlm.lambda_vlm: expected a value like 0.8, got nan"),
        ("dfgan", {"vlm__terms": ["vlm_loud"]}, "terms: expected names of"),
        ("dfgan", {"vlm__terms": []}, "terms: expected at least one of"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, name: str, change: dict, message: str) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml", name, **change)
    words = ("--cfg", cfg, "--data", tiny.birds(), "--vlm", tiny.matcher(), "--out", tmp_path / "runs")
    assert message in refused(*words, name=name)
    assert not (tmp_path / "runs").exists()


def test_a_batch_of_one_is_refused_on_the_command_line_too(tmp_path: Path) -> None:
    assert "batch: expected at least 2, got 1" in refused("--data", tmp_path, "--batch", 1)


def test_seeds_that_are_too_large(tmp_path: Path) -> None:
    too_large, message = 2**32, "seed: expected a number from 0 to 4294967295, got 4294967296"
    data = ("--data", tmp_path / "nowhere")  # which is looked for later
    assert message in refused(*data, "--seed", too_large)
    assert message in refused("--sample", "a bird", "--generator", tmp_path / "nowhere", "--seed", too_large)
    (tmp_path / "mine.yml").write_text(f"{{CONFIG_NAME: x, manual_seed: {too_large}}}", encoding="utf-8")
    assert message in refused(*data, "--cfg", tmp_path / "mine.yml")


def test_a_settings_file_that_is_not_there(tmp_path: Path) -> None:
    assert f"--cfg {tmp_path}: no such file" in refused("--cfg", tmp_path)


def test_wrong_data_matchers_and_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out, data = ("--out", tmp_path / "runs"), ("--data", tiny.birds())
    cfg = ("--cfg", tiny.config(tmp_path / "tiny.yml"))
    (tmp_path / "pictures").mkdir()
    assert f"{tmp_path / 'pictures'}: expected a data folder with one of these layouts: CUB" in refused(
        "--data", tmp_path / "pictures", *cfg, *out
    )
    assert "nowhere: expected a data folder, found no such folder" in refused("--data", tmp_path / "nowhere", *out)
    assert "nowhere.pt: no such file (packaged matchers: " in refused(*data, *cfg, *out, "--vlm", "nowhere.pt")
    assert "tiny.judge.pt: expected a vlm_plugin.VLM file" in refused(*data, *cfg, *out, "--vlm", tiny.judge())
    assert "--text-encoder: only for plain runs" in refused(*data, *out, "--vlm", "--text-encoder", tiny.matcher())
    assert "--from-scratch: contradicts --generator" in refused(*data, *out, "--from-scratch", "--generator", "x.pt")
    assert "nowhere.pt" in refused(*data, *cfg, *out, "--text-encoder", tiny.matcher(), "--generator", "nowhere.pt")
    assert "--device tpu: expected cpu, cuda or cuda:NUMBER" in refused(*data, *cfg, *out, "--device", "tpu")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert str(blocked) in refused(*data, *cfg, "--out", blocked, "--vlm", tiny.matcher())
    tiny.build_matcher(scorer=False).save(tmp_path / "bare.pt")
    general = ("--cfg", tiny.config(tmp_path / "general.yml", vlm__terms=["vlm_general"]))
    assert "need a trained scorer" in refused(*data, *general, *out, "--vlm", tmp_path / "bare.pt")
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "data").exists()


def test_a_missing_judge_is_noticed_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(cls: type) -> Judge:
        raise FileNotFoundError("birds.judge.pt: no such file")

    monkeypatch.setattr(Judge, "load", classmethod(load))
    seen = Seen()
    with pytest.raises(SystemExit, match=r"birds\.judge\.pt"):
        plain(tmp_path / "runs", tiny.config(tmp_path / "tiny.yml"), build=seen.build)
    assert not seen.batches


def test_resume_wants_a_run_and_nothing_else(name: str, alone: Finished, tmp_path: Path) -> None:
    assert f"--resume {tmp_path}: expected a run's folder with options.json" in refused("--resume", tmp_path)
    assert "nowhere: expected a run's folder" in refused("--resume", tmp_path / "nowhere")
    (tmp_path / "options.json").write_text("{}", encoding="utf-8")
    assert "expected a run's folder with checkpoint.pt" in refused("--resume", tmp_path)
    given = ("--seed", 0, "--batch", 4, "--generator", "y", "--from-scratch", "--out", "runs", "--cfg", "z.yml")
    message = refused("--resume", alone.folder, *given, name=name)
    assert "leave out --cfg, --out, --batch, --seed, --generator, --from-scratch" in message
    message = refused("--resume", alone.folder, "--vlm", name=name)
    assert f"--vlm: {alone.folder} was begun without: its matcher is --text-encoder {tiny.matcher()}" in message
    other = next(other for other in BASELINES if other != name)
    assert f"--resume {alone.folder}: a run of {name}" in refused("--resume", alone.folder, name=other)


def test_a_run_goes_on_where_its_data_and_its_matcher_have_moved(tmp_path: Path) -> None:
    data, matcher = shutil.copytree(tiny.birds(), tmp_path / "birds"), shutil.copy(tiny.matcher(), tmp_path / "m.pt")
    cfg, out = tiny.config(tmp_path / "tiny.yml"), ("--out", tmp_path / "runs")
    folder = run("--data", data, *out, "--cfg", cfg, "--vlm", matcher, "--steps", 1)
    data, matcher = data.rename(tmp_path / "moved"), matcher.rename(tmp_path / "moved.pt")
    named = f"{folder}/options.json names {tmp_path}"
    message = refused("--resume", folder, "--steps", 2)
    assert "birds: expected a data folder, found no such folder; " in message
    assert message.endswith(f"; {named}/birds: say where it lies now with --data DIR")
    assert refused("--resume", folder, "--data", "no").endswith("no: expected a data folder, found no such folder")
    message = refused("--resume", folder, "--data", data)
    assert message.endswith(f"); {named}/m.pt: say where it lies now with --vlm FILE")
    assert "started with the matcher" in refused("--resume", folder, "--data", data, "--vlm", tiny.evaluator())
    run("--resume", folder, "--data", data, "--vlm", matcher, "--steps", 2)
    assert checkpoint(folder)["step"] == 2
    run("--resume", folder, "--steps", 3)  # they are remembered
    assert options_of(folder)["data"] == str(data)
    assert options_of(folder)["vlm"] == str(matcher)


@pytest.mark.parametrize("file", ["checkpoint.pt", "options.json", "before.pt"])
@pytest.mark.parametrize("damage", [b"", b"half of it"])
def test_damaged_files_of_a_run_are_named(alone: Finished, file: str, damage: bytes, tmp_path: Path) -> None:
    folder = shutil.copytree(alone.folder, tmp_path / "run")
    (folder / file).write_bytes(damage)
    # The one before would do as well: see test_from_a_damaged_checkpoint_a_run_goes_on_from_the_one_before.
    (folder / "checkpoint.previous.pt").unlink()
    baseline = options_of(alone.folder)["baseline"]
    seen = Seen(baseline)
    with pytest.raises(SystemExit, match=rf"^{baseline}: {folder / file}: "):
        run("--resume", folder, "--steps", 9, name=baseline, build=seen.build)
    assert not seen.batches


def test_a_run_without_what_it_drew_before_goes_on(tmp_path: Path) -> None:
    folder = plain(tmp_path / "runs", tiny.config(tmp_path / "tiny.yml"), "--steps", 1)
    (folder / "before.pt").unlink()
    run("--resume", folder, "--steps", 2)
    assert [row["name"] for row in results_of(folder)["rows"]] == ["real", "after"]


def test_other_data_wants_a_matcher_of_its_own(tmp_path: Path) -> None:
    """The packaged one would read hardly a word of them, and nothing would show it before the end."""
    data = shutil.copytree(tiny.birds(), tmp_path / "pictures")
    (data / "attributes.json").unlink()
    given = ("--data", data, "--cfg", tiny.config(tmp_path / "tiny.yml"), "--out", tmp_path / "runs")
    for words in ((), ("--vlm",)):
        message = refused(*given, *words)
        assert f"--data {data}: expected with it a matcher of its words (--vlm FILE, or --text-encoder FILE" in message
    assert not (tmp_path / "runs").exists()


@both
def test_birds_are_drawn_for_the_packaged_matcher_alone(name: str, tmp_path: Path) -> None:
    """Whoever forgets --data would train on birds, and read off a table of them."""
    given = ("--cfg", tiny.config(tmp_path / "tiny.yml", name), "--out", tmp_path / "runs")
    for words in (("--vlm", tiny.matcher()), ("--text-encoder", tiny.matcher())):
        message = refused(*given, *words, name=name)
        assert f"--data: expected a folder of captioned pictures for the matcher {tiny.matcher()}, got none" in message
    assert not (tmp_path / "runs").exists()


def test_a_runs_generator_goes_on_with_its_data_and_its_matcher(tmp_path: Path) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml")
    first = plain(tmp_path / "runs", cfg, "--steps", 1)
    for words, key in (((), "text_encoder"), (("--vlm",), "vlm")):
        again = options_of(run("--generator", first, "--out", tmp_path / "runs", "--steps", 0, *words))
        assert again["data"] == str(tiny.birds().resolve())
        assert again[key] == str(tiny.matcher().resolve())
    other = tmp_path / "other.vlm.pt"
    shutil.copyfile(tiny.matcher(), other)
    again = run("--generator", first, "--out", tmp_path / "runs", "--steps", 0, "--vlm", other)
    assert options_of(again)["vlm"] == str(other)


def test_nothing_is_written_among_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = shutil.copytree(tiny.birds(), tmp_path / "pictures")
    before = sorted(data.rglob("*"))
    given = ("--data", ".", "--text-encoder", tiny.matcher(), "--cfg", tiny.config(tmp_path / "tiny.yml"))
    monkeypatch.chdir(data)
    for out in ((), ("--out", "."), ("--out", data / "train" / "x")):
        assert f"expected a folder outside of the data folder {data}, got one inside" in refused(*given, *out)
    drawn = ("--data", ".", "--sample", "a bird", "--generator", "nowhere", "--out", "samples")
    assert "--out samples: expected a folder outside of the data folder" in refused(*drawn)
    assert sorted(data.rglob("*")) == before


def test_a_run_that_is_being_trained_is_not_resumed(tmp_path: Path) -> None:
    messages = []

    def resume(step: int) -> None:
        messages.append(refused("--resume", tmp_path / "runs" / "00000-dfgan"))

    folder = plain(
        tmp_path / "runs", tiny.config(tmp_path / "tiny.yml"), "--steps", 1, build=Seen(before_step=resume).build
    )
    assert messages == [f"dfgan: {folder}: another process trains this run; stop it first"]
    run("--resume", folder, "--steps", 2)
    assert checkpoint(folder)["step"] == 2


def test_unknown_words_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg, out = tiny.config(tmp_path / "tiny.yml"), tmp_path / "runs"
    plain(out, cfg, "--steps", 0)
    assert "are unknown to" not in capsys.readouterr().out
    data = shutil.copytree(tiny.birds(), tmp_path / "pictures")
    (data / "attributes.json").unlink()
    for text in data.glob("text/**/*.txt"):
        text.write_text("a zzz bird qqq\n" * 10, encoding="utf-8")
    run("--data", data, "--text-encoder", tiny.matcher(), "--out", out, "--cfg", cfg, "--steps", 0)
    assert "80 of 160 words in 40 captions are unknown to tiny.vlm.pt: zzz, qqq\n" in capsys.readouterr().out


def test_a_folder_for_a_run_that_cannot_begin_is_taken_back(tmp_path: Path) -> None:
    data = shutil.copytree(tiny.birds(), tmp_path / "pictures")
    picture = open_split(data, "test")[0].image
    picture.write_bytes(b"no picture")
    given = ("--data", data, "--text-encoder", tiny.matcher(), "--cfg", tiny.config(tmp_path / "tiny.yml"))
    assert f"{picture}: expected a picture" in refused(*given, "--out", tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


def test_resume_wants_the_matcher_of_the_start(tmp_path: Path) -> None:
    path = tmp_path / "mine.vlm.pt"
    tiny.build_matcher(seed=1).save(path)
    cfg = tiny.config(tmp_path / "tiny.yml")
    folder = run("--data", tiny.birds(), "--out", tmp_path / "runs", "--cfg", cfg, "--vlm", path, "--steps", 1)
    tiny.build_matcher(seed=2).save(path)
    message = refused("--resume", folder, "--steps", 2)
    assert f"started with the matcher {tiny.build_matcher(seed=1).fingerprint}, but {path} is" in message


@pytest.mark.parametrize(
    ("split", "count", "message"),
    [
        ("test", None, r"evaluated: 10 \(digest (\w{16})\) then, 10 \(digest (?!\1)\w{16}\) now"),
        ("test", 9, r"evaluated: 10 \(digest \w{16}\) then, 9 \("),
        ("train", None, r"train: 40 \(digest (\w{16})\) then, 40 \(digest (?!\1)"),
        ("train", 30, r"train: 40 \(digest \w{16}\) then, 30 \("),
    ],
)
def test_resume_wants_the_data_of_the_start(tmp_path: Path, split: str, count: int | None, message: str) -> None:
    data = Path(shutil.copytree(tiny.birds(), tmp_path / "birds"))
    folder = plain(tmp_path / "runs", tiny.config(tmp_path / "tiny.yml"), "--steps", 1, "--data", data)
    options = (folder / "options.json").read_bytes()
    for name in ("filenames", "class_info"):
        path = data / split / f"{name}.pickle"
        rows = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps(rows[::-1] if count is None else rows[:count]))
    found = refused("--resume", folder, "--steps", 2)
    assert f"--resume {folder}: expected the pictures and captions that {data} had when the run began" in found
    assert re.search(message, found)
    assert (folder / "options.json").read_bytes() == options
    assert checkpoint(folder)["step"] == 1


def test_a_run_that_does_not_say_what_it_began_with_goes_on(alone: Finished, name: str, tmp_path: Path) -> None:
    """As those of an earlier release do."""
    folder = Path(shutil.copytree(alone.folder, tmp_path / "run"))
    options = options_of(folder)
    write_json({k: v for k, v in options.items() if k not in ("pictures", "processes")}, folder / "options.json")
    run("--resume", folder, name=name)
    assert options_of(folder) == options


def test_resume_wants_the_vocabulary_of_the_start(alone: Finished, name: str, tmp_path: Path) -> None:
    """The matcher's fingerprint is of its weights alone; a DAMSM encoder's vocabulary is a file of its own."""
    folder = Path(shutil.copytree(alone.folder, tmp_path / "run"))
    write_json(options_of(folder) | {"matcher_reads": "0" * 16}, folder / "options.json")
    found = refused("--resume", folder, name=name)
    assert f"--resume {folder}: started with another vocabulary than {tiny.matcher()} has now" in found


def test_a_run_of_an_earlier_release_goes_on_with_the_pictures_that_it_began_with(tmp_path: Path) -> None:
    """Its table was of the first of the split, not of pictures at equal distances."""
    folder = plain(tmp_path / "runs", tiny.config(tmp_path / "tiny.yml"), "--steps", 1)
    options = options_of(folder)
    first = f"10 (digest {digest_records(open_split(tiny.birds(), 'test')[:10])})"
    assert options["pictures"]["evaluated"] != first
    options["pictures"]["evaluated"] = first
    del options["spread"]
    write_json(options, folder / "options.json")
    run("--resume", folder, "--steps", 2)
    assert options_of(folder)["pictures"]["evaluated"] == first


def test_resume_wants_the_processes_of_the_start(alone: Finished, name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(alone.folder, tmp_path / "run"))
    write_json(options_of(folder) | {"processes": 2}, folder / "options.json")
    assert refused("--resume", folder, name=name).endswith(f"--resume {folder}: begun with 2 processes, got 1 process")


@pytest.mark.parametrize(
    "words", [("--steps", "-1"), ("--steps", "x"), ("--batch", "2.5"), ("--steps", "1", "--epochs", "1"), ("--fast",)]
)
def test_nonsense_on_the_command_line_shows_the_usage(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    assert "usage: baselines/dfgan/main.py" in capsys.readouterr().err


def test_a_matcher_of_the_packaged_name_is_no_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packaged start belongs to the packaged matcher alone."""

    def options(*words: str) -> RunConfig:
        return configured("dfgan", folder, *words)

    folder = packaged(tmp_path, "dfgan")
    (folder / "assets" / "birds.pt").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    start = str(folder / "assets" / "birds.pt")
    assert options().start == options("--vlm").start == start
    for words in (("--from-scratch",), ("--data", "x"), ("--cfg", f"{folder}/cfg/synthetic.yml")):
        assert options(*words).start is None
    assert options("--vlm", "x.pt", "--data", "x").start is None
    assert options("--generator", "mine.pt", "--data", "x").start == "mine.pt"
    (tmp_path / "birds.vlm.pt").write_bytes(b"")
    assert options("--vlm").start == start
    own = options("--vlm", "birds.vlm.pt", "--data", "x")
    assert (own.start, own.vlm) == (None, str(tmp_path / "birds.vlm.pt"))


def packaged(root: Path, name: str, **changes: object) -> Path:
    """A baseline's folder with tiny settings and without a start."""
    folder = root / name
    for part in ("cfg", "assets"):
        (folder / part).mkdir(parents=True)
    shutil.copy(folder_of(name) / "cfg" / "original.yml", folder / "cfg")
    for file in ("synthetic.yml", "scratch.yml"):
        tiny.config(folder / "cfg" / file, name, **changes)
    return folder


@both
def test_shipped_settings_make_networks(name: str) -> None:
    files = [path for path in sorted((folder_of(name) / "cfg").glob("*.yml")) if path.name != "original.yml"]
    assert len(files) >= 3
    matcher, nowhere = VLM.load(tiny.matcher()), torch.device("meta")
    for file in files:
        settings, original = read_config(file, baseline(name))
        assert original == Original()
        with nowhere:  # shapes alone
            trainer = BASELINES[name].trainer(settings, matcher, nowhere, torch.float32)
        assert trainer.image_size == (64 if file.name in ("synthetic.yml", "scratch.yml") else 256)


# ---------------------------------------------------------------------------------------------------------------------
# Two processes, the scripts, a start
# ---------------------------------------------------------------------------------------------------------------------

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
RANK = """
import os, sys
sys.path[:0] = {folders!r}
from test_runs import BASELINES, Judge, fingerprint, folder_of
from vlm_plugin.gans.run import run
from vlm_plugin.gans import show

examine = show.Examination
show.Examination = lambda *arguments, **options: print("EXAMINED") or examine(*arguments, **options)
judge = Judge.load({judge!r})
Judge.load = classmethod(lambda cls: judge)
trainers = []

def build(*arguments):
    trainers.append(BASELINES[name].trainer(*arguments))
    return trainers[-1]

for name, port, words in {runs!r}:
    os.environ["MASTER_PORT"] = port
    print("SAID", name, "folder", run(name, folder_of(name), build, words))
    networks = dict(generator=trainers[-1].generator, average=trainers[-1].average, **trainers[-1].discriminators)
    for part, network in networks.items():
        print("SAID", name, part, fingerprint(dict(network.named_parameters())))
"""


FOLDERS = [str(folder) for folder in (Path(__file__).parent, tiny.ROOT / "tests", tiny.ROOT)]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def together(program: str) -> tuple[list[int], list[tuple[str, str]]]:
    """Exit statuses, and what is printed to stdout and stderr, of two ranks that run a program."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def test_two_processes_stay_equal(tmp_path: Path) -> None:
    """In all parameters. The running statistics of a BatchNorm are those of each process's own pictures."""
    runs = []
    for name in BASELINES:
        cfg = tiny.config(tmp_path / f"{name}.yml", name, steps=2, evaluated=4)
        words = ["--data", tiny.birds(), "--out", tmp_path / name, "--cfg", cfg, "--vlm", tiny.matcher()]
        runs.append((name, free_port(), [str(word) for word in (*words, "--device", "cpu")]))
    program = RANK.format(folders=FOLDERS, judge=str(tiny.judge()), runs=runs)
    statuses, outputs = together(program)
    assert statuses == [0, 0], outputs
    said = [[line for line in out.splitlines() if line.startswith("SAID ")] for out, _ in outputs]
    assert said[0] == said[1]
    expected = []
    for name, kind in BASELINES.items():
        (folder,) = (tmp_path / name).iterdir()
        saved = checkpoint(folder)
        assert saved["step"] == 2
        # One log: rank 1 writes nothing.
        assert [row["step"] for row in Log.read(folder / "log.jsonl")] == [0, 1]
        expected.append(f"SAID {name} folder {folder}")
        for part in ("generator", "average", *kind.judges):
            weights = {k: v for k, v in saved["trainer"][part].items() if not k.endswith(STATISTICS)}
            expected.append(f"SAID {name} {part} {fingerprint(weights)}")
    assert said[0] == expected
    # And one table each, whose references rank 1 does not compute.
    assert [out.count("| after |") for out, _ in outputs] == [2, 0]
    assert [out.count("EXAMINED") for out, _ in outputs] == [2, 0]
    assert [out.count("2 processes of 4 pictures each: 8 a step") for out, _ in outputs] == [2, 0]


TERMINATED = """
import os, sys
sys.path[:0] = {folders!r}
from test_runs import Judge, Seen, run_module, folder_of, terminate_at

judge = Judge.load({judge!r})
Judge.load = classmethod(lambda cls: judge)
os.environ["MASTER_PORT"] = {port!r}
seen = Seen(before_step=terminate_at(2 if os.environ["RANK"] == "1" else -1))
run_module.run("dfgan", folder_of("dfgan"), seen.build, {words!r})
"""


def test_a_signal_to_one_of_two_processes_stops_both_with_a_checkpoint(tmp_path: Path) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml", steps=6, evaluated=4, checkpoint_every=100)
    words = ["--data", tiny.birds(), "--out", tmp_path / "runs", "--cfg", cfg, "--vlm", tiny.matcher()]
    words = [str(word) for word in (*words, "--device", "cpu")]
    program = TERMINATED.format(folders=FOLDERS, judge=str(tiny.judge()), port=free_port(), words=words)
    statuses, outputs = together(program)
    assert statuses == [128 + signal.SIGTERM] * 2, outputs
    folder = tmp_path / "runs" / "00000-dfgan-vlm"
    assert checkpoint(folder)["step"] == 3
    assert [out.count(f"stopped after step 3; go on with --resume {folder}") for out, _ in outputs] == [1, 0]


SCRIPTS = """
import runpy, sys
path = sys.path[1:]
for script, *words in {scripts!r}:
    # What python does for a script. Of the modules, only what takes long to import stays.
    sys.argv, sys.path[:] = [script, *words], [script.rpartition("/")[0], *path]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("baselines", "vlm_plugin")]:
        del sys.modules[name]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print(end)
"""


def test_the_scripts_run_from_any_folder(tmp_path: Path) -> None:
    folder = tiny.ROOT / "baselines"
    scripts = [[str(folder / name / "main.py"), "--data", "nowhere"] for name in BASELINES] + [
        [str(folder / "export.py")],
        [str(folder / "export.py"), "nowhere", "start.pt"],
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", SCRIPTS.format(scripts=scripts)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        *(f"{name}: nowhere: expected a data folder, found no such folder" for name in BASELINES),
        "usage: python baselines/export.py RUN FILE",
        "export: nowhere: expected a run's folder with options.json",
    ], done.stderr
    assert not list(tmp_path.iterdir())


BARE = """
import runpy, sys

class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
sys.path[0] = {script!r}.rpartition("/")[0]
sys.argv = [{script!r}, "--help"]
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("script", "name", "missing"),
    [
        ("attngan/main.py", "attngan", "torch"),
        ("dfgan/main.py", "dfgan", "torch"),
        ("dfgan/main.py", "dfgan", "yaml"),
        ("dfgan/main.py", "dfgan", "torchmetrics"),
        ("dfgan/main.py", "dfgan", "jinja2"),
        ("export.py", "export", "torch"),
    ],
)
def test_without_its_packages_a_script_says_what_to_install(
    script: str, name: str, missing: str, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = BARE.format(missing=missing, script=str(tiny.ROOT / "baselines" / script))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    advice = 'in the repository: pip install ".[train]"'
    assert done.stderr == f"{name}: No module named '{missing}' in the environment {sys.prefix}: {advice}\n"


@pytest.mark.parametrize("kind", ["matcher", "baseline", "text", "folder"])
def test_an_export_replaces_nothing_of_another_kind(kind: str, name: str, finished: Finished, tmp_path: Path) -> None:
    file = tmp_path / "keep.pt"
    if kind == "matcher":
        shutil.copy(tiny.matcher(), file)
    elif kind == "baseline":
        (other,) = set(BASELINES) - {name}
        shutil.copy(folder_of(other) / "assets" / "birds.pt", file)
    elif kind == "text":
        file.write_text("my notes", encoding="utf-8")
    else:
        file.mkdir()
    before = None if kind == "folder" else file.read_bytes()
    what = f"expected a new file, or a packaged generator of {BASELINES[name].trainer.name}, got something else"
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}: {what}')}"):
        export(finished.folder, file)
    assert kind == "folder" or file.read_bytes() == before
    # What it wrote itself, it writes again.
    export(finished.folder, tmp_path / "start.pt")
    export(finished.folder, tmp_path / "start.pt")


@pytest.mark.parametrize("exported", [True, False])
def test_a_run_begins_where_another_ended(
    name: str, exported: bool, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its averaged generator and its discriminators; exported, these are float16 and everything else is gone."""
    source = finished.folder
    if exported:
        source = tmp_path / "start.pt"
        export(finished.folder, source)
        content = torch.load(source, weights_only=True)
        assert set(content["weights"]) == {"generator", *BASELINES[name].judges}
        options = options_of(finished.folder)
        kept = {key: options[key] for key in ("seed", "settings", "matcher", "text_fingerprint")}
        taught = sorted(marks(VLM.load(tiny.matcher())))
        assert content["notes"] == {**kept, "steps": 4, "with_vlm": True, "trained_with": taught}
    cfg = tiny.config(tmp_path / "tiny.yml", name)
    folder = plain(tmp_path / "runs", cfg, "--generator", source, "--seed", 9, "--steps", 0, name=name)
    assert "does not say which text encoder" not in capsys.readouterr().out
    assert options_of(folder)["start"] == str(source)
    found, ended = checkpoint(folder)["trainer"], checkpoint(finished.folder)["trainer"]
    sources = {"generator": "average", "average": "average", **{judge: judge for judge in BASELINES[name].judges}}
    assert set(found) == {*sources, "generator_adam", "discriminator_adam"}
    for network, origin in sources.items():
        for key, value in ended[origin].items():
            expected = value.half().float() if exported and value.is_floating_point() else value
            assert torch.equal(found[network][key], expected), f"{network}.{key}"
    # A bare generator does not say whose captions it has learned to read.
    state = {key: value.float() for key, value in ended["average"].items()}
    torch.save({"model": {"netG": state}} if name == "dfgan" else state, tmp_path / "bare.pth")
    cfg = tiny.config(tmp_path / "tiny.yml", name, normalise_text=False)
    plain(tmp_path / "runs", cfg, "--generator", tmp_path / "bare.pth", "--steps", 0, name=name)
    assert (
        f"bare.pth does not say which text encoder it was trained with: it must have been that of {tiny.matcher()}"
        in (capsys.readouterr().out)
    )
    assert not any(found[adam]["state"] for adam in ("generator_adam", "discriminator_adam"))
    # The very matcher that trained the start: a plain run on top makes it no stranger.
    circular = {name for name, column in results_of(folder)["columns"].items() if column["circular"]}
    assert circular == {"r_precision_training", "vlms_training"}
    assert find_networks(folder)[1].trained_with == marks(VLM.load(tiny.matcher()))


def test_notes_of_an_earlier_release_name_the_last_matcher(finished: Finished, alone: Finished, tmp_path: Path) -> None:
    for source, taught in ((finished.folder, True), (alone.folder, alone.folder.name == "00000-attngan")):
        folder = shutil.copytree(source, tmp_path / source.name)
        options = options_of(folder)
        assert options.pop("trained_with") == (sorted(marks(VLM.load(tiny.matcher()))) if taught else [])
        (folder / "options.json").write_text(json.dumps(options))
        assert find_networks(folder)[1].trained_with == ({options["matcher"]} if taught else set())


def test_networks_from_before_torch_counted_batches(name: str, finished: Finished, tmp_path: Path) -> None:
    """As torch.load gives them, and a file that still has its versions."""
    trainer, saved = find_networks(finished.folder)
    for network, state in saved.weights.items():
        assert network != "generator" or name != "attngan" or any("num_batches" in key for key in state)
    state = OrderedDict((k, v) for k, v in saved.weights["generator"].items() if not k.endswith("num_batches_tracked"))
    state._metadata = trainer.load_generator(saved, "run").state_dict()._metadata
    torch.save({"netG": state} if name == "dfgan" else state, tmp_path / "old.pth")
    trainer, old = find_networks(tmp_path / "old.pth")
    with_all, without = trainer.load_generator(saved, "run"), trainer.load_generator(old, "old.pth")
    for key, value in with_all.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, without.state_dict()[key]), key
    broken = {key: value for key, value in saved.weights["generator"].items() if not key.endswith("running_mean")}
    if len(broken) < len(saved.weights["generator"]):
        with pytest.raises(ValueError, match="running_mean is missing"):
            load_weights(with_all, broken, "old.pth")


def test_without_arguments_it_starts_from_the_packaged_generator(
    name: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main job in small: its own birds, the packaged matcher, and a start exported from another run."""
    baseline, assets = packaged(tmp_path, name, steps=1), tmp_path / "packaged"
    assets.mkdir()
    shutil.copy(tiny.matcher(), assets / "birds.vlm.pt")
    export(finished.folder, baseline / "assets" / "birds.pt")
    for module in ("files", "matcher.choose", "gans.config"):
        monkeypatch.setattr(f"vlm_plugin.{module}.ASSETS", assets)
    monkeypatch.setattr(
        "vlm_plugin.gans.begin.BIRDS", {"train": 12, "validation": 0, "test": 10, "size": 32, "seed": 1}
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "birds.vlm.pt").write_bytes(b"another file of this name")
    trainers = []

    def build(*arguments: object) -> Trainer:
        trainers.append(BASELINES[name].trainer(*arguments))
        return trainers[0]

    folder = run_module.run(name, baseline, build, ["--vlm", "--device", "cpu"])
    assert folder == Path(f"runs/00000-{name}-vlm")
    options = options_of(folder)
    assert options["start"] == str(baseline / "assets" / "birds.pt")
    assert (options["vlm"], options["data"]) == (PACKAGED, None)
    assert len(open_split(tmp_path / BIRDS_FOLDER, "train")) == 12
    # "before" is what the other run ended with, as float16 keeps it.
    average = checkpoint(finished.folder)["trainer"]["average"]
    trainers[0].average.load_state_dict(
        {key: value.half().float() if value.is_floating_point() else value for key, value in average.items()}
    )
    matcher = VLM.load(tiny.matcher())
    captions = [record.captions[i % 10] for i, record in enumerate(open_split(tmp_path / BIRDS_FOLDER, "test"))]
    expected = Painter(trainers[0].sample, matcher, trainers[0].noise_dim).some(captions, range(10))
    before = torch.load(folder / "before.pt", weights_only=True)["pictures"]
    # A level of 256 at most, where rounding falls to the other side.
    assert (before.int() - to_bytes(expected).int()).abs().max() <= 1


# ---------------------------------------------------------------------------------------------------------------------
# How little a baseline has to know, and how little two of them repeat
# ---------------------------------------------------------------------------------------------------------------------


def code(path: Path, *, imports: bool = True) -> Iterator[tuple[int, str]]:
    """Numbers and stripped text of the lines with code: no blank lines, comments and docstrings."""
    source = path.read_text(encoding="utf-8")
    silent: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if text or (not imports and isinstance(node, (ast.Import, ast.ImportFrom))):
            silent |= set(range(node.lineno, node.end_lineno + 1))
    lines = source.splitlines()
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                number, column = token.start
                lines[number - 1] = lines[number - 1][:column]
    for number, line in enumerate(lines, start=1):
        if number not in silent and line.strip():
            yield number, line.strip()


def mentions_vlm(line: str) -> bool:
    """The loss or the matcher, and not the package's name alone."""
    return "vlm" in line.lower().replace("vlm_plugin", "")


@both
def test_a_handful_of_lines_mention_vlm(name: str) -> None:
    files = sorted(folder_of(name).glob("*.py"))
    found = [f"{path.name}:{number}: {line}" for path in files for number, line in code(path) if mentions_vlm(line)]
    print(f"{len(found)} lines mention vlm:", *found, sep="\n")
    assert 4 <= len(found) <= 10


def test_what_both_need_is_written_once() -> None:
    """No six equal lines in a row, imports aside."""

    def runs(path: Path) -> set[tuple[str, ...]]:
        lines = [line for _, line in code(path, imports=False)]
        return {tuple(lines[i : i + 6]) for i in range(len(lines) - 5)}

    ours, theirs = (sorted(folder_of(name).glob("*.py")) for name in BASELINES)
    assert {"trainer.py", "networks.py", "losses.py", "main.py"} <= {path.name for path in ours}
    for path in ours:
        for other in theirs:
            assert not runs(path) & runs(other), f"{path.parent.name}/{path.name}, {other.parent.name}/{other.name}"
