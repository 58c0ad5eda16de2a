"""The cost benchmark: what it counts on networks small enough to count by hand, what it derives, and a tiny run."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from easydict import EasyDict
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cost.cost import (
    ARMS,
    HALVES,
    PICTURES,
    PRECISIONS,
    STEPS,
    Operations,
    SavedBytes,
    count_step,
    derive,
    extrapolated,
    hours,
    main,
    measure,
    settings_of,
    sizes_of,
    table,
    tensor_bytes,
    workplace,
)


def test_a_parabola_goes_on() -> None:
    def value(batch: int) -> int:
        return 10**15 + 3 * batch + 7 * batch**2

    points = {str(batch): value(batch) for batch in (2, 3, 4)}
    for batch in (1, 2, 4, 24, 1000):
        assert extrapolated(points, batch) == value(batch)
    # What is linear stays linear, and two points are a line.
    assert extrapolated({2: 5, 3: 7, 4: 9}, 24) == extrapolated({2: 5, 3: 7}, 24) == 49


def test_hours() -> None:
    # 3,600 steps of a million million operations at a million million a second.
    assert hours(3600, 1e12, 1) == pytest.approx(1)
    assert hours(200_000, 4e12, 20) == pytest.approx(200_000 * 0.2 / 3600)


def test_operations_by_hand() -> None:
    x, network = torch.randn(5, 3, requires_grad=True), nn.Linear(3, 4, bias=False)
    with Operations() as counter:
        network(x).sum().backward()
    # Forward, the gradient of the input and that of the weight: 5 * 3 * 4 multiplications and additions each.
    assert counter.total == 3 * 2 * 5 * 3 * 4


def test_operations_as_torch_counts_them() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 4, stride=2), nn.Flatten())
    network.append(nn.Linear(2 * 3 * 3, 5))
    images = torch.randn(2, 3, 8, 8)
    with FlopCounterMode(display=False) as theirs:
        network(images).square().sum().backward()
    with Operations() as ours:
        network(images).square().sum().backward()
    assert ours.total == theirs.get_total_flops() > 0


def test_operations_of_double_backward() -> None:
    x, network = torch.randn(5, 3, requires_grad=True), nn.Linear(3, 4, bias=False)
    with Operations() as counter:
        (slope,) = torch.autograd.grad(network(x).square().sum(), x, create_graph=True)
        first = counter.total
        slope.square().sum().backward()
    product = 2 * 5 * 3 * 4
    assert first == 2 * product
    # Through slope = d(y) W: gradients of both factors; through y = x W': again both.
    assert counter.total - first == 4 * product


def test_saved_bytes_by_hand() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    first, second = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)
    saved = SavedBytes([*first.parameters(), *second.parameters()])
    with saved.counting():
        hidden = first(x)  # keeps x for the weight's gradient
        assert saved.live == 5 * 3 * 4
        active = torch.tanh(hidden)  # keeps its result
        assert saved.live == (5 * 3 + 5 * 4) * 4
        loss = second(active).sum()  # keeps the same storage
        assert saved.live == (5 * 3 + 5 * 4) * 4
    del hidden, active
    assert saved.live == (5 * 3 + 5 * 4) * 4
    loss.backward()
    assert saved.live == 0
    # The same without the exception: each weight of 12 and 8 numbers once.
    everything = SavedBytes()
    with everything.counting():
        kept = second(torch.tanh(first(x)))
    assert everything.live == (5 * 3 + 5 * 4 + 12 + 8) * 4
    del kept
    assert everything.live == 0


def test_a_view_keeps_its_whole_storage() -> None:
    saved, whole = SavedBytes(), torch.randn(10, requires_grad=True)
    with saved.counting():
        kept = [whole[:2].square(), whole[4:6].square(), whole.square()]
    assert saved.live == 10 * 4
    kept.pop()
    assert saved.live == 10 * 4
    kept.clear()
    assert saved.live == 0


def test_tensor_bytes() -> None:
    content = {"a": torch.zeros(3), "b": [torch.zeros(2, dtype=torch.float64), None, ("word", torch.zeros(1).bool())]}
    assert tensor_bytes(content) == 3 * 4 + 2 * 8 + 1


def measurement() -> dict:
    def same(value: int) -> dict[str, int]:
        return dict.fromkeys("234", value)

    return {
        "operations": {arm: {b: int(b) * 10**9 * (1 + (arm == "dual")) for b in "234"} for arm in ARMS},
        "saved": {
            precision: {
                "plain": {"discriminator": same(2**30), "generator": same(0)},
                "dual": {"discriminator": same(2**30), "generator": {b: int(b) ** 2 * 2**28 for b in "234"}},
            }
            for precision in PRECISIONS
        },
        "seconds": {"plain": [1.0, 2.0, 9.0], "dual": [3.0, 3.0, 1.0]},
        "fixed": {"networks": 2**29, "adam": 2**29},
    }


def test_derived_and_table() -> None:
    row = derive(measurement(), batch=10, steps=36_000, pictures=9_000)
    assert (row["batch"], row["steps"], row["epochs"]) == (10, 36_000, 40)
    assert row["seconds_ratio"] == 1.5
    assert row["operations"] == {"plain": 10e9, "dual": 20e9}
    assert row["bytes"]["float32"] == {"plain": 2 * 2**30, "dual": 26 * 2**30}
    lines = table({"some/config": row}, tflops=0.1).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    expected = "| some/config | 10 | 36,000 | 40 | 10 / 20 | 1.50 | 2.0 / 26.0 | 2.0 / 26.0 | 1 / 2 |"
    assert lines[2] == expected
    assert "0.1 TFLOP/s" in lines[0]
    assert "Derived, not run" in lines[-1]
    assert "assumption" in lines[-1]


@pytest.mark.parametrize("baseline", ["dfgan", "attngan"])
def test_a_larger_batch_costs_what_was_predicted(baseline: str) -> None:
    torch.manual_seed(0)
    place = workplace(baseline, EasyDict(tiny.settings(baseline)), tiny.build_matcher())
    calls = []
    measured = measure(place, lambda: calls.append(1))
    assert len(calls) == STEPS
    assert json.loads(json.dumps(measured)) == measured
    for arm in ARMS:
        counted = count_step(place, arm, 9, torch.float32)
        assert extrapolated(measured["operations"][arm], 9) == counted.operations
        for half in HALVES:
            assert extrapolated(measured["saved"]["float32"][arm][half], 9) == counted.saved[half] > 0
    assert measured["operations"]["dual"]["4"] > measured["operations"]["plain"]["4"]
    fixed = measured["fixed"]
    trained = sum(p.numel() for n in (place.trainer.generator, *place.trainer.discriminators.values())
                  for p in n.parameters() if p.requires_grad)  # fmt: skip
    assert fixed["gradients"] == 4 * trained
    # Two moments of each number, and a counter for each tensor.
    assert 8 * trained < fixed["adam"] < 8.5 * trained
    assert fixed["matcher"] == tensor_bytes(place.matcher.state_dict())
    assert place.trainer.dtype == torch.float32


@pytest.mark.parametrize("name", PICTURES)
def test_configs_ask_for_whole_trainings(name: str) -> None:
    ((_, baseline, settings),) = settings_of([name])
    assert set(sizes_of(settings)) >= ({"image_size", "nf"} if baseline == "dfgan" else {"gf_dim", "df_dim"})
    assert settings.steps * settings.batch / PICTURES[name] > 100


def test_command_goes_on(tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "cost.json"
    runs = []

    def measure(place: object, advance: object) -> dict:
        runs.append(place)
        return measurement()

    monkeypatch.setattr("benchmarks.cost.cost.full_matcher", lambda: None)
    monkeypatch.setattr("benchmarks.cost.cost.workplace", lambda baseline, settings, matcher: baseline)
    monkeypatch.setattr("benchmarks.cost.cost.measure", measure)
    main(["--configs", "attngan/bird", "--results", str(path)])
    # The same sizes as paper's, and DF-GAN's two are alike.
    main(["--results", str(path), "--tflops", "50"])
    assert runs == ["attngan", "dfgan", "attngan"]
    content = json.loads(path.read_text())
    assert set(content["configs"]) == set(PICTURES)
    assert len(content["measurements"]) == 3
    shown = capsys.readouterr().out
    assert "GPU hours at 50 TFLOP/s" in shown
    assert all(f"| {name} |" in shown for name in PICTURES)
    with pytest.raises(SystemExit):
        main(["--tflops", "0", "--results", str(path)])
