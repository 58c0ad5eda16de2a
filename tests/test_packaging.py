"""What `pip install` takes along, read from setup.py; and that the command works wherever the wheel is installed."""

from __future__ import annotations

import ast
import fnmatch
import functools
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import tiny
from setuptools import Distribution

import vlm_plugin
from vlm_plugin.hosts.patch import PATCHES, read_patch

ROOT = Path(__file__).resolve().parents[1]
BASELINES = ("attngan", "dfgan")


@functools.cache
def distribution() -> Distribution:
    """What setup.py hands to setuptools; nothing is built."""
    from distutils.core import run_setup

    return run_setup(str(ROOT / "setup.py"), stop_after="init")


def names(requirements: list[str]) -> list[str]:
    return [re.match(r"[A-Za-z0-9_-]+", requirement)[0] for requirement in requirements]


def test_the_drop_in_needs_eight_packages() -> None:
    expected = ["torch", "torchvision", "numpy", "pillow", "nltk", "easydict", "tqdm", "regex"]
    assert names(distribution().install_requires) == expected


def test_the_extras() -> None:
    """What the trainers need; what `vlm-plugin evaluate` and `score` need, whatever their options."""
    extras = {key: set(names(list(value))) for key, value in distribution().extras_require.items()}
    assert extras["train"] == {"pyyaml", "matplotlib", "torchmetrics", "jinja2"}
    assert extras["eval"] == {"pyyaml", "torchmetrics", "torch-fidelity", "jinja2"}
    assert extras["dev"] >= extras["train"] | extras["eval"]


def test_all_code_is_packed() -> None:
    packed = set(distribution().packages)
    folders = {path.parent for path in (ROOT / "vlm_plugin").rglob("*.py")}
    elsewhere = {"vlm_plugin.patches", *(f"vlm_plugin.baselines.{name}" for name in BASELINES)}
    assert packed == {".".join(folder.relative_to(ROOT).parts) for folder in folders} | elsewhere
    assert packed >= {"vlm_plugin", "vlm_plugin.data", "vlm_plugin.cli"}


def test_all_assets_are_packed() -> None:
    patterns = distribution().package_data["vlm_plugin"]
    files = [path for path in (ROOT / "vlm_plugin").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert "birds.vlm.pt" in {path.name for path in files}
    for path in files:
        name = path.relative_to(ROOT / "vlm_plugin").as_posix()
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


def test_the_patches_are_packed() -> None:
    assert distribution().package_dir["vlm_plugin.patches"] == "patches"
    (pattern,) = distribution().package_data["vlm_plugin.patches"]
    assert {path.name for path in (ROOT / "patches").glob(pattern)} == {"attngan.patch", "dfgan.patch"}


def test_nothing_else_lies_elsewhere() -> None:
    expected = {f"vlm_plugin.baselines.{name}": f"baselines/{name}" for name in BASELINES}
    assert distribution().package_dir == {"vlm_plugin.patches": "patches", **expected}


def test_the_command_exists() -> None:
    (entry,) = distribution().entry_points["console_scripts"]
    name, module, function = re.fullmatch(r"(\S+) = (\S+):(\S+)", entry).groups()
    assert name == "vlm-plugin"
    assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_the_version_is_the_package_s() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", vlm_plugin.__version__)
    assert distribution().get_version() == vlm_plugin.__version__


# ---------------------------------------------------------------------------------------------------------------------
# Public names, which are imported when they are asked for
# ---------------------------------------------------------------------------------------------------------------------


def test_the_lazy_names_agree() -> None:
    """The list of public names, where each is at run time, and what a type checker reads."""
    tree = ast.parse(Path(vlm_plugin.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    assert checked.test.id == "TYPE_CHECKING"
    read = {alias.name: node.module for node in checked.body for alias in node.names}
    assert {name: f"vlm_plugin.{home}" for name, home in vlm_plugin._HOMES.items()} == read
    assert sorted(vlm_plugin._HOMES) == sorted(vlm_plugin.__all__)
    assert set(vlm_plugin.__all__) <= set(dir(vlm_plugin))
    scope: dict[str, object] = {}
    exec("from vlm_plugin import *", scope)
    assert set(vlm_plugin.__all__) <= set(scope)


LAZY = """
import pickle, sys, vlm_plugin
assert "torch" not in sys.modules
assert set(vlm_plugin.__all__) <= set(dir(vlm_plugin))
assert not hasattr(vlm_plugin, "Absent")
assert "torch" not in sys.modules
try:
    from vlm_plugin import Absent
except ImportError as error:
    assert "Absent" in str(error)
from vlm_plugin import distributed
for name in vlm_plugin.__all__:
    value = getattr(vlm_plugin, name)
    assert value is getattr(vlm_plugin, name) is vars(vlm_plugin)[name]
    assert pickle.loads(pickle.dumps(value)) == value
    if isinstance(value, type):
        assert pickle.loads(pickle.dumps(value)) is value
"""


def test_public_names_are_imported_when_they_are_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", LAZY], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# The wheel, in an empty folder
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist of the checkout, which stays as it is: what an earlier build left there is no matter."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "elsewhere.cfg").write_text(f"[build]\nbuild_base={folder}/build\n[egg_info]\negg_base={folder}\n")
    environment = os.environ | {"DIST_EXTRA_CONFIG": str(folder / "elsewhere.cfg")}
    sdist = f"import setuptools.build_meta as build; build.build_sdist({str(folder)!r})"
    for words in (
        ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)],
        ["-c", sdist],
    ):
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", folder, built[0]]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def outside(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python in a folder where the repository cannot be imported: the wheel, and what it needs, alone."""
    needed = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(installed), *needed]), "OMP_NUM_THREADS": "1"}
    # Without site no .pth file is read: one of them may lead an editable installation to the checkout.
    command = [sys.executable, "-S", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_wheel_holds_the_packaged_files(built: tuple[Path, Path]) -> None:
    found = set(zipfile.ZipFile(built[0]).namelist())
    wanted = ("assets/birds.vlm.pt", "assets/birds.judge.pt", "data/birds/make.py", "patches/attngan.patch")
    assert found >= {f"vlm_plugin/{name}" for name in wanted}
    assert not any(name.startswith(("tests/", "baselines/", "benchmarks/")) for name in found)
    for folder, inside in (("vlm_plugin", ""), ("baselines/attngan", "baselines/"), ("baselines/dfgan", "baselines/")):
        parent = ROOT / folder if not inside else (ROOT / folder).parent
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = f"vlm_plugin/{inside}{path.relative_to(parent).as_posix()}"
                # The scripts set an import path, which nothing in an installation does.
                assert (name in found) == (path.name != "main.py" or folder == "vlm_plugin"), name


def test_the_sdist_makes_the_same_wheel(built: tuple[Path, Path]) -> None:
    """It has every file of the wheel where setup.py looks for it, and the scripts beside."""
    wheel = {name for name in zipfile.ZipFile(built[0]).namelist() if name.startswith("vlm_plugin/")}
    with tarfile.open(built[1]) as file:
        found = {name.partition("/")[2] for name in file.getnames()}
    moved = {
        f"vlm_plugin/{new.partition('.')[2].replace('.', '/')}": old for new, old in distribution().package_dir.items()
    }
    for name in wheel:
        for new, old in moved.items():
            name = name.replace(new, old, 1) if name.startswith(f"{new}/") else name
        assert name in found, name
    assert found >= {"setup.py", "pyproject.toml", "README.md", "LICENSE", "baselines/export.py"}
    assert found >= {f"baselines/{name}/main.py" for name in BASELINES}
    assert not any(name.startswith(("tests", "benchmarks")) for name in found)


WORKS = """
import pathlib, sys

path = [entry for entry in sys.path if "site-packages" not in entry]  # setuptools adds its own
from vlm_plugin.cli.main import main

for words in {lines!r}:
    code = main(words)
    assert code == 0, (code, words)
# Nothing of the package changes it, and all that was imported of the package lies where it was installed.
assert [entry for entry in sys.path if "site-packages" not in entry] == path
ours = {{name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "vlm_plugin"}}
assert "vlm_plugin.baselines.dfgan.trainer" in ours
assert "baselines" not in sys.modules
strangers = [name for name, file in ours.items() if not pathlib.Path(file).is_relative_to({installed!r})]
assert strangers == [], strangers
"""


def test_the_commands_work_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """Trained, evaluated and drawn by an installation alone; the baselines' settings and starts come from it."""
    cfg = {name: tiny.config(tmp_path / f"{name}.yml", name, evaluated=4) for name in BASELINES}
    empty = tmp_path / "empty"
    empty.mkdir()
    common = ["--data", str(tiny.birds()), "--steps", "1", "--device", "cpu"]
    run = "runs/00001-dfgan-vlm"
    lines = [
        ["train", "attngan", "--vlm", str(tiny.matcher()), "--cfg", str(cfg["attngan"]), *common],
        ["train", "dfgan", "--vlm", "--cfg", str(cfg["dfgan"]), *common],
        ["evaluate", run, "--count", "20", "--device", "cpu"],
        ["sample", run, "a small red bird", "a blue bird", "--device", "cpu"],
        ["sample", "attngan", "a small red bird", "--device", "cpu"],
        ["report", run],
    ]
    done = outside(installed, empty, "-c", WORKS.format(lines=lines, installed=str(installed)))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in empty.iterdir()] == ["runs"]
    runs = sorted(path.name for path in (empty / "runs").iterdir())
    assert runs == ["00000-attngan-vlm", "00001-dfgan-vlm", "00002-dfgan-sample", "00003-attngan-sample"]
    assert json.loads((empty / run / "evaluation.json").read_text(encoding="utf-8"))
    assert (empty / run / "report.html").is_file()


def test_the_module_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """As `python -m vlm_plugin`, where no torch can be imported."""
    host, patch = tmp_path / "host", read_patch(PATCHES / "dfgan.patch")
    for file in patch.files:
        (host / file.name).parent.mkdir(parents=True, exist_ok=True)
        (host / file.name).write_text("a = 1\n")
    empty = tmp_path / "empty"
    (empty / "torch").mkdir(parents=True)
    (empty / "torch" / "__init__.py").write_text("raise ModuleNotFoundError('no torch here')")
    helped = outside(installed, empty, "-m", "vlm_plugin", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "usage: vlm-plugin" in helped.stdout
    # Its patches come with it: what it says of a clone that is a fork stands in one of them.
    checked = outside(installed, empty, "-m", "vlm_plugin", "patch", str(host), "--check")
    assert (checked.returncode, checked.stderr) == (1, "")
    names = ", ".join(file.name for file in patch.files)
    assert checked.stdout.startswith(f"{host}: {names} differ from tobran/DF-GAN at commit {patch.commit}. Nothing was")
    refused = outside(installed, empty, "-m", "vlm_plugin", "train", "dfgan")
    assert refused.returncode == 2
    assert refused.stderr.startswith("vlm-plugin train: no torch here in the environment ")
    assert sorted(path.name for path in empty.iterdir()) == ["torch"]
