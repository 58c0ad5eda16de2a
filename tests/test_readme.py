"""What the pages show is true: commands parse, Python runs, what they name exists, and they stay short."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import vlm_plugin
from vlm_plugin.cli.main import COMMANDS, parser
from vlm_plugin.gans import config as config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "patches/README.md", "vlm_plugin/assets/README.md"),
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in FILES}
EVERY_PAGE = pytest.mark.parametrize("page", PAGES)
SCRIPTS = ("baselines/dfgan/main.py", "baselines/attngan/main.py")
# Programs that are neither ours nor Python with a script of ours.
OTHERS = ("pip", "python3", ".venv/bin/pip", ".venv/bin/ruff")


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def commands(page: str) -> list[list[str]]:
    lines = [part for block in blocks("bash", page) for line in block.splitlines() for part in line.split("&&")]
    return [shlex.split(line, comments=True) for line in lines]


def quoted(page: str) -> list[str]:
    """What stands in single backticks, outside of blocks; a line may end within."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def without_blocks(page: str) -> str:
    """Without code blocks and tables."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in prose.splitlines() if not line.startswith("|"))


def parse(words: list[str]) -> None:
    """A command line of `vlm-plugin`; argparse takes shortened options too, a page should not show them."""
    root = parser()
    root.parse_args(words)
    level: argparse.ArgumentParser | None = root
    known: set[str] = set()
    for word in words:
        choices = [a.choices for a in level._actions if isinstance(a, argparse._SubParsersAction)] if level else []
        level = choices[0].get(word) if choices else None
        known |= set(level._option_string_actions) if level else set()
    own = words[: words.index("--")] if "--" in words else words
    assert [word for word in own if word.startswith("--") and word not in known] == []


@EVERY_PAGE
def test_every_command_is_one_that_exists(page: str) -> None:
    for words in commands(PAGES[page]):
        if words[0] == "vlm-plugin":
            parse(words[1:])
        elif words[0] in ("python", ".venv/bin/python") and words[1] in SCRIPTS:
            config.parser(words[1].split("/")[1]).parse_args(words[2:])
        elif words[0] in ("python", ".venv/bin/python") and words[1] != "-m":
            assert (ROOT / words[1]).is_file(), words
        else:
            assert words[0] in OTHERS or words[1:3] == ["-m", "pytest"], words


@EVERY_PAGE
def test_every_command_in_a_sentence_is_one_that_exists(page: str) -> None:
    for code in quoted(PAGES[page]):
        words = shlex.split(code.replace(" NAME", " dfgan")) if code.startswith(("vlm-plugin ", "python ")) else []
        if words[:1] == ["vlm-plugin"]:
            assert words[1] in (*COMMANDS, "--help"), code
            # A command alone is the name of one.
            if len(words) > 2 and words[2] != "...":
                parse(words[1:])
        elif words[:1] == ["python"] and words[1] not in ("-m", "baselines/NAME/main.py"):
            assert (ROOT / words[1]).is_file(), code


def test_scripts_of_the_repository_find_it_before_they_import_it() -> None:
    """A script of `benchmarks/` and `baselines/` runs from any folder, without installation."""
    checked = 0
    for path in [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "baselines").glob("*/main.py")]:
        text = path.read_text(encoding="utf-8")
        ours = re.search(r"^ *from (benchmarks|baselines|vlm_plugin)\b", text, flags=re.MULTILINE)
        if '__name__ == "__main__"' in text and ours:
            assert "sys.path.insert(0, " in text[: ours.start()], path
            checked += 1
    assert checked > 10


def test_the_readme_shows_the_commands_that_people_use() -> None:
    names = [words[1] for words in commands(README) if words[0] == "vlm-plugin"]
    assert {"train", "evaluate", "sample", "score", "pretrain"} <= set(names)
    assert sum("baselines/dfgan/main.py" in words for words in commands(README)) == 1


def test_it_says_how_the_later_commands_find_their_programs() -> None:
    before = README.split(".venv/bin/activate")[0]
    assert before.endswith(("source ", "source\n"))
    assert ".venv/bin/python" in before
    assert not re.search(r"^(python|vlm-plugin|pip) ", before, flags=re.MULTILINE)


def test_ci_runs_the_test_command() -> None:
    block = README.split("<!-- test command -->")[1].split("```")[1]
    assert "pytest" in block
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()
    # The script cuts off two lines at the top and one at the end.
    assert re.search(r"^<!-- test command -->\n```bash\n[^\n]+\n```$", README, flags=re.MULTILINE)


def test_the_readme_shows_the_loss_before_anyone_scrolls() -> None:
    shown = [
        "docs/samples.jpg",
        "baselines/dfgan/main.py --vlm",
        "<!-- test command -->",
        "```diff",
        "<!-- summary -->",
    ]
    shown += ["vlm-plugin train", "docs/training.md", "@article", "LICENSE"]
    assert [README.index(what) for what in shown] == sorted(README.index(what) for what in shown)
    lines = README.splitlines()
    assert lines.index("```diff") < 35
    summary = README.split("<!-- summary -->")[1].split("<!-- end -->")[0]
    assert len(summary.strip().splitlines()) == 4, "a head, a rule and two rows"


def test_pages_are_short() -> None:
    assert len(README.split()) <= 900, "in all, code and tables too"
    assert len(without_blocks(README).split()) <= 600
    results = "\n".join(line for line in PAGES["docs/results.md"].splitlines() if not line.startswith("|"))
    assert len(results.split()) <= 1500
    assert len(PAGES["CONTRIBUTING.md"].splitlines()) <= 130


def anchors(page: str) -> set[str]:
    """The names under which a page's headings are linked, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@EVERY_PAGE
def test_files_and_pictures_it_names_exist(page: str) -> None:
    text, folder = PAGES[page], (ROOT / page).parent
    targets = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = folder / name if name else ROOT / page
        assert path.is_file(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), target


@EVERY_PAGE
def test_paths_in_sentences_exist(page: str) -> None:
    """What begins like a folder of the repository is one, or a file; `NAME` and wildcards stand for many."""
    tops = ("vlm_plugin", "baselines", "benchmarks", "docs", "examples", "patches", "tests")
    for code in quoted(PAGES[page]):
        path = next((word for word in code.split() if word.split("/")[0] in tops and "/" in word), None)
        if path and not re.search(r"NAME|\*|\.\.\.", path) and path != "benchmarks/quality.py":
            assert (ROOT / path).exists(), code


def resolved(name: str) -> bool:
    """Is `a.b.c` a module, or an attribute of one?"""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@EVERY_PAGE
def test_modules_in_sentences_exist(page: str) -> None:
    # The list of changes names, on the left of its table, what there was.
    text = re.sub(r"^\| [^|]*\|", "", PAGES[page], flags=re.MULTILINE) if page == "CHANGELOG.md" else PAGES[page]
    for code in quoted(text):
        if (name := re.match(r"vlm_plugin(\.\w+)+", code)) and "pretokenised" not in code:
            assert resolved(name[0]), code


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
    (code,) = blocks("python", PAGES["docs/originals.md"])
    scope: dict = {}
    exec(code, scope)
    assert scope["vlm_loss"].terms == ("vlm_local", "vlm_global", "vvm_local", "vvm_global")


def test_python_of_the_other_pages_runs() -> None:
    """That of docs/porting.md is run by test_porting.py, that of docs/originals.md above."""
    pages = {name for name, page in PAGES.items() if blocks("python", page)}
    assert pages == {"docs/porting.md", "docs/originals.md", "docs/evaluation.md"}
    scope: dict = {}
    for code in blocks("python", PAGES["docs/evaluation.md"]):
        exec(code, scope)
    assert {"VLMS", "RPrecision"} <= set(scope)


def test_the_map_names_every_room() -> None:
    drawn = PAGES["CONTRIBUTING.md"].split("## One word")[0]
    rooms = {path.parent.name + "/" for path in (ROOT / "vlm_plugin").glob("*/__init__.py")}
    files = {path.name for path in (ROOT / "vlm_plugin").glob("[!_]*.py")}
    assert [name for name in sorted(rooms | files) if name not in drawn] == []
    benchmarks = {path.name + "/" for path in (ROOT / "benchmarks").iterdir() if path.is_dir() and path.name[0] != "_"}
    assert [name for name in sorted(benchmarks) if name not in drawn] == []


def test_the_map_draws_the_arrows_that_the_house_keeps() -> None:
    from test_house import FLOORS

    arrows = PAGES["CONTRIBUTING.md"].split("Arrows go one way.")[1].split("\n\n")[1]
    floors = [[room.strip() for room in floor.split(",")] for floor in arrows.split("->")]
    drawn = {room: number for number, floor in enumerate(reversed(floors)) for room in floor}
    kept = {room: number for number, floor in enumerate(FLOORS) for room in floor if room != "__main__"}
    assert set(drawn) == set(kept)
    for one in kept:
        for other in kept:
            assert (kept[one] < kept[other]) == (drawn[one] < drawn[other]), f"{one} and {other}"


def test_changes_and_citation_are_of_this_version() -> None:
    changes = PAGES["CHANGELOG.md"]
    versions = re.findall(r"^## (?:Unreleased|(\d+\.\d+\.\d+) - \d{4}-\d{2}-\d{2})$", changes, flags=re.MULTILINE)
    assert len(versions) == len(re.findall(r"^## ", changes, flags=re.MULTILINE))
    assert vlm_plugin.__version__ in versions
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["cff-version"], citation["type"], citation["license"]) == ("1.2.0", "software", "MIT")
    assert citation["version"] in versions
    assert f"## {citation['version']} - {citation['date-released']}" in changes
    assert citation["authors"] == [{"name": "The vlm_plugin authors"}]
    (paper,) = citation["references"]
    assert "2208.09596" in paper["url"]
    assert [author["family-names"] for author in paper["authors"]] == ["Cheng", "Wen", "Gu"]
    assert paper["title"] in README
