"""What all trainers share: data that depend on position alone, logs and checkpoints that survive a kill, ranks."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny
import torch
import torch.multiprocessing
from torch import nn
from torch.utils.data import Dataset

from vlm_plugin import distributed
from vlm_plugin.data import CaptionedImages, collate, open_split
from vlm_plugin.data.dataset import Batch, Sample
from vlm_plugin.data.records import BadSampleError
from vlm_plugin.gans.loop import ramp
from vlm_plugin.gans.trainer import update_average
from vlm_plugin.training.device import autocast, choose_device, choose_precision
from vlm_plugin.training.ranks import average_gradients, barrier, from_all_ranks, join_ranks, leave_ranks
from vlm_plugin.training.run_folder import Log, StopSignal, new_run_folder, only_writer, shared_run_folder
from vlm_plugin.training.skipped import LeftOut, usable_indices
from vlm_plugin.training.stream import Stream, check_seed, endless_batches, mix, noise

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> CaptionedImages:
    return CaptionedImages(open_split(tiny.birds(), "train"), 16, train=True)


def same_sample(a: Sample, b: Sample) -> bool:
    return torch.equal(a.image, b.image) and a[1:] == b[1:]


def same_batch(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and a.captions == b.captions and a.keys == b.keys


def take(count: int, dataset: Dataset, batch: int, seed: int, skip_bad: bool = False, **options: int) -> list[Batch]:
    stream = Stream(dataset, seed, skip_bad)
    return list(itertools.islice(endless_batches(stream, batch, collate, device=CPU, **options), count))


@pytest.mark.parametrize("name", ["mps", "xpu", "meta", "gpu", "mps:0"])
def test_devices_that_are_neither_cpu_nor_cuda(name: str) -> None:
    with pytest.raises(ValueError, match=f"^--device {name}: expected cpu, cuda or cuda:NUMBER$"):
        choose_device(name)


# ---------------------------------------------------------------------------------------------------------------------
# The stream
# ---------------------------------------------------------------------------------------------------------------------


def test_without_classes_a_batch_larger_than_the_split_has_no_picture_as_its_own_negative() -> None:
    records = [record._replace(class_id=None) for record in open_split(tiny.birds(), "train")[:3]]
    (batch,) = take(1, CaptionedImages(records, 16, train=True), 12, 0)
    assert sorted(batch.indices.tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(batch.captions)) > 3
    same_picture = batch.indices[:, None] == batch.indices
    assert torch.equal(batch.class_ids[:, None] == batch.class_ids, same_picture)


def test_a_position_is_the_same_sample_for_ever(images: CaptionedImages) -> None:
    stream = Stream(images, seed=3)
    torch.manual_seed(0)
    first = [stream[p] for p in (0, 7, 39, 40, 95)]
    torch.manual_seed(99)
    other = Stream(images, seed=3)
    second = {p: other[p] for p in (95, 3, 40, 7, 81, 39, 7, 0)}
    for p, sample in zip((0, 7, 39, 40, 95), first, strict=True):
        assert same_sample(sample, second[p])
    assert not same_sample(first[0], Stream(images, seed=4)[0])


def test_the_stream_leaves_the_global_randomness_alone(images: CaptionedImages) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Stream(images, 1)[5]
    assert torch.equal(torch.rand(3), expected)


def test_every_epoch_is_another_order_of_all_samples(images: CaptionedImages) -> None:
    stream = Stream(images, 0)
    orders = [[stream[epoch * 40 + p].index for p in range(40)] for epoch in range(3)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_augmentation_differs_between_epochs(images: CaptionedImages) -> None:
    stream = Stream(images, 0)
    views = [stream[p] for p in range(80)]
    assert sum(same_sample(a, b) for a in views[:40] for b in views[40:] if a.index == b.index) < 10


def test_batches_from_step_k_are_those_of_the_uninterrupted_run(images: CaptionedImages) -> None:
    whole = take(14, images, 4, 7)
    torch.manual_seed(5)
    resumed = take(5, images, 4, 7, first_step=9)
    assert all(itertools.starmap(same_batch, zip(whole[9:], resumed, strict=True)))
    # More than one epoch, a batch across its end included.
    assert len({key for batch in whole[:10] for key in batch.keys}) == 40


def test_a_batch_may_be_larger_than_the_data(images: CaptionedImages) -> None:
    (batch,) = take(1, images, 100, 0)
    assert len(batch.keys) == 100


def test_loader_processes_change_nothing_and_survive_ctrl_c(images: CaptionedImages) -> None:
    alone = take(6, images, 3, 2)
    batches = endless_batches(Stream(images, 2), 3, collate, device=CPU, workers=2)
    found = [next(batches), next(batches)]
    workers = torch.multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        # A terminal sends it to the whole group of processes.
        os.kill(worker.pid, signal.SIGINT)
    found += list(itertools.islice(batches, 4))
    assert all(itertools.starmap(same_batch, zip(alone, found, strict=True)))


def test_a_signal_to_the_whole_group_leaves_the_loaders_alive() -> None:
    """As torchrun, timeout and schedulers send it: the trainer finishes its step, and its loaders end with it."""
    code = f"""
import itertools, os, sys
sys.path[:0] = {[str(tiny.ROOT), str(tiny.ROOT / "tests")]!r}
import torch, tiny
from vlm_plugin.data import CaptionedImages, open_split
from vlm_plugin.data.dataset import collate
from vlm_plugin.training.run_folder import StopSignal
from vlm_plugin.training.stream import Stream, endless_batches

if __name__ == "__main__":
    images = CaptionedImages(open_split({str(tiny.birds())!r}, "train"), tiny.SIZE, train=True)
    with StopSignal() as stop:
        batches = endless_batches(Stream(images, 2), 3, collate, device=torch.device("cpu"), workers=2)
        next(batches), next(batches)  # one of each worker: both are past their beginning
        print(*(child.pid for child in torch.multiprocessing.active_children()), flush=True)
        while not stop.asked:
            next(batches)
        print(len(list(itertools.islice(batches, 9))), flush=True)
"""
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    workers = [int(pid) for pid in done.stdout.readline().split()]
    assert len(workers) == 2
    os.killpg(done.pid, signal.SIGTERM)
    assert done.communicate(timeout=60)[0].split() == ["9"]
    assert done.returncode == 0
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_two_ranks_share_each_global_batch(images: CaptionedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = take(4, images, 6, 1)
    halves = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        halves.append(take(4, images, 3, 1))
    for batch, left, right in zip(whole, *halves, strict=True):
        assert batch.keys == left.keys + right.keys
        assert torch.equal(batch.images, torch.cat([left.images, right.images]))


def test_what_a_sample_draws_from_torch_depends_on_its_position() -> None:

    class Draws(Dataset):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> float:
            return float(torch.rand(()))

    stream = Stream(Draws(), 0)
    values = [stream[p] for p in range(50)]
    assert values == [stream[p] for p in range(50)]
    assert len(set(values)) == 50


# ---------------------------------------------------------------------------------------------------------------------
# Samples that cannot be used
# ---------------------------------------------------------------------------------------------------------------------


class Flawed(Dataset):
    """Of ten samples, those named in `bad` cannot be used."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            error = BadSampleError(f"{index}.jpg: damaged")
            error.where = f"{index}.jpg"
            raise error
        return Sample(torch.rand(1), "a", 0, None, str(index), index)


def test_a_bad_sample_gives_way_to_another_decided_by_its_position_alone() -> None:
    whole, flawed = Stream(Flawed(set()), 3), Stream(Flawed({2, 5}), 3, skip_bad=True)
    torch.manual_seed(0)
    samples = [flawed[p] for p in range(200)]
    torch.manual_seed(9)
    other = Stream(Flawed({2, 5}), 3, skip_bad=True)
    assert all(same_sample(samples[p], other[p]) for p in reversed(range(200)))
    stand_ins = []
    for p, sample in enumerate(samples):
        expected = whole[p]
        if expected.index in (2, 5):
            stand_ins.append(sample)
            assert sample.skipped[0] == f"{expected.index}.jpg"
            assert set(sample.skipped) <= {"2.jpg", "5.jpg"}
        else:
            assert same_sample(sample, expected)
            assert sample.skipped == ()
    assert len(stand_ins) == 40
    assert {sample.index for sample in stand_ins} == set(range(10)) - {2, 5}
    assert any(len(sample.skipped) > 1 for sample in stand_ins)
    assert len({float(sample.image) for sample in stand_ins}) == 40  # each augmented in its own way
    assert [s.index for s in samples] != [Stream(Flawed({2, 5}), 4, skip_bad=True)[p].index for p in range(200)]


def test_a_bad_sample_leaves_the_global_randomness_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    stream = Stream(Flawed(set(range(9))), 0, skip_bad=True)
    assert [stream[p].index for p in range(10)] == [9] * 10
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_stops_the_batches_with_its_own_words(workers: int) -> None:
    batches = endless_batches(Stream(Flawed({2}), 0), 5, collate, device=CPU, workers=workers)
    with pytest.raises(BadSampleError) as caught:
        list(itertools.islice(batches, 2))
    assert str(caught.value) == "2.jpg: damaged"
    assert caught.value.where == "2.jpg"


def test_a_batch_that_cannot_be_made_stops_in_the_same_way() -> None:
    def refuse(samples: list[Sample]) -> Batch:
        raise BadSampleError("key: no words")

    with pytest.raises(BadSampleError, match=r"^key: no words$"):
        next(endless_batches(Stream(Flawed(set()), 0), 5, refuse, device=CPU, workers=1))


def test_batches_say_what_was_left_out_whatever_the_number_of_processes() -> None:
    first, second = (take(4, Flawed({1, 7}), 5, 0, skip_bad=True, workers=workers) for workers in (0, 2))
    assert all(itertools.starmap(same_batch, zip(first, second, strict=True)))
    assert [batch.skipped for batch in first] == [batch.skipped for batch in second]
    for epoch in (first[:2], first[2:]):
        assert {name for batch in epoch for name in batch.skipped} == {"1.jpg", "7.jpg"}


def test_nothing_but_bad_samples_is_an_end() -> None:
    message = r"expected one usable sample in 100, found none; the last one: \d\.jpg: damaged"
    with pytest.raises(ValueError, match=message) as caught:
        take(1, Flawed(set(range(10))), 2, 0, skip_bad=True)
    assert not isinstance(caught.value, BadSampleError)  # to leave it out is what was tried


def test_usable_indices_in_their_order() -> None:
    indices, skipped = usable_indices(Flawed({0, 4}), skip_bad=True)
    assert indices == [1, 2, 3, 5, 6, 7, 8, 9]
    assert skipped == ["0.jpg", "4.jpg"]
    with pytest.raises(BadSampleError, match=r"0\.jpg: damaged"):
        usable_indices(Flawed({0, 4}), skip_bad=False)
    with pytest.raises(ValueError, match=r"expected one usable sample in 10, found none; the last one: 9\.jpg"):
        usable_indices(Flawed(set(range(10))), skip_bad=True)


def test_what_was_left_out_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "skipped.txt"
    left_out = LeftOut(path, keep=True)
    left_out.add([])
    left_out.report()
    assert not path.exists()
    assert capsys.readouterr().out == ""
    left_out.add(["b/ö.jpg", "c"])
    left_out.report()
    assert capsys.readouterr().out == f"left out 2 unusable pictures: see {path}\n"
    name = b"a/\xff.jpg".decode("utf-8", "surrogateescape")  # a file name that is no UTF-8
    resumed = LeftOut(path, keep=True)
    resumed.add([name, "c"])
    assert LeftOut(path, keep=True).names == resumed.names == {name, "b/ö.jpg", "c"}
    lines = path.read_bytes().split(b"\n")
    assert lines[1:] == ["b/ö.jpg".encode(), b"c", b""]
    assert os.listdir(tmp_path) == ["skipped.txt"]
    assert LeftOut(path, keep=False).names == set()
    assert not path.exists()


def test_what_was_left_out_is_listed_where_it_lies_now(tmp_path: Path) -> None:
    path = tmp_path / "skipped.txt"
    LeftOut(path, keep=True).add(["/old/a.jpg", "/old/b.txt, line 2", "/older/c.jpg", "old/key", "/old"])
    left_out = LeftOut(path, keep=True)
    left_out.move(Path("/old"), Path("new/data"))
    expected = {"new/data/a.jpg", "new/data/b.txt, line 2", "/older/c.jpg", "old/key", "/old"}
    assert left_out.names == expected
    assert LeftOut(path, keep=True).names == expected


def test_only_rank_0_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LeftOut(tmp_path / "skipped.txt", keep=True).add(["a"])
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    left_out = LeftOut(tmp_path / "skipped.txt", keep=False)
    left_out.add(["b"])
    assert left_out.names == {"b"}
    assert (tmp_path / "skipped.txt").read_text() == "a\n"


# ---------------------------------------------------------------------------------------------------------------------
# Seeds
# ---------------------------------------------------------------------------------------------------------------------


def test_mix_tells_keys_apart() -> None:
    keys = list(itertools.product(range(12), range(12), range(3))) + list(itertools.product(range(40), repeat=2))
    seeds = [mix(*key) for key in keys]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix(-1) == mix(-1)  # a negative seed is one, too


def test_seeds_are_those_that_mix_tells_apart() -> None:
    assert [check_seed(seed) for seed in (0, 2**32 - 1)] == [0, 2**32 - 1]
    for seed in (-1, 2**32, 2**80):
        with pytest.raises(ValueError, match=f"seed: expected a number from 0 to 4294967295, got {seed}"):
            check_seed(seed)


def test_noise_depends_on_shape_and_key_alone() -> None:
    torch.manual_seed(1)
    values = noise((50, 40), CPU, 0, 3)
    torch.manual_seed(2)
    assert torch.equal(values, noise((50, 40), CPU, 0, 3))
    assert not torch.equal(values, noise((50, 40), CPU, 3, 0))
    assert abs(float(values.mean())) < 0.1
    assert float(values.std()) == pytest.approx(1, abs=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# Logs, files, folders, signals
# ---------------------------------------------------------------------------------------------------------------------


def test_log_is_cut_at_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path)
    for step in range(5):
        log.add(step=step, loss=torch.tensor(step / 2))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    assert [row["step"] for row in Log.read(path)] == [0, 1, 2, 3, 4]
    resumed = Log(path, first_step=3)
    resumed.add(step=3, loss=7.0)
    assert Log.read(path) == [
        {"step": 0, "loss": 0.0}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 7.0},
    ]  # fmt: skip
    assert path.read_text(encoding="utf-8").endswith("}\n")
    assert os.listdir(tmp_path) == ["log.jsonl"]


DAMAGED = (
    b"", b"null", b"[1, 2]", b"7", b"{}", b'{"loss": 1.0}', b'{"step": null}', b'{"step": "3"}', b'{"step": true}',
    b'{"step": NaN}', b'{"step": 1e999}', b'{"step": [1]}', b'{"step": 1', b"\xff\xfe\x00", b'{"step": 1, "\xe9": 2}',
    b"[" * 100_000, b'{"step": ' + b"9" * 5000 + b"}", b"\x00\x00\x00",
)  # fmt: skip


@pytest.mark.parametrize("damaged", DAMAGED, ids=lambda line: line[:12])
def test_a_damaged_line_is_passed_over_and_counted(
    damaged: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 0}\n' + damaged + b'\n{"step": 1}\n' + damaged + b'\n{"step": 2, "lo')
    assert Log.read(path) == [{"step": 0}, {"step": 1}]
    Log(path, first_step=2).add(step=2)
    told = "" if not damaged else f"{path}: passed over 2 damaged lines, which the curves will lack\n"
    assert capsys.readouterr().out == told
    # Once: what is written again is whole.
    assert path.read_text(encoding="utf-8") == '{"step": 0}\n{"step": 1}\n{"step": 2}\n'
    Log(path, first_step=3)
    assert capsys.readouterr().out == ""


def test_a_new_log_is_empty_and_a_missing_one_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert Log.read(path) == []
    Log(path).add(step=0)
    assert Log.read(path) == [{"step": 0}]
    Log(path)
    assert Log.read(path) == []


def test_values_that_are_no_numbers_survive_the_log(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.add(step=0, loss=torch.tensor(float("nan")), other=float("inf"))
    (row,) = Log.read(log.path)
    assert row["loss"] != row["loss"]
    assert row["other"] == float("inf")


def test_only_rank_0_writes_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    Log(path).add(step=0)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    Log(path, 0).add(step=1)
    assert Log.read(path) == [{"step": 0}]


@pytest.mark.parametrize(
    ("step", "start", "length", "expected"),
    [
        (0, 0, 10, 0.0), (5, 0, 10, 0.5), (10, 0, 10, 1.0), (11, 0, 10, 1.0), (99, 100, 50, 0.0), (100, 100, 50, 0.0),
        (125, 100, 50, 0.5), (10, 10, 0, 0.0), (11, 10, 0, 1.0), (1, 0, 0, 1.0), (5, 9, -3, 0.0),
    ],
)  # fmt: skip
def test_ramp(step: int, start: int, length: int, expected: float) -> None:
    assert ramp(step, start, length) == expected


def test_stop_signal_is_noticed_once_and_given_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        with StopSignal() as stop:
            assert not stop.asked
            os.kill(os.getpid(), number)
            assert stop.asked
            assert stop.number == number
            # The next one does what it would have done without us.
            assert {n: signal.getsignal(n) for n in before} == before
    assert {n: signal.getsignal(n) for n in before} == before


def test_signals_are_given_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(RuntimeError), StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) == before


def test_run_folders_are_numbered(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    assert new_run_folder(root, "a").name == "00000-a"
    assert new_run_folder(root, "b").name == "00001-b"
    (root / "00007-old").mkdir()
    (root / "notes").mkdir()
    (root / "2024-05-01").mkdir()
    (root / "00099").write_text("a file without a name")
    assert new_run_folder(root, "c").name == "00008-c"
    (root / "123456-many").mkdir()
    assert new_run_folder(root, "d").name == "123457-d"


def test_a_run_folder_that_appears_meanwhile_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "00000-a").mkdir()
    # As if the other run's folder came up after the look.
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))
    assert new_run_folder(tmp_path, "a").name == "00001-a"


def test_update_average_moves_parameters_and_copies_buffers() -> None:
    average, network = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.running_mean.fill_(5.0)
    update_average(average, network, 0.75)
    assert torch.equal(average.weight, torch.full((2,), 1.5))
    assert torch.equal(average.running_mean, torch.full((2,), 5.0))


# ---------------------------------------------------------------------------------------------------------------------
# Devices and ranks
# ---------------------------------------------------------------------------------------------------------------------


def test_bfloat16_where_the_gpu_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls it supported on older GPUs too, where it is emulated."""
    for native in (True, False):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=native: native or including_emulation,
        )
        found = choose_precision(torch.device("cuda", 0))
        assert found == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:", ""])
def test_unknown_devices_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"--device {name}: expected cpu, cuda or cuda:NUMBER"):
        choose_device(name)


def test_missing_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == CPU
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ValueError, match=f"--device {name}: this machine has no CUDA device"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="--device cuda:2: no CUDA device 2, this machine has 2"):
        choose_device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(ValueError, match="--device cuda: no CUDA device 3"):
        choose_device("cuda")
    assert choose_device("cpu") == CPU


def test_each_process_takes_the_device_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert choose_device() == choose_device("cuda") == torch.device("cuda:2")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert [device.index for device in chosen] == [2, 2, 1]


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_precision(CPU, "float32") == torch.float32
    assert choose_precision(CPU, "bfloat16") == torch.bfloat16
    for there, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there, raising=False)
        assert choose_precision(CPU) == expected
    with pytest.raises(ValueError, match="precision: expected auto, float32 or bfloat16, got 'float16'"):
        choose_precision(CPU, "float16")


def test_autocast_does_nothing_for_float32() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        with autocast(CPU, dtype):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def one_rank(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    join_ranks(CPU)
    network = nn.Linear(2, 1)
    unused = nn.Parameter(torch.zeros(3))
    for value, parameter in enumerate(network.parameters(), start=1):
        parameter.grad = torch.full_like(parameter, 10.0 * value + rank)
    told = average_gradients([*network.parameters(), unused], torch.tensor([0.0, float(rank)]))
    assert torch.equal(told, torch.tensor([0.0, 0.5]))
    assert torch.equal(network.weight.grad, torch.full((1, 2), 10.5))
    assert torch.equal(network.bias.grad, torch.tensor([20.5]))
    assert unused.grad is None
    run = shared_run_folder(folder, f"rank{rank}")
    log = Log(run / "log.jsonl")
    log.add(step=rank)
    assert from_all_ranks([f"of {rank}"] * (1 + rank)) == ["of 0", "of 1", "of 1"]
    barrier()
    assert Log.read(run / "log.jsonl") == [{"step": 0}]
    leave_ranks()
    assert distributed.world_size() == 1


def test_two_processes_average_and_share_a_folder(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_rank, (port, str(tmp_path)), nprocs=2)
    assert os.listdir(tmp_path) == ["00000-rank0"]


def test_one_process_needs_no_group() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    assert average_gradients([parameter], torch.ones(1)) == 1
    barrier()
    leave_ranks()
    assert from_all_ranks(["a"]) == ["a"]
    assert torch.equal(parameter.grad, torch.ones(2))


# ----------------------------------------------------------------------------------------------------------- one writer

HOLDER = """
import sys, time
from pathlib import Path
from vlm_plugin.training.run_folder import only_writer
with only_writer(Path(sys.argv[1]), "at it"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_second_process_is_told_and_a_lock_dies_with_its_process(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.vlm.pt"
    if kind == "folder":
        path.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        refusal = f"^{re.escape(str(path))}: another process is at it; wait, or stop it first$"
        with pytest.raises(ValueError, match=refusal), only_writer(path, "at it"):
            pass
        # Another file of the folder is free.
        with only_writer(tmp_path / "other.vlm.pt", "at it"):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with only_writer(path, "at it"):
        pass
    assert [p for p in tmp_path.rglob("*") if p != path] == []


def test_a_lock_is_passed_on_by_one_to_one(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "x.pt", [0], [0]

    def often() -> None:
        for _ in range(100):
            with contextlib.suppress(ValueError), only_writer(path, "at it"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    writers = [threading.Thread(target=often) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert most == [1]
    assert os.listdir(tmp_path) == []


def test_where_nothing_can_be_written_there_is_no_lock(tmp_path: Path) -> None:
    with only_writer(tmp_path / "nowhere" / "x.pt", "at it"):
        pass
    assert os.listdir(tmp_path) == []
