"""Runs of the grid in this process: what a new one imports takes longer than what the tests train."""

from __future__ import annotations

import contextlib
import runpy
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from benchmarks.quality.run import Grid


class _AtOnce:
    """An executor that does what it is given in the thread that gives it, as handlers of signals ask for."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def submit(self, task: Callable, *arguments: object) -> Future:
        future = Future()
        future.set_result(task(*arguments))
        return future

    def shutdown(self, **_: bool) -> None:
        pass


def _process(grid: Grid, words: Sequence[object], output: Path, place: dict[str, str]) -> None:
    program, *arguments = map(str, words)
    if is_module := program == "-m":
        program, *arguments = arguments
    with output.open("a") as file, pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.chdir(grid.work)
        patch.setattr(sys, "argv", [program, *arguments])
        patch.setattr(sys, "path", list(sys.path))
        stack.enter_context(contextlib.redirect_stdout(file))
        stack.enter_context(contextlib.redirect_stderr(file))
        try:
            (runpy.run_module if is_module else runpy.run_path)(program, run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{output.parent.name} ended with {end.code}") from end


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Grid` starts no processes; `test_a_grid_that_is_gone_on_with` does without this, and starts them."""
    monkeypatch.setattr("benchmarks.quality.run.ThreadPoolExecutor", _AtOnce)
    monkeypatch.setattr(Grid, "_process", _process)
