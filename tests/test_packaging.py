"""What `pip install` takes along, read from setup.py without running it."""

from __future__ import annotations

import ast
import fnmatch
import re
from pathlib import Path

from setuptools import find_packages

import vlm_plugin

ROOT = Path(__file__).resolve().parents[1]
TREE = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))


def argument(name: str) -> object:
    """The value of a keyword of the call of setup()."""
    (call,) = (n for n in ast.walk(TREE) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "setup")
    return ast.literal_eval(next(keyword.value for keyword in call.keywords if keyword.arg == name))


def test_the_drop_in_needs_six_packages() -> None:
    names = [re.match(r"[A-Za-z0-9_-]+", requirement)[0] for requirement in argument("install_requires")]
    assert names == ["torch", "torchvision", "numpy", "pillow", "nltk", "easydict"]


def test_the_extras() -> None:
    """What the trainers need; what `vlm-plugin evaluate` and `score` need, whatever their options."""
    lists = {n.targets[0].id: ast.literal_eval(n.value) for n in TREE.body if isinstance(n, ast.Assign)
             and n.targets[0].id in ("TRAIN", "EVAL")}  # fmt: skip
    names = {key: {re.match(r"[A-Za-z0-9_-]+", entry)[0] for entry in value} for key, value in lists.items()}
    assert names["TRAIN"] == {"pyyaml", "tqdm", "matplotlib", "torchmetrics"}
    assert names["EVAL"] == {"pyyaml", "torchmetrics", "torch-fidelity"}


def test_all_code_is_packed() -> None:
    packed = set(find_packages(str(ROOT), include=["vlm_plugin", "vlm_plugin.*"]))
    folders = {path.parent for path in (ROOT / "vlm_plugin").rglob("*.py")}
    assert packed == {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert packed >= {"vlm_plugin", "vlm_plugin.data", "vlm_plugin.tools"}


def test_all_assets_are_packed() -> None:
    patterns = argument("package_data")["vlm_plugin"]
    files = [path for path in (ROOT / "vlm_plugin").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert "birds.vlm.pt" in {path.name for path in files}
    for path in files:
        name = path.relative_to(ROOT / "vlm_plugin").as_posix()
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


def test_the_patches_are_packed() -> None:
    assert argument("package_dir") == {"vlm_plugin.patches": "patches"}
    (pattern,) = argument("package_data")["vlm_plugin.patches"]
    assert {path.name for path in (ROOT / "patches").glob(pattern)} == {"attngan.patch", "dfgan.patch"}


def test_the_command_exists() -> None:
    (entry,) = argument("entry_points")["console_scripts"]
    name, module, function = re.fullmatch(r"(\S+) = (\S+):(\S+)", entry).groups()
    assert name == "vlm-plugin"
    assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_the_version_is_the_package_s() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", vlm_plugin.__version__)
    assert "vlm_plugin/__init__.py" in (ROOT / "setup.py").read_text(encoding="utf-8")
