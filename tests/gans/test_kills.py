"""A run that is killed from outside, at any moment, goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

# Imports once and forks for every attempt. An attempt that is killed says nothing; the last one ends by itself.
DRIVER = """
import json, os, random, signal, sys, time
sys.path[:0] = {folders!r}
import tiny, torch
from vlm_plugin import files
from vlm_plugin.evaluation.judge import Judge
from vlm_plugin.gans.find import baseline
from vlm_plugin.gans.run import run

name, out, words, moments, judge = json.loads(sys.argv[1])
found = baseline(name)
judge = Judge.load(judge)
Judge.load = classmethod(lambda cls, *_: judge)


def attempt(words, moment):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        if moment is not None and moment < 0:
            calls, replace = [0], os.replace

            def die_at(*arguments):
                # The bytes lie beside the file, and half of them are not there yet.
                calls[0] += 1
                if calls[0] == -moment:
                    # A second name of a file is no file that is being written.
                    if os.stat(arguments[0]).st_nlink == 1:
                        with open(arguments[0], "r+b") as file:
                            file.truncate(os.path.getsize(arguments[0]) // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(*arguments)

            os.replace = die_at
        status = 1
        try:
            run(name, found.folder, found.trainer, words)
            status = 0
        finally:
            os._exit(status)
    if moment is not None and moment >= 0:
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


for moment in [*moments, None]:
    begun = sorted(p for p in (os.listdir(out) if os.path.isdir(out) else []))
    ready = [p for p in begun if os.path.isfile(os.path.join(out, p, "checkpoint.pt"))]
    again = ["--resume", os.path.join(out, ready[-1])] if ready else [*words, "--out", out]
    status = attempt(again, moment)
    print(json.dumps([moment, ready, status]), flush=True)
"""
FOLDERS = [str(tiny.ROOT / "tests"), str(tiny.ROOT)]


def killed_at(moments: list[float], name: str, folder: Path, steps: int) -> tuple[Path, list]:
    """The run's folder after attempts that were killed: after seconds, or at minus the number of a file's renaming."""
    cfg = tiny.config(folder / f"{name}.yml", name, steps=steps, checkpoint_every=1, evaluated=4)
    words = ["--data", str(tiny.birds()), "--vlm", str(tiny.matcher()), "--cfg", str(cfg), "--device", "cpu"]
    told = json.dumps([name, str(folder / "runs"), words, moments, str(tiny.judge())])
    driver = [sys.executable, "-c", DRIVER.format(folders=FOLDERS), told]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(driver, capture_output=True, text=True, env=environment, check=False)
    attempts = [json.loads(line) for line in done.stdout.splitlines()]
    assert attempts, done.stderr
    assert attempts[-1][2] == 0, done.stdout + done.stderr
    return sorted(folder.glob("runs/*/checkpoint.pt"))[-1].parent, attempts


def assert_same(first: object, second: object) -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


# Most between begin and end of a run, the others inside of its renamings: options, checkpoints and their former, log.
MANY = {
    name: [*(random.Random(f"{name}{i}").uniform(0.05, 1.5) for i in range(20)), *range(-12, 0)]
    for name in ("dfgan", "attngan")
}


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("dfgan", [-7, -4]),
        pytest.param("dfgan", MANY["dfgan"], marks=pytest.mark.slow),
        pytest.param("attngan", MANY["attngan"], marks=pytest.mark.slow),
    ],
    ids=["few", "dfgan", "attngan"],
)
def test_kills_from_outside_change_nothing(name: str, moments: list[float], tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    steps = 3 if len(moments) == 2 else 6
    whole, _ = killed_at([], name, tmp_path / "whole", steps)
    moments = random.Random(name).sample(moments, len(moments))
    killed, attempts = killed_at(moments, name, tmp_path / "killed", steps)
    ended = sum(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL for *_, status in attempts)
    assert ended >= len(moments) / 2
    for file in ("checkpoint.pt",):
        assert_same(*(torch.load(folder / file, weights_only=True) for folder in (whole, killed)))
    rows = [(folder / "log.jsonl").read_text(encoding="utf-8") for folder in (whole, killed)]
    assert rows[0] == rows[1]
    tables = [json.loads((folder / "evaluation.json").read_text(encoding="utf-8")) for folder in (whole, killed)]
    assert tables[0]["rows"] == tables[1]["rows"]
