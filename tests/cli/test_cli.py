"""The command line, as a user types it: what works, and what a slip of the fingers gets."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from vlm_plugin import VLM, ConvEncoder, __version__
from vlm_plugin.cli.main import COMMANDS, main, parser
from vlm_plugin.data import make_birds, open_split
from vlm_plugin.data.records import BadSampleError
from vlm_plugin.evaluation.judge import Judge


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks at a fraction of their width."""
    monkeypatch.setattr(
        "vlm_plugin.matcher.image_encoders.build_image_encoder", lambda name, embed_dim: ConvEncoder(embed_dim, width=2)
    )
    monkeypatch.setattr("vlm_plugin.evaluation.judge.Judge", lambda: Judge(width=2))


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_data_synthetic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "birds"
    words = ("data", "synthetic", folder, "--train", 12, "--validation", 0, "--test", 3, "--size", 16, "--seed", 4)
    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert "15 synthetic birds of 16 x 16 pixels, seed 4" in printed
    assert "12 pictures, 2 classes, 120 captions" in printed
    assert "no pictures" in printed
    assert (folder / "contact_sheet.png").is_file()
    assert len(open_split(folder, "train")) == 12
    # Again: nothing to do. With other numbers: refused, by the folder's name.
    assert run(*words) == 0
    capsys.readouterr()
    assert run("data", "synthetic", folder, "--train", 13) == 2
    assert str(folder) in capsys.readouterr().err


@pytest.mark.usefixtures("narrow")
def test_pretrain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.vlm.pt"
    words = ("pretrain", "--data", tiny.birds(), "--out", out, "--epochs", 1, "--batch", 20, "--embed-dim", 8)
    assert run(*words, "--image-size", 32, "--device", "cpu", "--half") == 0
    printed = capsys.readouterr().out
    assert "epoch 1/1  validation: R@1 of 20" in printed
    assert f"wrote {out}" in printed
    notes = VLM.load(out).notes["pretraining"]
    assert (notes["data"], notes["epochs"], notes["batch"], notes["image_size"]) == ("birds", 1, 20, 32)


@pytest.mark.usefixtures("narrow")
def test_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "judge.pt"
    assert run("judge", "--data", tiny.birds(), "--out", out, "--epochs", 1, "--batch", 20, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "bill_length" in printed
    assert f"wrote {out}" in printed
    assert 0 <= Judge.load(out).accuracy["crown"] <= 1


def one_line(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a refused command says: one line on stderr and exit status 2."""
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"vlm-plugin {words[0]}: ")
    return error


def test_without_memory_one_line_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("vlm_plugin.cli.score.run", full)
    words = ("score", "--vlm", "x", "--images", "y", "--captions", "z")
    assert "score: CUDA out of memory. Try a smaller --batch" in one_line(capsys, *words)


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vlm_plugin.data.birds.overview.make_birds", interrupt)
    assert run("data", "synthetic", "x") == 130
    assert capsys.readouterr().err == "vlm-plugin data: interrupted\n"


def test_train_says_in_one_line_what_the_user_got_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "nowhere"
    for name in ("dfgan", "attngan"):
        said = one_line(capsys, "train", name, "--data", nowhere, "--device", "cpu")
        assert said == f"vlm-plugin train: {nowhere}: expected a data folder, found no such folder\n"

    def stop(error: BaseException) -> None:
        def raising(*_: object) -> None:
            raise error

        monkeypatch.setattr("vlm_plugin.gans.run._train", raising)

    stop(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    said = one_line(capsys, "train", "dfgan")
    assert said.startswith("vlm-plugin train: CUDA out of memory. Try a smaller --batch (of a run that has begun: ")
    stop(BadSampleError("a.jpg: damaged"))
    said = one_line(capsys, "train", "dfgan")
    assert said == "vlm-plugin train: a.jpg: damaged (--skip-bad leaves out what cannot be used)\n"
    stop(KeyboardInterrupt("kept"))
    assert run("train", "dfgan") == 130
    assert capsys.readouterr().err == "vlm-plugin train: interrupted; kept\n"


@pytest.mark.parametrize(
    "words",
    [
        ("pretrain", "--data=~/a", "--out=~/b", "--damsm=~/c", "--image-weights=~/d"),
        ("judge", "--data=~/a", "--out=~/b"),
        ("data", "synthetic", "~/a"),
        ("data", "check", "~/a", "--out=~/b"),
        ("evaluate", "~/a", "--data=~/b", "--out=~/c", "--evaluator=~/d", "--inception=~/e", "--text-encoder=~/f"),
        ("report", "~/a", "~/b", "--out=~/c"),
        ("score", "--vlm=~/a", "--images=~/b", "--captions=~/c", "--out=~/d"),
        ("run-legacy", "~/a"),
        ("patch", "~/a"),
        ("sample", "~/a", "~/b", "--data=~/c", "--text-encoder=~/d", "--out=~/e"),
        ("train", "dfgan", "--vlm=~/a", "--cfg=~/b", "--data=~/c", "--out=~/d", "--generator=~/e", "--sample", "~/f"),
        ("train", "attngan", "--resume=~/a", "--text-encoder=~/b"),
    ],
)
def test_every_path_may_begin_at_home(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    given = vars(parser().parse_args(words)).values()
    paths = {str(path) for value in given for path in (value if isinstance(value, list) else [value])}
    assert {str(tmp_path / word[-1]) for word in words if "~" in word} <= paths


def test_names_that_are_no_paths_stay() -> None:
    words = ("pretrain", "--data", "x", "--out", "y", "--image-weights", "imagenet")
    assert parser().parse_args(words).image_weights == "imagenet"


def test_bad_input_is_one_line_that_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere, other, file = tmp_path / "nowhere", tmp_path / "other", tmp_path / "file"
    other.mkdir()
    (other / "notes.txt").write_text("no data")
    file.write_text("no folder")
    out = tmp_path / "x.pt"
    for command in ("pretrain", "judge"):
        assert str(nowhere) in one_line(capsys, command, "--data", nowhere, "--out", out)
        assert str(other) in one_line(capsys, command, "--data", other, "--out", out)
        assert str(file) in one_line(capsys, command, "--data", file, "--out", out)
        assert str(other) in one_line(capsys, command, "--data", tiny.birds(), "--out", other)
        assert str(file) in one_line(capsys, command, "--data", tiny.birds(), "--out", file / "x.pt")
        assert "--device gpu" in one_line(capsys, command, "--data", tiny.birds(), "--out", out, "--device", "gpu")
        assert "epochs" in one_line(capsys, command, "--data", tiny.birds(), "--out", out, "--epochs", "0")
    assert str(other) in one_line(capsys, "data", "synthetic", other, "--train", 1)
    assert str(file) in one_line(capsys, "data", "synthetic", file)
    assert "size" in one_line(capsys, "data", "synthetic", nowhere, "--size", 4)
    assert "got -1" in one_line(capsys, "data", "synthetic", nowhere, "--train", -1)
    assert "at least one picture" in one_line(
        capsys, "data", "synthetic", nowhere, "--train", 0, "--validation", 0, "--test", 0
    )
    assert not out.exists()
    assert not nowhere.exists()


def test_a_missing_picture_or_caption_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_birds(tmp_path / "birds", 10, 0, 10, 16)
    key = open_split(data, "test")[3].key
    words = ("pretrain", "--data", data, "--out", tmp_path / "m.pt", "--epochs", 1, "--image-size", 16)
    picture, text = data / f"CUB_200_2011/images/{key}.jpg", data / f"text/{key}.txt"
    picture.write_bytes(b"no picture")
    assert str(picture) in one_line(capsys, *words)
    picture.unlink()
    assert str(picture) in one_line(capsys, *words)
    text.unlink()
    assert str(text) in one_line(capsys, *words)
    (data / "test" / "filenames.pickle").write_bytes(b"no pickle")
    assert "filenames.pickle" in one_line(capsys, *words)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_use_one_process(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "pretrain": ("--data", "x", "--out", "y"), "judge": ("--data", "x", "--out", "y"),
        "data": ("synthetic", "x"), "evaluate": ("x",), "report": ("x",), "patch": ("x",), "run-legacy": ("x",),
        "score": ("--vlm", "x", "--images", "y", "--captions", "z", "--out", "s"),
        "train": ("dfgan", "--vlm"), "sample": ("x", "a bird"),
    }[command]  # fmt: skip
    monkeypatch.setattr(importlib.import_module(f"vlm_plugin.cli.{COMMANDS[command].module}"), "run", lambda _: 0)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run(command, *words) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    if command in ("train", "run-legacy"):
        assert run(command, *words) == 0
    else:
        said = one_line(capsys, command, *words)
        assert said.endswith(": expected one process: start it without torchrun, got WORLD_SIZE 2\n")


@pytest.mark.parametrize(
    "words",
    [
        (), ("paint",), ("data",), ("data", "synthetic"), ("pretrain",), ("judge", "--data", "x"),
        ("train",), ("train", "stackgan"), ("train", "dfgan", "--steps", "-1"), ("sample", "dfgan"),
        ("pretrain", "--data", "x", "--out", "y", "--encoder", "vgg"),
        ("pretrain", "--data", "x", "--out", "y", "--epochs", "many"),
    ],
)  # fmt: skip
def test_incomplete_commands_show_the_usage(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: vlm-plugin" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [(), *((name,) for name in COMMANDS), ("data", "synthetic"), ("train", "dfgan"), ("train", "attngan")]
)
def test_help_of_everything(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: {' '.join(('vlm-plugin', *words))} [-h]" in printed
    # A default of None is none.
    assert "(default: None)" not in printed
    if not words:
        assert all(name in printed for name in COMMANDS)


LOADED = """
import sys
from vlm_plugin.cli.main import main

try:
    code = main({words!r})
except SystemExit as stop:
    code = stop.code
print("LOADED", code, *({{name.partition(".")[0] for name in sys.modules}} & {heavy!r}))
"""


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("patch", "{}"), ("patch", "{}", "--check")])
def test_what_needs_no_network_loads_none(words: tuple[str, ...], tmp_path: Path) -> None:
    """In a fresh interpreter: neither torch nor what comes with it, nor anything else that takes its time."""
    heavy = {"torch", "torchvision", "numpy", "PIL", "matplotlib", "yaml", "nltk", "torchmetrics", "easydict"}
    program = LOADED.format(words=[word.format(tmp_path) for word in words], heavy=heavy)
    done = subprocess.run([sys.executable, "-c", program], cwd=tiny.ROOT, capture_output=True, text=True)
    # An empty folder is no clone: patch has looked at its own patches by then.
    assert done.stdout.splitlines()[-1] == f"LOADED {2 if words[0] == 'patch' else 0}"
    assert ("expected the root of a clone" in done.stderr) == (words[0] == "patch")


WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from vlm_plugin.cli.main import main

for words in {lines!r}:
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    print("ENDED", code)
    print("ENDED", code, file=sys.stderr)
"""


def without(missing: tuple[str, ...], *lines: tuple[object, ...]) -> list[tuple[int, str]]:
    """Exit status and stderr of each command line where packages cannot be imported, in a process of its own."""
    words = [[str(word) for word in line] for line in lines]
    command = [sys.executable, "-c", WITHOUT.format(missing=missing, lines=words)]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True)
    codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("ENDED ")]
    assert len(codes) == len(lines), done.stderr
    return list(zip(codes, re.split(r"ENDED \d+\n", done.stderr)[:-1], strict=True))


def said_missing(command: str, package: str, extra: str) -> str:
    """The one line about a missing package."""
    where = f'in the environment {sys.prefix}: in the repository: pip install ".[{extra}]"'
    return f"vlm-plugin {command}: No module named '{package}' {where}\n"


def test_without_the_extras_most_commands_work_and_the_others_say_what_to_install(tmp_path: Path) -> None:
    birds, out = tmp_path / "birds", tmp_path / "m.vlm.pt"
    found = without(
        ("yaml", "torchmetrics", "torch_fidelity", "matplotlib", "jinja2"),
        ("--help",),
        *((name, "--help") for name in COMMANDS),
        ("data", "synthetic", birds, "--train", 12, "--validation", 0, "--test", 4, "--size", 16),
        ("data", "check", birds, "--out", tmp_path / "sheet.png"),
        ("pretrain", "--data", birds, "--out", out, "--epochs", 1, "--batch", 6, "--image-size", 16, "--embed-dim", 8),
        ("judge", "--data", birds, "--out", tmp_path / "judge.pt", "--epochs", 1, "--batch", 6),
    )
    assert found.pop(0)[0] == 0
    helps, runs = dict(zip(COMMANDS, found, strict=False)), found[len(COMMANDS) :]
    for name, extra, missing in (
        ("evaluate", "eval", "torchmetrics"), ("score", "eval", "torchmetrics"),
        ("report", "eval", "jinja2"), ("train", "train", "yaml"), ("sample", "train", "torchmetrics"),
    ):  # fmt: skip
        assert helps.pop(name) == (2, said_missing(name, missing, extra))
    assert {code for code, _ in helps.values()} == {0}
    assert [code for code, _ in runs] == [0] * 4, runs
    assert out.is_file()


def test_settings_files_are_for_train_and_sample_alone() -> None:
    """A run's own settings lie in its options.json."""
    names = ("train", "sample", "evaluate", "score")
    found = dict(zip(names, without(("yaml",), *((name, "--help") for name in names)), strict=True))
    for name in ("train", "sample"):
        assert found[name] == (2, said_missing(name, "yaml", "train"))
    assert found["evaluate"][0] == found["score"][0] == 0


def test_pages_are_for_evaluate_and_report_alone() -> None:
    *refused, score = without(("jinja2",), ("evaluate", "--help"), ("report", "--help"), ("score", "--help"))
    for name, (code, error) in zip(("evaluate", "report"), refused, strict=True):
        assert code == 2
        assert error == said_missing(name, "jinja2", "eval")
    assert score[0] == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


def test_python_m_vlm_plugin() -> None:
    command = [sys.executable, "-m", "vlm_plugin", "judge", "--data", "nowhere", "--out", "x"]
    refused = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("vlm-plugin judge: nowhere")
