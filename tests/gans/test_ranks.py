"""Two processes: a bad step of one is one of both."""

from __future__ import annotations

from pathlib import Path

import tiny
from test_runs import BASELINES, FOLDERS, free_port, together

from vlm_plugin.files import not_finite, read_file
from vlm_plugin.training.run_folder import Log

BAD = """
import os, sys
sys.path[:0] = {folders!r}
import torch
from test_runs import BASELINES, Judge, fingerprint, folder_of
from vlm_plugin.gans.run import run

judge = Judge.load({judge!r})
Judge.load = classmethod(lambda cls: judge)
rank, nan, trainers = int(os.environ["RANK"]), float("nan"), []

def build(*arguments):
    class Poisoned(BASELINES[name].trainer):
        def step(self, batch, text, step, vlm_loss):
            # On rank 1 alone: a picture, before any range is known, and the generator's loss.
            if (step, rank) == (0, 1):
                batch = batch._replace(images=batch.images * nan)
            self.poison = (step, rank) == (2, 1)
            return super().step(batch, text, step, vlm_loss)

        def update_generator(self, loss):
            super().update_generator(loss * nan if self.poison else loss)

    trainers.append(Poisoned(*arguments))
    return trainers[-1]

for name, port, words in {runs!r}:
    os.environ["MASTER_PORT"] = port
    run(name, folder_of(name), build, words)
    state = trainers[-1].state()
    for part, network in dict(trainers[-1].discriminators, generator=trainers[-1].generator).items():
        print("SAID", name, part, fingerprint(dict(network.named_parameters())))
"""


def test_a_bad_step_of_one_rank_is_one_of_both(tmp_path: Path) -> None:
    runs = []
    for name in BASELINES:
        cfg = tiny.config(tmp_path / f"{name}.yml", name, steps=4, evaluated=4)
        words = ["--data", tiny.birds(), "--out", tmp_path / name, "--cfg", cfg, "--vlm", tiny.matcher()]
        runs.append((name, free_port(), [str(word) for word in (*words, "--device", "cpu")]))
    statuses, outputs = together(BAD.format(folders=FOLDERS, judge=str(tiny.judge()), runs=runs))
    assert statuses == [0, 0], outputs
    said = [[line for line in out.splitlines() if line.startswith("SAID ")] for out, _ in outputs]
    assert said[0] == said[1]
    assert len(said[0]) == 6
    for name in BASELINES:
        (folder,) = (tmp_path / name).iterdir()
        rows = {row["step"]: row.get("not_finite") for row in Log.read(folder / "log.jsonl")}
        assert rows == {0: "pictures", 1: None, 2: "the loss of generator", 3: None}
        saved = read_file(folder / "checkpoint.pt", "checkpoint")
        assert saved["bad_steps"] == {"total": 2, "in_a_row": 0}
        assert not_finite(saved) is None
