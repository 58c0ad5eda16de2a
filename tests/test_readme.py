"""What the README shows is true: its commands parse, its Python runs, and CI runs its test command."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from vlm_plugin.cli.main import parser
from vlm_plugin.gans import config as config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [part for block in blocks("bash") for line in block.splitlines() for part in line.split("&&")]
    return [shlex.split(line, comments=True) for line in lines]


def test_every_command_is_one_that_exists() -> None:
    seen = {"vlm-plugin": 0, "baselines/dfgan/main.py": 0, "baselines/attngan/main.py": 0}
    for words in commands():
        if words[0] == "vlm-plugin":
            parser().parse_args(words[1:])
            seen["vlm-plugin"] += 1
        elif len(words) > 1 and words[1] in seen:
            config.parser(words[1].split("/")[1]).parse_args(words[2:])
            seen[words[1]] += 1
        else:
            assert words[0] in ("python3", "pip", ".venv/bin/pip", ".venv/bin/python"), words
    assert all(seen.values()), seen


def test_it_says_how_the_later_commands_find_their_programs() -> None:
    before = README.split("source .venv/bin/activate")[0]
    assert ".venv/bin/python" in before
    assert not re.search(r"^(python|vlm-plugin|pip) ", before, flags=re.MULTILINE)


def test_ci_runs_the_test_command() -> None:
    block = README.split("<!-- test command -->")[1].split("```")[1]
    assert "pytest" in block
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()


def test_files_and_pictures_it_names_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).is_file(), target


def test_diff_for_a_foreign_gan_trains_it() -> None:
    (diff,) = blocks("diff")
    code = [line[1:] for line in diff.splitlines() if line[1:].strip() != "..."]
    generator = nn.Sequential(nn.Linear(8, 3 * 64 * 64), nn.Unflatten(1, (3, 64, 64)), nn.Tanh())

    class Discriminator(nn.Module):
        def forward(self, images: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
            return images.mean((1, 2, 3)) + sentence.mean(1)

    class Conditioned(nn.Module):
        def forward(self, noise: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
            return generator(torch.cat([noise, sentence], dim=1))

    scope = {
        "device": "cpu",
        "generator": Conditioned(),
        "discriminator": Discriminator(),
        "noise": torch.randn(3, 4),
        "sentence": torch.randn(3, 4),
        "captions": ["a red bird", "a small bird with blue wings", "a bird with a white belly"],
        "real": torch.rand(3, 3, 64, 64) * 2 - 1,
        "class_ids": [4, 9, 4],
    }
    exec("\n".join(code), scope)
    assert scope["errG"].isfinite()
    assert generator[0].weight.grad.abs().sum() > 0


def test_python_block_loads_a_published_pair(tmp_path: Path, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    shapes = json.loads((golden / "attngan_state_dicts.json").read_text())
    for file, name in (
        ("text_encoder200.pth", "RNN_ENCODER(ntoken=50,nhidden=256)"),
        ("image_encoder200.pth", "CNN_ENCODER(nef=256)"),
    ):
        torch.save({k: 0.05 * torch.randn(shape).abs() for k, shape in shapes[name].items()}, tmp_path / file)
    words = ["<end>"] + [f"word{i}" for i in range(1, 50)]
    content = [[[1]], [[1]], dict(enumerate(words)), {w: i for i, w in enumerate(words)}]
    (tmp_path / "captions.pickle").write_bytes(pickle.dumps(content, protocol=2))
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    scope: dict = {}
    exec(code, scope)
    assert scope["vlm_loss"].terms == ("vlm_local", "vlm_global", "vvm_local", "vvm_global")
