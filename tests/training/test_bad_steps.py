"""Steps with NaN or infinity: passed over in whole, counted, and the same on every rank."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from easydict import EasyDict
from torch import Tensor, nn

from vlm_plugin import VLM, DualVLMLoss, LossOutput
from vlm_plugin.baselines.attngan.trainer import AttnGAN
from vlm_plugin.baselines.dfgan.trainer import DFGAN
from vlm_plugin.data import CaptionedImages, collate, open_split
from vlm_plugin.files import not_finite, read_file
from vlm_plugin.gans.trainer import Trainer
from vlm_plugin.pretraining.losses import Losses, step_losses
from vlm_plugin.pretraining.pretrain import pretrain
from vlm_plugin.training.bad_steps import BadSteps, Guard, Later, Mark, Report, Taken, in_words, load_optimizer

CPU, NAN = torch.device("cpu"), float("nan")
TRAINERS = {"dfgan": DFGAN, "attngan": AttnGAN}
both = pytest.mark.parametrize("name", TRAINERS)


def build(name: str) -> tuple[Trainer, DualVLMLoss, tuple]:
    matcher = VLM.load(tiny.matcher())
    torch.manual_seed(2)
    model = TRAINERS[name](EasyDict(tiny.settings(name, ema=0.9)), matcher, CPU, torch.float32)
    batch = collate(
        [CaptionedImages(open_split(tiny.birds(), "train"), tiny.SIZE, train=False)[i] for i in (0, 10, 30)]
    )
    with torch.no_grad():
        text = matcher.encode_text(batch.captions)
    return model, DualVLMLoss(matcher, lambda_vvm=0.5, lambda_vlm=0.5), (batch, text)


def same(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def picture(model: Trainer, loss: DualVLMLoss, inputs: tuple) -> tuple:
    images = inputs[0].images.clone()
    images[1, 2, 3, 4] = NAN
    return inputs[0]._replace(images=images), inputs[1]


def term(model: Trainer, loss: DualVLMLoss, inputs: tuple) -> tuple:
    forward = loss.forward

    def broken(*arguments: object, **options: object) -> LossOutput:
        total, terms = forward(*arguments, **options)
        return LossOutput(total + float("inf"), {**terms, "vlm_local": torch.tensor(float("inf"))})

    loss.forward = broken
    return inputs


def weight(model: Trainer, loss: DualVLMLoss, inputs: tuple) -> tuple:
    """Every term is finite, and the loss is not."""
    loss.lambda_vvm = 3e38
    return inputs


def gradient(model: Trainer, loss: DualVLMLoss, inputs: tuple) -> tuple:
    parameter = next(iter(model.generator.parameters()))
    handle = parameter.register_hook(lambda found: (handle.remove(), found * NAN)[1])
    return inputs


def huge_gradient(model: Trainer, loss: DualVLMLoss, inputs: tuple) -> tuple:
    """Finite, with an infinite square, which Adam would keep for ever."""
    parameter = next(iter(next(iter(model.discriminators.values())).parameters()))
    handle = parameter.register_hook(lambda found: (handle.remove(), torch.full_like(found, 1e30))[1])
    return inputs


def raised(model: Trainer, loss: DualVLMLoss, inputs: tuple) -> tuple:
    def refuse(*_: object, **__: object) -> LossOutput:
        raise ValueError("fake: expected finite values, got NaN")

    loss.forward = refuse
    return inputs


def activations(model: Trainer, loss: DualVLMLoss, inputs: tuple) -> tuple:
    """In the generator itself: its statistics see them before any loss does."""
    module = next(m for m in model.generator.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    handle = module.register_forward_hook(lambda *_: (handle.remove(), _[2] * NAN)[1])
    return inputs


POISONS = {
    picture: ["pictures"],
    term: ["vlm_local"],
    weight: ["the loss of generator"],
    gradient: ["the gradient of generator."],
    huge_gradient: ["the gradient of discriminator"],
    raised: ["fake: expected finite values, got NaN"],
    activations: ["discriminator", "generator"],
}


@both
@pytest.mark.parametrize("poison", POISONS)
def test_a_bad_step_is_passed_over(name: str, poison: Callable) -> None:
    """Weights, moments, averages and statistics stay; but for a sound update of the discriminators before it."""
    model, loss, inputs = build(name)
    forward, sound = loss.forward, loss.lambda_vvm
    model.step(*inputs, 0, loss)
    assert not model.guard.report().bad
    before, twin = copy.deepcopy(model.state()), build(name)[0]
    bad = poison(model, loss, inputs)
    model.step(*bad, 1, loss)
    report = model.guard.report()
    assert report.bad
    found = report.names()
    for start in POISONS[poison]:
        assert any(part.startswith(start) for part in found), found
    after = model.state()
    assert not_finite(after) is None
    trained = {"discriminator_adam", *model.discriminators} if poison in (term, weight, gradient, raised) else set()
    for part in after:
        assert same(after[part], before[part]) == (part not in trained), part
    # The next one trains, and as it does where that state is resumed.
    loss.forward, loss.lambda_vvm = forward, sound
    twin.load_state(copy.deepcopy(after))
    for each in (model, twin):
        each.step(*inputs, 2, loss)
        assert not each.guard.report().bad
    assert same(model.state(), twin.state())
    assert not same(model.state()["generator"], before["generator"])


def test_errors_of_other_kinds_end_the_step() -> None:
    model, loss, inputs = build("dfgan")
    for error in (ValueError("text: expected Features"), RuntimeError("out of memory"), KeyError("nan")):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        loss.forward = fail
        with pytest.raises(type(error)):
            model.step(*inputs, 0, loss)


def test_sound_pictures_come_as_they_are() -> None:
    guard, images = Guard(CPU, {}), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    (same_images,) = guard.begin(images)
    assert torch.equal(same_images, images)
    assert same_images.stride() == images.stride()
    assert not guard.report().bad
    assert guard.report().names() == []


@pytest.mark.parametrize("fused", [True, None])
def test_an_optimizer_passes_over_a_step(fused: bool | None) -> None:
    """Also the one that is told on the device; its counter of steps stays as well. The same weights in both."""
    network = nn.Linear(2, 1)
    nn.init.ones_(network.weight)
    optimizer = torch.optim.AdamW(network.parameters(), 0.1, fused=fused)
    guard = Guard(CPU, {"net": network})
    for factor in (1.0, NAN, 2.0):
        guard.begin()
        guard.update(optimizer, network(torch.ones(3, 2) * factor).square().mean(), {"net": network}, clip=1.0)
        assert bool(guard.bad) == (factor != factor)
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}
    assert not_finite(network.state_dict()) is None
    other = torch.optim.AdamW(network.parameters(), 0.1)
    load_optimizer(other, optimizer.state_dict())
    assert other.param_groups[0]["fused"] is None


def taken(step: int, bad: bool) -> tuple[Taken, Tensor]:
    flag = torch.tensor(bad)
    return Taken(step, Report(flag, (Mark(("a", "b"), torch.tensor([bad, False])),)), None), flag


def test_counting() -> None:
    counts = BadSteps(3)
    assert counts.counts() == {}
    seen = [
        s.step for number, bad in enumerate([1, 0, 1, 1]) for s in counts.look(*taken(number, bool(bad)), now=False)
    ]
    assert seen == [0, 2, 3]
    assert (counts.total, counts.in_a_row, counts.too_many) == (3, 2, False)
    resumed = BadSteps(3, counts.counts()["bad_steps"])
    (last,) = resumed.look(*taken(4, True), now=True)
    assert last.report.names() == ["a"]
    assert (resumed.total, resumed.too_many) == (4, True)
    assert resumed.words() == ", as in 3 steps in a row"


def test_a_flag_of_a_device_is_read_a_step_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: in the order of the steps, and at once where it is asked for."""
    read = []
    monkeypatch.setattr(Later, "__init__", lambda self, flag: setattr(self, "flag", flag))
    monkeypatch.setattr(Later, "read", lambda self: read.append(self.flag.number) or self.flag.number in (0, 1))

    class Flag:
        device = torch.device("cuda", 0)

        def __init__(self, number: int) -> None:
            self.number = number

    counts, told = BadSteps(2), []
    for number in range(4):
        for seen in counts.look(Taken(number, None, None), Flag(number), now=number == 3):
            told.append((seen.step, counts.in_a_row, counts.too_many))
        assert read == list(range(number)) or number == 3
    assert read == [0, 1, 2, 3]
    assert told == [(0, 1, False), (1, 2, True)]
    assert counts.in_a_row == 0


def test_long_lists_of_names_are_cut() -> None:
    assert in_words(["the gradient of a", "a", "b", "a"]) == "a, b"
    assert in_words(["the gradient of a"]) == "the gradient of a"
    assert in_words(list("abcdefgh")) == "a, b, c, d, e, f and 2 more"


# ---------------------------------------------------------------------------------------------------------------------
# Pretraining
# ---------------------------------------------------------------------------------------------------------------------

RUN = {"epochs": 2, "batch": 13, "embed_dim": 8, "image_size": 16, "device": "cpu", "precision": "float32"}


def breaking(at: set[int], how: str, steps: list[int]) -> Callable[..., Losses]:
    def losses_of(vlm: VLM, *arguments: object) -> Losses:
        steps.append(len(steps))
        bad = steps[-1] in at
        if bad and how == "activations":
            handle = vlm.image_encoder.stem_norm.register_forward_hook(lambda *_: (handle.remove(), _[2] * NAN)[1])
        losses = step_losses(vlm, *arguments)
        if bad and how == "error":
            raise ValueError("images: expected finite values, got NaN")
        return losses._replace(total=losses.total * NAN) if bad and how == "total" else losses

    return losses_of


@pytest.mark.parametrize("how", ["total", "activations", "error"])
def test_pretraining_passes_over(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlm_plugin.pretraining.pretrain.step_losses", breaking({1, 4}, how, steps := []))
    vlm = pretrain(tiny.birds(), tmp_path / "m.vlm.pt", **RUN)
    assert len(steps) == 6
    assert not_finite(vlm.state_dict()) is None
    assert "passed over 2 steps with NaN or infinity" in capsys.readouterr().out


def test_pretraining_stops_after_too_many_also_across_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 2 ends the first epoch, 3 and 4 begin the second."""
    monkeypatch.setattr("vlm_plugin.pretraining.pretrain.step_losses", breaking({2, 3, 4}, "total", []))
    out = tmp_path / "m.vlm.pt"
    with pytest.raises(
        ValueError, match=r"epoch 2: .* in the loss of matcher at step 3, as in 2 steps in a row"
    ) as stop:
        pretrain(tiny.birds(), out, **RUN, max_bad_steps=2)
    batch = read_file(tmp_path / "m.vlm.pt.bad_batch.pt", "batch")
    assert str(tmp_path / "m.vlm.pt.bad_batch.pt") in str(stop.value)
    assert batch["batch"]["images"].shape == batch["positives"]["images"].shape == (13, 3, 16, 16)
    # The state says that one was bad already.
    monkeypatch.setattr("vlm_plugin.pretraining.pretrain.step_losses", breaking({0, 1}, "total", []))
    with pytest.raises(ValueError, match="at step 4, as in 3 steps in a row"):
        pretrain(tiny.birds(), out, **RUN, max_bad_steps=3)
    with pytest.raises(ValueError, match="--max-bad-steps: expected a whole number from 1 up, got 0"):
        pretrain(tiny.birds(), out, **RUN, max_bad_steps=0)
    monkeypatch.setattr("vlm_plugin.pretraining.pretrain.step_losses", step_losses)
    assert not_finite(pretrain(tiny.birds(), out, **RUN).state_dict()) is None
