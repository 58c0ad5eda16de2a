"""Damaged files, a few of each kind here and many under --slow; `python tests/fuzz.py` goes on for as long as asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the fuzz script needs a system that can fork")


@pytest.mark.parametrize("minutes", [0.001, pytest.param(1.0, marks=pytest.mark.slow)], ids=["few", "a minute"])
def test_damaged_files_are_read_or_named(minutes: float, tmp_path: Path) -> None:
    # Each round goes once through the kinds.
    words = [
        sys.executable,
        FUZZ,
        "--minutes",
        minutes,
        "--keep",
        tmp_path / "found",
        "--count",
        50 if minutes == 1 else 4,
    ]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 findings" in done.stdout
