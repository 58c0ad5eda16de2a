"""Two processes: a bad step of one is one of both, and so is the cause of its end."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from test_runs import BASELINES, FOLDERS, free_port, together

from vlm_plugin.data import CaptionedImages
from vlm_plugin.data.records import bad
from vlm_plugin.files import not_finite, read_file
from vlm_plugin.training import failures
from vlm_plugin.training.run_folder import Log

BAD = """
import os, sys
sys.path[:0] = {folders!r}
import torch
from test_ranks import break_a_picture
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

break_a_picture(rank)
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
        words = ["--data", tiny.birds(), "--out", tmp_path / name, "--cfg", cfg, "--vlm", tiny.matcher(), "--skip-bad"]
        runs.append((name, free_port(), [str(word) for word in (*words, "--device", "cpu")]))
    statuses, outputs = together(BAD.format(folders=FOLDERS, judge=str(tiny.judge()), runs=runs))
    assert statuses == [0, 0], outputs
    said = [[line for line in out.splitlines() if line.startswith("SAID ")] for out, _ in outputs]
    assert said[0] == said[1]
    assert len(said[0]) == 6
    # And a picture that cannot be read ends none of them with --skip-bad.
    assert (tmp_path / "attngan" / "00000-attngan-vlm" / "skipped.txt").exists() != (
        tmp_path / "dfgan" / "00000-dfgan-vlm" / "skipped.txt"
    ).exists()
    for name in BASELINES:
        (folder,) = (tmp_path / name).iterdir()
        rows = {row["step"]: row.get("not_finite") for row in Log.read(folder / "log.jsonl")}
        assert rows == {0: "pictures", 1: None, 2: "the loss of generator", 3: None}
        saved = read_file(folder / "checkpoint.pt", "checkpoint")
        assert saved["bad_steps"] == {"total": 2, "in_a_row": 0}
        assert not_finite(saved) is None


FAILS = """
import os, sys
sys.path[:0] = {folders!r}
from test_runs import BASELINES, Judge, folder_of
from vlm_plugin.data import CaptionedImages
from vlm_plugin.gans.run import run
from test_ranks import break_a_picture

judge = Judge.load({judge!r})
Judge.load = classmethod(lambda cls: judge)
os.environ["MASTER_PORT"] = {port!r}
break_a_picture(int(os.environ["RANK"]))
run("dfgan", folder_of("dfgan"), BASELINES["dfgan"].trainer, {words!r})
"""


def break_a_picture(rank: int) -> None:
    """Have rank 1 meet a bad one in its second batch."""
    draw, drawn = CaptionedImages.__getitem__, []

    def draw_or_fail(self: CaptionedImages, index: int) -> object:
        drawn.extend([index] * self.train)
        if rank == 1 and self.train and len(drawn) == 6:
            raise bad("bird.jpg", "expected a picture, got none")
        return draw(self, index)

    CaptionedImages.__getitem__ = draw_or_fail


def last_lines(outputs: list[tuple[str, str]]) -> list[str]:
    return [(error.strip().splitlines() or [""])[-1] for _, error in outputs]


def test_the_cause_of_a_failure_is_the_last_line_of_every_rank(tmp_path: Path) -> None:
    cfg = tiny.config(tmp_path / "tiny.yml", steps=4, evaluated=4)
    words = ["--data", tiny.birds(), "--out", tmp_path / "runs", "--cfg", cfg, "--text-encoder", tiny.matcher()]
    words = [str(word) for word in (*words, "--device", "cpu")]
    statuses, outputs = together(FAILS.format(folders=FOLDERS, judge=str(tiny.judge()), port=free_port(), words=words))
    said = "bird.jpg: expected a picture, got none (--skip-bad leaves out what cannot be used)"
    last = last_lines(outputs)
    assert statuses == [1, 1], outputs
    # By itself, when the connection broke, or ended while it waited.
    assert last[0].removeprefix("dfgan: ") == f"rank 1 stopped: ValueError: {said}"
    assert last[1] == f"dfgan: {said}"


WAITS = """
import os, sys, time
sys.path[:0] = {folders!r}
import torch
from vlm_plugin.training import failures
from vlm_plugin.training.ranks import barrier, join_ranks

failures._GRACE, failures._MEET = 0.2, 60.0
os.environ["MASTER_PORT"] = {port!r}
first = int(os.environ["RANK"]) == 1
try:
    with failures.one_cause():
        if first and {how!r} == "before they meet":
            raise ValueError("a: b")
        join_ranks(torch.device("cpu"))
        if first:
            failures._listener.tell(ValueError("a: b"))
            time.sleep(2)
            os._exit(3)
        barrier()
except ValueError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(("how", "status"), [("before they meet", 1), ("and stays", 3)])
def test_a_rank_that_waits_for_ever_ends_as_well(how: str, status: int) -> None:
    """As with NCCL, where nothing breaks when a rank is gone; or where ranks wait for one that never comes."""
    statuses, outputs = together(WAITS.format(folders=FOLDERS, port=free_port(), how=how))
    assert statuses == [1, status], outputs
    assert last_lines(outputs)[0] == "rank 1 stopped: ValueError: a: b"


def test_errors_that_are_their_own_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that fail alike each says its own; one that only follows says the first one's."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(failures._Listener, "_listen", lambda self: None)
    listener = failures._Listener()
    listener.heard = "rank 1 stopped: ValueError: a: b"
    assert listener.tell(ValueError("a: b")) is None
    assert listener.tell(KeyboardInterrupt()) is None
    assert listener.tell(RuntimeError("connection closed by peer")) == listener.heard
    assert listener.tell(OSError("c: d")) == "c: d; rank 1 stopped: ValueError: a: b"


def test_a_single_process_ends_with_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(KeyError), failures.one_cause():
        raise KeyError("a")
