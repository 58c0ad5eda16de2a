"""DF-GAN's runs, plain and with the dual loss: what they share, how they survive a kill, what they refuse and leave."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tokenize
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from easydict import EasyDict
from PIL import Image

from baselines.dfgan.export import export
from baselines.dfgan.trainer import DFGAN
from vlm_plugin import TERMS, VLM, DualVLMLoss
from vlm_plugin.augment import RandomView
from vlm_plugin.data import CaptionedImages, collate, open_split
from vlm_plugin.model import fingerprint
from vlm_plugin.tools import gan, training
from vlm_plugin.tools.judge import Judge

DFGAN_FOLDER = tiny.ROOT / "baselines" / "dfgan"
CPU = torch.device("cpu")


def use_tiny_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge.load(tiny.judge())
    monkeypatch.setattr(Judge, "load", classmethod(lambda cls: judge))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge of a few channels, and pictures that are nothing but files: they take half of a tiny run's time."""
    use_tiny_judge(monkeypatch)
    for name in ("sample_sheet", "loss_curves", "attention_sheet"):
        monkeypatch.setattr(gan.pictures, name, lambda path, *_: path.write_bytes(b""))


class Seen:
    """Builds trainers that keep what they were given, and what they gave."""

    def __init__(self, before_step: Callable[[int], None] = lambda step: None) -> None:
        self.batches: list[tuple[list[str], list[str]]] = []
        self.values: list[dict[str, float]] = []
        seen = self

        class Watched(DFGAN):
            def step(self, batch, text, step, vlm_loss):
                before_step(step)
                values = super().step(batch, text, step, vlm_loss)
                seen.batches.append((batch.keys, batch.captions))
                seen.values.append({name: float(value) for name, value in values.items()})
                return values

        self.build = Watched


def run(*words: object, build: Callable = DFGAN) -> Path:
    return gan.run("dfgan", DFGAN_FOLDER, build, ["--device", "cpu", *(str(word) for word in words)])


def plain(out: Path, cfg: Path, *words: object, build: Callable = DFGAN) -> Path:
    return run(
        "--data", tiny.birds(), "--out", out, "--cfg", cfg, "--text-encoder", tiny.matcher(), *words, build=build
    )


def with_vlm(out: Path, cfg: Path, *words: object, build: Callable = DFGAN) -> Path:
    return run("--data", tiny.birds(), "--out", out, "--cfg", cfg, "--vlm", tiny.matcher(), *words, build=build)


def checkpoint(run_folder: Path) -> dict:
    return torch.load(run_folder / "checkpoint.pt", weights_only=True)


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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Seen, str]:
    """One whole run with the dual loss, what its trainer saw, and its name."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_judge(patch)
        seen = Seen()
        folder = with_vlm(root / "runs", tiny.config(root / "tiny.yml"), build=seen.build)
    return folder, seen, folder.name


def test_everything_is_written_and_opens(finished: tuple[Path, Seen, str]) -> None:
    folder, _, name = finished
    assert name == "00000-dfgan-vlm"
    assert {path.name for path in folder.iterdir()} == {
        "options.json", "log.jsonl", "checkpoint.pt", "before.pt", "results.md", "results.json", "samples.png",
        "samples-000003.png", "curves.png", "attention.png",
    }  # fmt: skip
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 100, path
    table = (folder / "results.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:5]] == ["real", "before", "after"]
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["circular"]
    assert results["captions"] == 10
    assert results["matcher"] == VLM.load(tiny.matcher()).fingerprint
    assert set(results["rows"]["after"]) == set(results["columns"])


def test_every_term_is_logged_beside_its_floor(finished: tuple[Path, Seen, str]) -> None:
    folder, seen, _ = finished
    rows = training.Log.read(folder / "log.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    names = {"discriminator", "generator", "penalty", "lambda_vvm", "lambda_vlm", *TERMS}
    for row, values in zip(rows, seen.values, strict=True):
        assert set(row) == {"step", *names, *(f"floor_{term}" for term in TERMS)}
        assert (row["lambda_vvm"], row["lambda_vlm"]) == (0.5, 0.5)
        assert all(row[name] == value for name, value in values.items())
        assert all(abs(value) < 1e6 for value in row.values())


def test_options_say_what_was_run(finished: tuple[Path, Seen, str]) -> None:
    options = json.loads((finished[0] / "options.json").read_text(encoding="utf-8"))
    assert options["vlm"] == str(tiny.matcher())
    assert options["text_encoder"] is None
    assert options["data"] == str(tiny.birds())
    assert options["start"] is None
    assert options["steps"] == 4
    assert options["settings"]["vlm"]["lambda_vlm"] == 0.5
    assert options["matcher"] == VLM.load(tiny.matcher()).fingerprint
    assert options["versions"]["torch"] == torch.__version__


def test_before_is_the_untrained_generator(finished: tuple[Path, Seen, str]) -> None:
    before = torch.load(finished[0] / "before.pt", weights_only=True)
    assert before["pictures"].shape == (10, 3, 32, 32)
    assert before["shown"].shape == (8, 4, 3, 32, 32)
    assert before["pictures"].abs().max() <= 1


def test_an_interval_that_is_no_multiple_of_the_checkpoints_is_kept(finished: tuple[Path, Seen, str]) -> None:
    assert (finished[0] / "samples-000003.png").is_file()  # checkpoints every 2, samples every 3


# ---------------------------------------------------------------------------------------------------------------------
# With and without
# ---------------------------------------------------------------------------------------------------------------------


def test_both_see_the_same_and_start_the_same(finished: tuple[Path, Seen, str], tmp_path: Path) -> None:
    _, dual, _ = finished
    alone = Seen()
    folder = plain(tmp_path / "runs", tiny.config(tmp_path / "tiny.yml"), build=alone.build)
    assert folder.name == "00000-dfgan"
    assert alone.batches == dual.batches
    # The generator's first update comes after all values of step 0 are known.
    for name in ("discriminator", "penalty", "generator"):
        assert alone.values[0][name] == dual.values[0][name]
        assert alone.values[2][name] != dual.values[2][name]
    assert set(alone.values[0]) == {"discriminator", "penalty", "generator"}
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert not results["circular"]
    row = training.Log.read(folder / "log.jsonl")[0]
    assert set(row) == {"step", "discriminator", "penalty", "generator"}
    a, b = (torch.load(f / "before.pt", weights_only=True) for f in (folder, finished[0]))
    assert_equal(a, b)


def test_a_loss_of_weight_zero_changes_nothing(tmp_path: Path) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml", vlm__lambda_vlm=0.0, vlm__lambda_vvm=0.0)
    a = plain(tmp_path / "a", cfg, "--steps", 3)
    b = with_vlm(tmp_path / "b", cfg, "--steps", 3)
    assert checkpoint(a)["step"] == 3
    assert_equal(checkpoint(a), checkpoint(b))


def test_seed_batch_and_epochs_are_heard(tmp_path: Path) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml")
    first, second = Seen(), Seen()
    a = plain(tmp_path / "runs", cfg, "--batch", 20, "--epochs", 1, "--seed", 1, build=first.build)
    b = plain(tmp_path / "runs", cfg, "--batch", 20, "--steps", 1, "--seed", 2, build=second.build)
    assert (a.name, b.name) == ("00000-dfgan", "00001-dfgan")
    assert checkpoint(a)["step"] == 2  # 40 pictures
    assert len(first.batches[0][0]) == 20
    assert len({key for keys, _ in first.batches for key in keys}) == 40
    assert first.batches[0] != second.batches[0]
    assert first.values[0] != second.values[0]


def test_zero_steps_score_the_start(tmp_path: Path) -> None:
    folder = plain(tmp_path / "runs", tiny.config(tmp_path / "tiny.yml"), "--steps", 0)
    rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
    # "before" was kept as float16.
    assert rows["after"] == pytest.approx(rows["before"], rel=0.02, abs=0.01)
    assert not (folder / "curves.png").exists()


def test_halves_ramp_up_each_from_its_own_start() -> None:
    settings = EasyDict(lambda_vvm=2.0, lambda_vlm=1.0, vvm_start=4, vvm_warmup=4, vlm_start=0, vlm_warmup=2)
    found = [gan.weights_at(step, settings) for step in range(9)]
    assert [vvm for vvm, _ in found] == [0, 0, 0, 0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert [vlm for _, vlm in found] == [0.5, 1, 1, 1, 1, 1, 1, 1, 1]
    settings.vvm_warmup = settings.vlm_warmup = 0
    assert [gan.weights_at(step, settings) for step in (0, 3, 4)] == [(0, 1), (0, 1), (2, 1)]


def test_only_the_terms_asked_for(tmp_path: Path) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml", vlm__terms=["vlm_global"], vlm__augment=False, steps=1)
    folder = with_vlm(tmp_path / "runs", cfg)
    (row,) = training.Log.read(folder / "log.jsonl")
    assert {name for name in row if "vlm_" in name} == {"vlm_global", "floor_vlm_global"}
    assert not any("vvm_" in name for name in row)


# ---------------------------------------------------------------------------------------------------------------------
# Kills
# ---------------------------------------------------------------------------------------------------------------------


def fail_at(when: int) -> Callable[[int], None]:
    def before_step(step: int) -> None:
        if step == when:
            raise RuntimeError("the power went")

    return before_step


def terminate_at(when: int) -> Callable[[int], None]:
    return lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == when else None


@pytest.mark.parametrize("dual", [True, False])
def test_terminated_and_resumed_is_the_same_run(
    dual: bool, finished: tuple[Path, Seen, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = with_vlm if dual else plain
    cfg = tiny.config(tmp_path / "tiny.yml")
    whole = finished[0] if dual else plain(tmp_path / "whole", cfg)
    # Step 2 is the third; its number is no multiple of the checkpoints'.
    with pytest.raises(SystemExit) as stop:
        start(tmp_path / "runs", cfg, build=Seen(terminate_at(2)).build)
    assert stop.value.code == 128 + signal.SIGTERM
    folder = tmp_path / "runs" / f"00000-dfgan{'-vlm' if dual else ''}"
    assert checkpoint(folder)["step"] == 3
    assert f"stopped after step 3; go on with --resume {folder}" in capsys.readouterr().out
    assert not (folder / "results.md").exists()
    torch.manual_seed(123)
    assert run("--resume", folder) == folder
    assert "at step 3 of 4" in capsys.readouterr().out
    assert_same_run(folder, whole)


def test_a_run_that_broke_goes_on_from_its_last_checkpoint(finished: tuple[Path, Seen, str], tmp_path: Path) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="the power went"):
        with_vlm(tmp_path / "runs", cfg, build=Seen(fail_at(3)).build)
    assert signal.getsignal(signal.SIGTERM) == before
    folder = tmp_path / "runs" / "00000-dfgan-vlm"
    assert checkpoint(folder)["step"] == 2
    log = folder / "log.jsonl"
    assert [row["step"] for row in training.Log.read(log)] == [0, 1, 2]
    with log.open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "disc')
    seen = Seen()
    run("--resume", folder, build=seen.build)
    assert seen.batches == finished[1].batches[2:]
    assert_same_run(folder, finished[0])


def assert_same_run(folder: Path, whole: Path) -> None:
    assert_equal(checkpoint(folder), checkpoint(whole))
    assert training.Log.read(folder / "log.jsonl") == training.Log.read(whole / "log.jsonl")
    rows = [json.loads((f / "results.json").read_text(encoding="utf-8"))["rows"] for f in (folder, whole)]
    assert rows[0] == rows[1]
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    seen = Seen(fail_at(0))
    with pytest.raises(RuntimeError):
        plain(tmp_path / "runs", tiny.config(tmp_path / "tiny.yml"), build=seen.build)
    folder = tmp_path / "runs" / "00000-dfgan"
    assert checkpoint(folder)["step"] == 0
    run("--resume", folder, "--steps", 1)
    assert checkpoint(folder)["step"] == 1


def test_a_finished_run_can_be_lengthened(tmp_path: Path) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml")
    folder = plain(tmp_path / "short", cfg, "--steps", 2)
    run("--resume", folder, "--steps", 4)
    whole = plain(tmp_path / "long", cfg)
    assert_equal(checkpoint(folder), checkpoint(whole))
    assert json.loads((folder / "options.json").read_text(encoding="utf-8"))["steps"] == 4


def test_a_run_resumes_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml", steps=2)
    monkeypatch.chdir(tiny.matcher().parent)
    with pytest.raises(RuntimeError):
        run(
            "--data", "birds", "--out", tmp_path / "runs", "--cfg", cfg, "--vlm", "tiny.vlm.pt",
            build=Seen(fail_at(1)).build,
        )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    run("--resume", "runs/00000-dfgan-vlm")
    assert checkpoint(tmp_path / "runs" / "00000-dfgan-vlm")["step"] == 2


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------


def refused(*words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        run(*words)
    message = str(stop.value.code)
    assert "\n" not in message
    assert message.startswith("dfgan: ")
    return message


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("nff: 3", "unknown setting nff; did you mean nf?", ""),
        ("lamda_vlm: 3", "unknown setting lamda_vlm; did you mean ", ""),
        ("vlm: {lamda_vlm: 3}", "unknown setting vlm.lamda_vlm; did you mean vlm.lambda_vlm?", ""),
        ("vlm: 3", "expected a mapping under vlm, got 3", ""),
        ("generator_lr: 1e-4", "generator_lr: expected a value like ", ", got '1e-4' (in YAML 1.0e-4 is a number"),
        ("steps: many", "steps: expected a value like ", ", got 'many'"),
        ("nf: true", "nf: expected a value like ", ", got True"),
        ("adam_betas: [0.5]", "adam_betas: expected a value like ", ", got [0.5]"),
        ("vlm: {augment: 1}", "vlm.augment: expected a value like ", ", got 1"),
        ("image_size: 48", "image_size must be a power of two", ""),
        ("precision: half", "precision: expected auto, float32 or bfloat16, got 'half'", ""),
        ("batch: 1", "batch: expected at least 2, got 1", ""),
        ("log_every: 0", "log_every: expected at least 1, got 0", ""),
        ("evaluated: 1", "evaluated: expected at least 2, got 1", ""),
        ("vlm: {terms: [vlm_loud]}", "terms: expected names of", ""),
        ("vlm: {terms: []}", "terms: expected at least one of", ""),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, text: str, start: str, end: str) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml")
    settings, changes = yaml.safe_load(cfg.read_text(encoding="utf-8")), yaml.safe_load(text)
    part = changes.pop("vlm", {})
    if isinstance(part, dict):
        settings["vlm"] |= part
    else:
        settings["vlm"] = part
    cfg.write_text(yaml.safe_dump(settings | changes), encoding="utf-8")
    found = refused("--cfg", cfg, "--data", tiny.birds(), "--vlm", tiny.matcher(), "--out", tmp_path / "runs")
    assert start in found
    assert end in found
    assert not (tmp_path / "runs").exists()


def test_a_missing_setting_and_files_that_are_no_settings(tmp_path: Path) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml")
    settings = yaml.safe_load(cfg.read_text(encoding="utf-8"))
    del settings["vlm"]["vlm_start"]
    cfg.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert f"{cfg}: missing setting vlm.vlm_start" in refused("--cfg", cfg)
    assert f"--cfg {tmp_path}: no such file" in refused("--cfg", tmp_path)
    cfg.write_text("just words", encoding="utf-8")
    assert f"{cfg}: expected a mapping of settings, got 'just words'" in refused("--cfg", cfg)
    cfg.write_text("a: [1", encoding="utf-8")
    assert f"{cfg}: not readable as YAML" in refused("--cfg", cfg)


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
    assert "--device tpu: expected cpu, cuda or cuda:NUMBER" in refused(*data, *cfg, *out, "--device", "tpu")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert str(blocked) in refused(*data, *cfg, "--out", blocked, "--vlm", tiny.matcher())
    tiny.build_matcher(scorer=False).save(tmp_path / "bare.pt")
    assert "need a trained scorer" in refused(*data, *cfg, *out, "--vlm", tmp_path / "bare.pt")
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


def test_resume_wants_a_run_and_nothing_else(finished: tuple[Path, Seen, str], tmp_path: Path) -> None:
    folder, *_ = finished
    assert f"--resume {tmp_path}: expected a run's folder with options.json" in refused("--resume", tmp_path)
    assert "nowhere: expected a run's folder" in refused("--resume", tmp_path / "nowhere")
    (tmp_path / "options.json").write_text("{}", encoding="utf-8")
    assert "expected a run's folder with checkpoint.pt" in refused("--resume", tmp_path)
    message = refused("--resume", folder, "--vlm", "--seed", 0, "--batch", 4, "--data", ".", "--text-encoder", "x")
    assert "options.json: leave out --vlm, --data, --batch, --seed, --text-encoder" in message


def test_resume_wants_the_matcher_of_the_start(tmp_path: Path) -> None:
    path = tmp_path / "mine.vlm.pt"
    tiny.build_matcher(seed=1).save(path)
    cfg = tiny.config(tmp_path / "tiny.yml")
    folder = run("--data", tiny.birds(), "--out", tmp_path / "runs", "--cfg", cfg, "--vlm", path, "--steps", 1)
    tiny.build_matcher(seed=2).save(path)
    message = refused("--resume", folder, "--steps", 2)
    assert f"started with the matcher {tiny.build_matcher(seed=1).fingerprint}, but {path} is" in message


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

    def options(*words: str) -> dict:
        return gan._options(gan.parser("dfgan").parse_args(words), folder)

    folder = tmp_path / "dfgan"
    (folder / "cfg").mkdir(parents=True)
    (folder / "assets").mkdir()
    (folder / "assets" / "birds.pt").write_bytes(b"")
    tiny.config(folder / "cfg" / "synthetic.yml")
    monkeypatch.chdir(tmp_path)
    start = str(folder / "assets" / "birds.pt")
    assert options()["start"] == options("--vlm")["start"] == start
    for words in (("--from-scratch",), ("--data", "x"), ("--cfg", f"{folder}/cfg/synthetic.yml"), ("--vlm", "x.pt")):
        assert options(*words)["start"] is None
    (tmp_path / gan.PACKAGED_MATCHER).write_bytes(b"")
    assert options("--vlm")["start"] == start
    assert options("--vlm", gan.PACKAGED_MATCHER)["start"] is None
    assert options("--vlm", gan.PACKAGED_MATCHER)["vlm"] == str(tmp_path / gan.PACKAGED_MATCHER)


def test_shipped_settings_are_complete() -> None:
    files = sorted((DFGAN_FOLDER / "cfg").glob("*.yml"))
    assert len(files) >= 3
    for file in files:
        gan.read_config(file, DFGAN_FOLDER / "cfg" / "synthetic.yml")


# ---------------------------------------------------------------------------------------------------------------------
# Two processes, the script, a start, the GPU
# ---------------------------------------------------------------------------------------------------------------------

RANK = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import torch
from baselines.dfgan.trainer import DFGAN
from vlm_plugin.model import fingerprint
from vlm_plugin.tools import gan
from vlm_plugin.tools.judge import Judge

judge = Judge.load({judge!r})
Judge.load = classmethod(lambda cls: judge)
trainers = []

def build(*arguments):
    trainers.append(DFGAN(*arguments))
    return trainers[0]

folder = gan.run("dfgan", Path({folder!r}), build, {words!r})
print("weights", *(fingerprint(getattr(trainers[0], n)) for n in ("generator", "discriminator", "head", "average")))
print("folder", folder)
"""


def test_two_processes_stay_equal(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cfg = tiny.config(tmp_path / "tiny.yml", steps=2, evaluated=4)
    words = ["--data", tiny.birds(), "--out", tmp_path / "runs", "--cfg", cfg, "--vlm", tiny.matcher()]
    code = RANK.format(
        root=str(tiny.ROOT), tests=str(tiny.ROOT / "tests"), judge=str(tiny.judge()), folder=str(DFGAN_FOLDER),
        words=[str(word) for word in (*words, "--device", "cpu")],
    )  # fmt: skip
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **together, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    said = [
        dict(line.split(" ", 1) for line in out.splitlines() if line.startswith(("weights ", "folder ")))
        for out, _ in outputs
    ]
    assert said[0] == said[1]
    (folder,) = (tmp_path / "runs").iterdir()
    assert said[0]["folder"] == str(folder)
    saved = checkpoint(folder)
    assert saved["step"] == 2
    names = ("generator", "discriminator", "head", "average")
    assert said[0]["weights"].split() == [fingerprint(saved["trainer"][name]) for name in names]
    # One log, one table: rank 1 writes and prints nothing.
    assert [row["step"] for row in training.Log.read(folder / "log.jsonl")] == [0, 1]
    assert "| after |" in outputs[0][0]
    assert "| after |" not in outputs[1][0]


def test_the_script_runs_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, DFGAN_FOLDER / "main.py", "--device", "cpu", "--data", "nowhere"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == f"dfgan: {tmp_path / 'nowhere'}: expected a data folder, found no such folder"
    assert not list(tmp_path.iterdir())


def trainer(device: torch.device = CPU, dtype: torch.dtype = torch.float32, nf: int = 2, size: int = 32) -> DFGAN:
    settings = EasyDict(yaml.safe_load((DFGAN_FOLDER / "cfg" / "synthetic.yml").read_text(encoding="utf-8")))
    settings.update(nf=nf, image_size=size, z_dim=4, ema=0.9)
    return DFGAN(settings, tiny.DIM, device, dtype)


def test_a_start_gives_the_networks_back(tmp_path: Path) -> None:
    torch.manual_seed(3)
    old, new = trainer(), trainer()
    with torch.no_grad():
        for parameter in old.average.parameters():
            parameter.add_(0.1)
    path = tmp_path / "start.pt"
    old.save_start(path, {"steps": 5})
    new.load_start(path)
    for name, source in (("generator", old.average), ("average", old.average), ("discriminator", old.discriminator)):
        for key, value in getattr(new, name).state_dict().items():
            assert torch.equal(value, source.state_dict()[key].half().float()), f"{name}.{key}"
    with pytest.raises(ValueError, match=r"expected a vlm_plugin\.DFGAN file"):
        new.load_start(tiny.matcher())


def test_without_arguments_it_starts_from_the_packaged_generator(
    finished: tuple[Path, Seen, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main job in small: its own birds, the packaged matcher, and a start exported from another run."""
    baseline, assets = tmp_path / "dfgan", tmp_path / "packaged"
    for folder in (baseline / "cfg", baseline / "assets", assets):
        folder.mkdir(parents=True)
    tiny.config(baseline / "cfg" / "synthetic.yml", steps=1)
    shutil.copy(tiny.matcher(), assets / gan.PACKAGED_MATCHER)
    export(finished[0], baseline / "assets" / "birds.pt")
    monkeypatch.setattr("vlm_plugin.model.ASSETS", assets)
    monkeypatch.setattr(gan, "BIRDS", {"train": 12, "validation": 0, "test": 10, "size": 32, "seed": 1})
    monkeypatch.chdir(tmp_path)
    (tmp_path / gan.PACKAGED_MATCHER).write_bytes(b"another file of this name")
    trainers = []

    def build(*arguments: object) -> DFGAN:
        trainers.append(DFGAN(*arguments))
        return trainers[0]

    folder = gan.run("dfgan", baseline, build, ["--vlm", "--device", "cpu"])
    assert folder == Path("runs/00000-dfgan-vlm")
    options = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    assert options["start"] == str(baseline / "assets" / "birds.pt")
    assert (options["vlm"], options["data"]) == (gan.PACKAGED, None)
    assert len(open_split(tmp_path / "data" / "birds", "train")) == 12
    # "before" is what the other run ended with, as float16 keeps it.
    average = checkpoint(finished[0])["trainer"]["average"]
    trainers[0].average.load_state_dict({name: value.half().float() for name, value in average.items()})
    matcher = VLM.load(tiny.matcher())
    captions = [record.captions[i % 10] for i, record in enumerate(open_split(tmp_path / "data" / "birds", "test"))]
    noise = training.noise((10, 4), CPU, 1, 0)
    with torch.no_grad():
        expected = trainers[0].sample(noise, matcher.encode_text(captions))
    before = torch.load(folder / "before.pt", weights_only=True)["pictures"].float()
    torch.testing.assert_close(before, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("device", "size", "nf", "count"),
    [("cpu", 32, 2, 4), pytest.param("cuda", 256, 32, 8, marks=pytest.mark.cuda)],
)
def test_a_step_in_bfloat16(device: str, size: int, nf: int, count: int) -> None:
    place = torch.device(device)
    matcher = VLM.load(tiny.matcher(), map_location=place)
    vlm_loss = DualVLMLoss(matcher, lambda_vvm=0.1, lambda_vlm=0.1, augment=RandomView())
    torch.manual_seed(0)
    model = trainer(place, torch.bfloat16, nf, size)
    images = CaptionedImages(open_split(tiny.birds(), "train"), size, train=True)
    batch = collate([images[5 * i] for i in range(count)])
    batch = batch._replace(images=batch.images.to(place, memory_format=torch.channels_last))
    text = matcher.encode_text(batch.captions)
    before = {name: value.clone() for name, value in model.generator.state_dict().items()}
    for step in range(2):
        values = model.step(batch, text, step, vlm_loss)
        assert set(values) == {"discriminator", "penalty", "generator", *TERMS}
        assert all(bool(value.isfinite()) and not value.requires_grad for value in values.values())
    for network in (model.generator, model.discriminator, model.head, model.average):
        assert all(bool(parameter.isfinite().all()) for parameter in network.parameters())
        assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert any(not torch.equal(value, before[name]) for name, value in model.generator.state_dict().items())
    # The discriminator asks for gradients again; the matcher never got any.
    assert all(parameter.requires_grad for parameter in model.judges)
    assert all(parameter.grad is None for parameter in matcher.parameters())
    pictures = model.sample(training.noise((count, 4), place, 0), text)
    assert pictures.shape == (count, 3, size, size)
    assert pictures.device.type == device
    assert pictures.abs().max() <= 1


def test_noise_depends_on_seed_step_and_rank_alone() -> None:
    batch = collate([CaptionedImages(open_split(tiny.birds(), "train"), 32, train=False)[i] for i in range(4)])
    text = VLM.load(tiny.matcher()).encode_text(batch.captions)
    values = []
    for history in range(2):
        torch.manual_seed(0)
        model = trainer()
        torch.manual_seed(history)
        torch.rand(history * 7)
        values.append({name: float(value) for name, value in model.step(batch, text, 0, None).items()})
    assert values[0] == values[1]


# ---------------------------------------------------------------------------------------------------------------------
# How little a baseline has to know
# ---------------------------------------------------------------------------------------------------------------------


def lines_of_code(path: Path, word: str) -> list[str]:
    """Lines that mention a word outside comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            silent |= set(range(body[0].lineno, body[0].end_lineno + 1))
    with tokenize.open(path) as file:
        tokens = [t for t in tokenize.generate_tokens(file.readline) if t.type != tokenize.COMMENT]
    numbers = {t.start[0] for t in tokens if word in t.string.lower() and t.start[0] not in silent}
    source = path.read_text(encoding="utf-8").splitlines()
    return [f"{path.name}:{number}: {source[number - 1].strip()}" for number in sorted(numbers)]


def test_a_handful_of_lines_mention_vlm() -> None:
    """The trainer and its parts; export.py, which only packs a run, is no part of a baseline."""
    files = [path for path in sorted(DFGAN_FOLDER.glob("*.py")) if path.name != "export.py"]
    found = [line for path in files for line in lines_of_code(path, "vlm")]
    print(f"{len(found)} lines mention vlm:", *found, sep="\n")
    assert 4 <= len(found) <= 10
