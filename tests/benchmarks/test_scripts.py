"""The scripts of benchmarks/: each is found from any folder, and says how it is called."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

BENCHMARKS = tiny.ROOT / "benchmarks"
SCRIPTS = sorted(path for path in BENCHMARKS.rglob("*.py") if '__name__ == "__main__"' in path.read_text())
# One process opens the large libraries, and a child of it plays each script's own process.
HELP = """
import os, runpy, sys
import nltk, pandas, torch, torchmetrics, torchvision.models
failed = []
for script in sys.argv[1:]:
    sys.stdout.flush()
    if not (child := os.fork()):
        sys.path[0], sys.argv = os.path.dirname(script), [script, "--help"]
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(0 if end.code in (None, 0) else 1)  # at once: to take the libraries down takes seconds
        os._exit(3)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        failed.append(script)
sys.exit(f"failed: {failed}" if failed else 0)
"""


def test_every_script_shows_its_help_from_another_folder(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-c", HELP, *map(str, SCRIPTS)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for script in SCRIPTS:
        assert f"python benchmarks/{script.relative_to(BENCHMARKS).as_posix()}" in done.stdout
    assert not any(tmp_path.iterdir())
    assert len(SCRIPTS) == 12


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_names_of_the_repository_exists(script: Path) -> None:
    for name in re.findall(r"\b(?:benchmarks|baselines)/[\w/.]*\w", script.read_text(encoding="utf-8")):
        path = tiny.ROOT / name
        assert path.exists(), name


def test_results_are_kept_beside_the_scripts() -> None:
    for script in SCRIPTS:
        for name in re.findall(r'^RESULTS = .* / "([\w.]+)"$', script.read_text(encoding="utf-8"), flags=re.MULTILINE):
            assert (BENCHMARKS / "results" / name).exists(), name
