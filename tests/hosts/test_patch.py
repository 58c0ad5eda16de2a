"""The patches for the original trainers, and the command that applies them, on stand-in clones."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

import vlm_plugin
from vlm_plugin.cli.main import main, parser
from vlm_plugin.gans.find import baseline
from vlm_plugin.gans.settings import read_config
from vlm_plugin.hosts.patch import PATCHES, _advice, blob_hash, read_patch

COMMITS = {
    "attngan": ("taoxugit/AttnGAN", "0d000e652b407e976cb88fab299e8566f3de8a37"),
    "dfgan": ("tobran/DF-GAN", "78f14fd72cb70172d2067791c9df386f03f5124b"),
}
# Before and after: two insertions in one file, one in the other.
SETTINGS = ("A = 1\nB = 2\n", "A = 1\nVLM = ''\nB = 2\n")
TRAINER = (
    "def train():\n    build()\n    for _ in range(3):\n        step()\n        report()\n    return 1",
    "def train():\n    build()\n    if VLM:\n        plug()\n    for _ in range(3):\n        step()\n        if VLM:"
    " score()\n        report()\n    return 1",
)
FILES = {"code/settings.py": SETTINGS, "code/trainer.py": TRAINER}


def anchor(line: str) -> str:
    return hashlib.sha1(line.encode()).hexdigest()[:12]


def stand_in_patch() -> str:
    hashes = {name: [blob_hash(text.encode()) for text in pair] for name, pair in FILES.items()}
    settings, trainer = hashes["code/settings.py"], hashes["code/trainer.py"]
    return f"""A stand-in.

Commit: {"1" * 40} of https://github.com/some/Host

Next:
  write VLM: HOST_DIR/x.pt

diff --git a/code/settings.py b/code/settings.py
index {settings[0]}..{settings[1]} 100644
--- a/code/settings.py
+++ b/code/settings.py
@@ -1,0 +2 @@ {anchor("A = 1")} the settings
+VLM = ''
diff --git a/code/trainer.py b/code/trainer.py
index {trainer[0]}..{trainer[1]} 100644
--- a/code/trainer.py
+++ b/code/trainer.py
@@ -2,0 +3,2 @@ {anchor("build()")} train, once all is built
+    if VLM:
+        plug()
@@ -4,0 +7 @@ {anchor("step()")} train, after the step
+        if VLM: score()
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of `some/Host`, and the one patch there is."""
    patches = tmp_path / "patches"
    patches.mkdir()
    (patches / "host.patch").write_text(stand_in_patch(), encoding="utf-8")
    monkeypatch.setattr("vlm_plugin.hosts.patch.PATCHES", patches)
    for name, (text, _) in FILES.items():
        path = tmp_path / "host" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path / "host"


def content(host: Path) -> dict[str, bytes]:
    """Every file there is, so that leftovers show."""
    return {p.relative_to(host).as_posix(): p.read_bytes() for p in host.rglob("*") if p.is_file()}


ORIGINAL = {name: before.encode() for name, (before, _) in FILES.items()}
PATCHED = {name: after.encode() for name, (_, after) in FILES.items()}


# The patches themselves


def test_both_patches_travel() -> None:
    assert {path.stem for path in PATCHES.glob("*.patch")} == set(COMMITS)


@pytest.mark.parametrize("name", COMMITS)
class TestPatches:
    def test_states_repository_commit_and_blobs(self, name: str) -> None:
        content = read_patch(PATCHES / f"{name}.patch")
        assert (content.name, content.commit) == COMMITS[name]
        assert len(content.files) == 2
        for file in content.files:
            assert file.old != file.new
        assert "HOST_DIR/bird.vlm.pt" in content.advice
        commands = re.findall(r"vlm-plugin (.*)", content.advice.replace("\\\n", ""))
        assert [parser().parse_args(shlex.split(words)).command for words in commands] == ["pretrain", "run-legacy"]

    def test_advice_fits_a_folder_of_any_name(self, name: str) -> None:
        host = Path("/tmp/my host's DF")
        advice = _advice(read_patch(PATCHES / f"{name}.patch"), host)
        (command,) = (line for line in advice.splitlines() if "run-legacy" in line)
        assert shlex.split(command)[:3] == ["vlm-plugin", "run-legacy", str(host)]
        (line,) = (line for line in advice.splitlines() if "bird.vlm.pt'" in line)
        assert list(yaml.safe_load(line).values()) == [f"{host}/bird.vlm.pt"]

    def test_our_trainers_read_a_config_with_its_keys(self, name: str, tmp_path: Path) -> None:
        keys = {"VLM": "x.pt", "LAMBDA_VVM": 0.3, "LAMBDA_VLM": 0.4}
        content = {"CONFIG_NAME": "x", "TRAIN": keys} if name == "attngan" else {k.lower(): v for k, v in keys.items()}
        file = tmp_path / "host.yml"
        file.write_text(yaml.safe_dump({"CONFIG_NAME": "x", **content}))
        files = read_patch(PATCHES / f"{name}.patch").files
        added = "".join(line for part in files for hunk in part.hunks for line in hunk.lines)
        assert all(key in added for key in (keys if name == "attngan" else content))
        settings = read_config(file, baseline(name)).settings.vlm
        assert (settings.lambda_vvm, settings.lambda_vlm) == (0.3, 0.4)

    def test_is_at_most_ten_insertions(self, name: str) -> None:
        lines = (PATCHES / f"{name}.patch").read_text(encoding="utf-8").splitlines()
        body = lines[next(i for i, line in enumerate(lines) if line.startswith("diff --git")) :]
        heads = ("diff --git ", "index ", "--- a/", "+++ b/", "@@ ")
        added = [line for line in body if not line.startswith(heads)]
        assert all(line.startswith("+") for line in added)
        assert 1 <= len(added) <= 10
        assert max(map(len, added)) <= 1 + 120
        assert max(map(len, lines)) <= 1 + 120

    def test_added_lines_are_python(self, name: str) -> None:
        """Each hunk compiles by itself, and imports only names there are, only where the key is set."""
        imported = set()
        for file in read_patch(PATCHES / f"{name}.patch").files:
            for hunk in file.hunks:
                lines = "\n".join(f"    {line}" for line in hunk.lines)
                indent = len(hunk.lines[0]) - len(hunk.lines[0].lstrip())
                frame = "".join(f"{' ' * 4 * i}if True:\n" for i in range(indent // 4 + 1))
                tree = ast.parse(f"{frame}{lines}\n")
                for node in ast.walk(tree):
                    if isinstance(node, ast.ImportFrom):
                        assert node.module == "vlm_plugin"
                        imported |= {alias.name for alias in node.names}
                        assert hunk.lines[0].strip() in ("if cfg.TRAIN.VLM:", "if args.get('vlm'):")
        assert imported == {"VLM", "DualVLMLoss", "text_features"}
        assert imported <= set(vlm_plugin.__all__)

    def test_git_accepts_it(self, name: str, tmp_path: Path) -> None:
        """Applied and reverted by git on files as long as the originals."""
        file = PATCHES / f"{name}.patch"
        content = read_patch(file)
        blank = {}
        for part in content.files:
            path = tmp_path / part.name
            path.parent.mkdir(parents=True, exist_ok=True)
            blank[path] = b"line\n" * (max(hunk.after for hunk in part.hunks) + 5)
            path.write_bytes(blank[path])
        for arguments in ((), ("-R",)):
            command = ["git", "apply", "--unidiff-zero", *arguments, str(file)]
            environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            for part in content.files:
                lines = (tmp_path / part.name).read_text().splitlines()
                shift = 0
                for hunk in part.hunks:
                    first = hunk.after + shift
                    assert (tuple(lines[first : first + len(hunk.lines)]) == hunk.lines) == (not arguments)
                    shift += 0 if arguments else len(hunk.lines)
        assert all(path.read_bytes() == data for path, data in blank.items())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Commit: ", "For: "),
        ("Next:\n", ""),
        ("@@ -1,0 +2 @@", "@@ -1,1 +2 @@"),
        ("@@ -4,0 +7 @@", "@@ -4,0 +6 @@"),
        ("+VLM = ''", "-B = 2\n+VLM = ''"),
        ("+        plug()\n", ""),
        ("+++ b/code/settings.py", "+++ b/code/other.py"),
    ],
)
def test_a_patch_that_is_no_list_of_insertions_is_refused(old: str, new: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.patch"
    path.write_text(stand_in_patch().replace(old, new, 1))
    with pytest.raises(ValueError, match=r"bad\.patch"):
        read_patch(path)


# The command


def test_apply_again_and_revert(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["patch", str(host)]) == 0
    assert content(host) == PATCHED
    printed = capsys.readouterr().out
    assert "patched code/settings.py, code/trainer.py" in printed
    assert f"write VLM: {host}/x.pt" in printed
    assert main(["patch", str(host)]) == 0
    assert content(host) == PATCHED
    assert "applied already" in capsys.readouterr().out
    assert main(["patch", str(host), "--revert"]) == 0
    assert content(host) == ORIGINAL
    assert main(["patch", str(host), "--revert"]) == 0
    assert content(host) == ORIGINAL
    assert "nothing to revert" in capsys.readouterr().out


def test_check_touches_nothing(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["patch", str(host), "--check"]) == 0
    assert content(host) == ORIGINAL
    assert "applies to code/settings.py, code/trainer.py" in capsys.readouterr().out
    main(["patch", str(host)])
    capsys.readouterr()
    assert main(["patch", str(host), "--check"]) == 0
    assert content(host) == PATCHED
    assert "is applied" in capsys.readouterr().out


@pytest.mark.parametrize("option", [[], ["--check"]])
def test_fork_gets_the_lines_and_their_places(
    host: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    # One line more above everything, one of two anchors gone, and one insertion made by hand.
    trainer = "# a fork\n" + TRAINER[0].replace("step()", "my_step()")
    (host / "code/trainer.py").write_text(trainer)
    (host / "code/settings.py").write_text("# ours\n" + SETTINGS[1])
    before = content(host)
    assert main(["patch", str(host), *option]) == 1
    assert content(host) == before
    printed = capsys.readouterr().out
    assert "code/settings.py, code/trainer.py differ from some/Host at commit 111" in printed
    assert "code/settings.py, there already, from line 3" in printed
    assert (
        "code/trainer.py, after line 3: build()\n  (train, once all is built)\n    if VLM:\n        plug()\n" in printed
    )
    assert "where the original has line 4" in printed
    assert "        if VLM: score()\n" in printed


def test_revert_leaves_later_edits_alone(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["patch", str(host)])
    path = host / "code/trainer.py"
    path.write_text(path.read_text().replace("range(3)", "range(9)"))
    before = content(host)
    assert main(["patch", str(host), "--revert"]) == 1
    assert content(host) == before
    printed = capsys.readouterr().out
    assert "code/trainer.py differs" in printed
    assert "there already, from line 3" in printed


def test_what_a_kill_left_is_completed(host: Path) -> None:
    half = host / "code/settings.py"
    half.write_text(SETTINGS[1])
    assert main(["patch", str(host)]) == 0
    assert content(host) == PATCHED
    half.write_text(SETTINGS[0])
    assert main(["patch", str(host), "--revert"]) == 0
    assert content(host) == ORIGINAL


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("successes", [0, 1])
def test_a_failure_midway_puts_everything_back(
    host: Path, monkeypatch: pytest.MonkeyPatch, successes: int, error: BaseException
) -> None:
    replace, calls = os.replace, []

    def fail_once(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == successes + 1:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    assert main(["patch", str(host)]) == (2 if isinstance(error, OSError) else 130)
    assert len(calls) > successes
    assert content(host) == ORIGINAL


def test_a_read_only_file_is_named_and_nothing_written(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Asked through os.access, since a superuser may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "trainer.py")
    assert main(["patch", str(host)]) == 2
    assert "trainer.py" in capsys.readouterr().err
    assert content(host) == ORIGINAL


def test_crlf_stays(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, data in ORIGINAL.items():
        (host / name).write_bytes(data.replace(b"\n", b"\r\n"))
    before = content(host)
    assert main(["patch", str(host)]) == 0
    assert content(host) == {name: data.replace(b"\n", b"\r\n") for name, data in PATCHED.items()}
    assert "CRLF" in capsys.readouterr().out
    assert main(["patch", str(host), "--revert"]) == 0
    assert content(host) == before


def test_mixed_line_ends_are_a_fork(host: Path) -> None:
    (host / "code/settings.py").write_bytes(b"A = 1\r\nB = 2\n")
    before = content(host)
    assert main(["patch", str(host)]) == 1
    assert content(host) == before


def test_permissions_and_links_stay(host: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.py"
    link = host / "code/settings.py"
    link.rename(real)
    link.symlink_to(real)
    (host / "code/trainer.py").chmod(0o755)
    assert main(["patch", str(host)]) == 0
    assert link.is_symlink()
    assert real.read_text() == SETTINGS[1]
    assert (host / "code/trainer.py").stat().st_mode & 0o777 == 0o755


def test_other_folders_are_refused(host: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (host / "code", tmp_path / "nowhere"):
        assert main(["patch", str(folder)]) == 2
        error = capsys.readouterr().err
        assert str(folder) in error
        assert error.count("\n") == 1
    assert content(host) == ORIGINAL


def test_a_damaged_patch_changes_nothing(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = host.parent / "patches" / "host.patch"
    file.write_text(file.read_text().replace("plug()", "plug(1)"))
    assert main(["patch", str(host)]) == 2
    assert "damaged" in capsys.readouterr().err
    assert content(host) == ORIGINAL


def test_blob_hash_is_git_s() -> None:
    # `printf 'hello\n' | git hash-object --stdin`
    assert blob_hash(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
