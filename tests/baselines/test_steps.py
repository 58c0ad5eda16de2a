"""One step of each baseline's trainer, without a run around it, and the floors that are logged beside it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import tiny
import torch
from easydict import EasyDict
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_plugin import TERMS, VLM, DualVLMLoss, Features, distributed
from vlm_plugin.augment import RandomView
from vlm_plugin.baselines.attngan.losses import damsm_loss, discriminator_loss, generator_loss, kl_loss
from vlm_plugin.baselines.attngan.trainer import AttnGAN
from vlm_plugin.baselines.dfgan.trainer import DFGAN
from vlm_plugin.data import CaptionedImages, collate, open_split
from vlm_plugin.data.dataset import Batch
from vlm_plugin.gans.loop import floors_of
from vlm_plugin.gans.trainer import Trainer
from vlm_plugin.training import stream as stream

CPU = torch.device("cpu")
TRAINERS = {"dfgan": DFGAN, "attngan": AttnGAN}
both = pytest.mark.parametrize("name", TRAINERS)
DAMSM = ("damsm_w0", "damsm_w1", "damsm_s0", "damsm_s1")
VALUES = {"dfgan": {"discriminator", "penalty", "generator"}, "attngan": {"discriminator", "generator", "kl"}}


@pytest.fixture
def matcher() -> VLM:
    """Not frozen, as a file gives it."""
    return VLM.load(tiny.matcher())


def build(
    name: str, matcher: VLM, device: torch.device = CPU, dtype: torch.dtype = torch.float32, **changes: object
) -> Trainer:
    torch.manual_seed(2)
    return TRAINERS[name](EasyDict(tiny.settings(name, ema=0.9, **changes)), matcher, device, dtype)


def some(size: int = tiny.SIZE, picked: Sequence[int] = (0, 10, 1, 30)) -> Batch:
    """Birds of three classes: the first and the third are of one."""
    images = CaptionedImages(open_split(tiny.birds(), "train"), size, train=False)
    return collate([images[i] for i in picked])


def encode(matcher: VLM, captions: Sequence[str]) -> Features:
    with torch.no_grad():
        return matcher.encode_text(captions)


def networks(model: Trainer) -> dict[str, nn.Module]:
    return {"generator": model.generator, "average": model.average, **model.discriminators}


def same(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Both
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device", "sizes"),
    [
        ("dfgan", "cpu", {}),
        ("attngan", "cpu", {}),
        pytest.param("dfgan", "cuda", {"image_size": 256, "nf": 32, "z_dim": 100}, marks=pytest.mark.cuda),
        pytest.param(
            "attngan",
            "cuda",
            {
                "base_size": 64, "stages": 3, "gf_dim": 32, "df_dim": 64, "z_dim": 100, "condition_dim": 100,
                "residual_blocks": 2,
            },
            marks=pytest.mark.cuda,
        ),
    ],
)  # fmt: skip
def test_steps_in_bfloat16(name: str, device: str, sizes: dict[str, int], matcher: VLM) -> None:
    """With the dual loss; on a GPU with the published sizes, at 256 pixels."""
    place, matcher = torch.device(device), matcher.to(device)
    vlm_loss = DualVLMLoss(matcher, lambda_vvm=0.1, lambda_vlm=0.1, augment=RandomView())
    model = build(name, matcher, place, torch.bfloat16, **sizes)
    assert model.image_size == (256 if sizes else 32)
    batch = some(model.image_size, range(0, 40, 5) if sizes else range(0, 40, 10))
    batch = batch._replace(images=batch.images.to(place, memory_format=torch.channels_last))
    text, count = encode(matcher, batch.captions), len(batch.captions)
    before = copy.deepcopy(networks(model))
    weights = [p for part in (model.generator, *model.discriminators.values()) for p in part.parameters()]
    # Published names include shortcuts that no picture takes.
    trained = [parameter for parameter in weights if parameter.requires_grad]
    for step in range(2):
        values = model.step(batch, text, step, vlm_loss)
        assert set(values) == VALUES[name] | set(TERMS)
        assert all(bool(value.isfinite()) and not value.requires_grad for value in values.values())
        assert all(bool(parameter.grad.isfinite().all()) for parameter in trained)
        assert any(parameter.grad.any() for parameter in model.generator.parameters())
    for part, network in networks(model).items():
        assert all(bool(parameter.isfinite().all()) for parameter in network.parameters()), part
        assert all(parameter.dtype == torch.float32 for parameter in network.parameters()), part
        pairs = zip(network.parameters(), before[part].parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs), part
    # The discriminators ask for gradients again; the matcher never got any.
    assert sum(parameter.requires_grad for parameter in weights) == len(trained)
    assert all(parameter.requires_grad for parameter in trained)
    assert all(parameter.grad is None for parameter in matcher.parameters())
    pictures = model.sample(stream.noise((count, model.noise_dim), place, 0), text)
    assert pictures.shape == (count, 3, model.image_size, model.image_size)
    assert pictures.device.type == device
    assert pictures.abs().max() <= 1


@both
def test_a_step_depends_on_seed_and_number_alone(name: str, matcher: VLM) -> None:
    """Nothing in it draws from torch's global randomness."""
    batch = some()
    text = encode(matcher, batch.captions)

    def values(step: int, history: int) -> dict[str, float]:
        model = build(name, matcher)
        torch.manual_seed(history)
        torch.rand(history * 7)
        return {name: float(value) for name, value in model.step(batch, text, step, None).items()}

    assert values(0, 0) == values(0, 1)
    assert values(0, 0) != values(1, 0)


@both
def test_noise_differs_by_step_seed_and_rank(name: str, matcher: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name, matcher)
    found = [model.noise(4, 0), model.noise(4, 1)]
    model.seed += 1
    found.append(model.noise(4, 0))
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    found.append(model.noise(4, 0))
    assert all(noise.shape == (4, model.noise_dim) for noise in found)
    assert len({float(noise.sum()) for noise in found}) == 4


@both
def test_pictures_come_from_the_averaged_generator(name: str, matcher: VLM) -> None:
    model, batch = build(name, matcher), some()
    text, noise = encode(matcher, batch.captions), torch.randn(4, model.noise_dim)
    untrained = model.sample(noise, text)
    model.step(batch, text, 0, None)
    pictures = model.sample(noise, text)
    assert not torch.equal(pictures, untrained)
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.zero_()
    assert torch.equal(model.sample(noise, text), pictures)
    # Each by itself: BatchNorm does not look at the rest of the batch.
    alone = model.sample(noise[:1], Features(*(part[:1] for part in text)))
    torch.testing.assert_close(alone, pictures[:1], rtol=0, atol=1e-5)


@both
def test_discriminators_train_again_after_a_failure(name: str, matcher: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(name, matcher), some()
    judging = [p for network in model.discriminators.values() for p in network.parameters()]
    seen = []

    def fail(*_: object) -> None:
        seen.extend(parameter.requires_grad for parameter in judging)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(f"vlm_plugin.baselines.{name}.trainer.generator_loss", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.step(batch, encode(matcher, batch.captions), 0, None)
    assert len(seen) == len(judging)
    assert not any(seen)  # in the generator's half
    assert all(parameter.requires_grad for parameter in judging)


@both
@pytest.mark.parametrize("dual", [False, True])
def test_captions_of_unequal_length(name: str, dual: bool, matcher: VLM) -> None:
    model, batch = build(name, matcher), some()
    # One known word, the longest there are, and two in between.
    captions = [
        "bird",
        "the little bird has a red crown, blue wings, a blue back and a long red beak.",
        *batch.captions[2:],
    ]
    text = encode(matcher, captions)
    lengths = text.mask.sum(1).tolist()
    assert lengths[0] == 1
    assert lengths[1] == text.mask.shape[1] > max(lengths[2:])
    vlm_loss = DualVLMLoss(matcher, lambda_vvm=0.5, lambda_vlm=0.5) if dual else None
    for step in range(2):
        values = model.step(batch._replace(captions=captions), text, step, vlm_loss)
        assert all(value.isfinite() for value in values.values())
    for part, network in networks(model).items():
        assert all(parameter.isfinite().all() for parameter in network.parameters()), part
    assert model.sample(torch.zeros(4, model.noise_dim), text).isfinite().all()


def test_floors_are_the_loss_of_real_pictures_and_their_mirror_images(matcher: VLM) -> None:
    """The picture itself with its caption, and with its mirror image as the real one."""
    vlm_loss, batch = DualVLMLoss(matcher, lambda_vvm=0.2, lambda_vlm=0.6), some()
    text = encode(matcher, batch.captions)
    mirrored = torch.stack([batch.images[..., tiny.SIZE - 1 - column] for column in range(tiny.SIZE)], dim=-1)
    expected = vlm_loss(batch.images, text, mirrored, class_ids=[0, 1, 0, 2]).terms
    assert floors_of(vlm_loss, batch, text) == pytest.approx({f"floor_{n}": float(expected[n]) for n in TERMS})


# ---------------------------------------------------------------------------------------------------------------------
# AttnGAN
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("normalise", "dual"), [(True, False), (False, False), (True, True)])
def test_attngan_equals_a_slow_twin(normalise: bool, dual: bool, matcher: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps, written out: no weight is that of the shipped settings, and none is like another.

    In double precision: where a gradient is almost zero, Adam makes a full step of a rounding error.
    """
    model = build(
        "attngan", matcher, normalise_text=normalise, generator_lr=1e-3, discriminator_lr=3e-3, adam_betas=[0.3, 0.8],
        adversarial_weight=1.5, kl_weight=0.7, damsm={"weight": 0.3, "gamma1": 3.0, "gamma2": 4.0, "gamma3": 7.0},
    )  # fmt: skip
    vlm_loss = DualVLMLoss(matcher, lambda_vvm=0.2, lambda_vlm=0.6) if dual else None
    for network in (*networks(model).values(), matcher):
        network.double()
    twin = copy.deepcopy(networks(model))
    generator, average, judges = twin["generator"], twin["average"], [twin["discriminator16"], twin["discriminator32"]]
    generator_adam = torch.optim.Adam(generator.parameters(), 1e-3, (0.3, 0.8))
    judges_adam = torch.optim.Adam([p for judge in judges for p in judge.parameters()], 3e-3, (0.3, 0.8))
    batch = some()
    batch = batch._replace(images=batch.images.double())
    text = encode(matcher, batch.captions)
    condition = text
    if normalise:
        condition = Features(
            F.normalize(text.local, dim=-1) * tiny.DIM**0.5, F.normalize(text.pooled, dim=-1) * tiny.DIM**0.5, text.mask
        )
    small = F.interpolate(batch.images, size=(16, 16), mode="bilinear", antialias=True)

    for step in range(2):
        noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        monkeypatch.setattr(model, "noise", lambda batch, step, noise=noise: noise)
        values = model.step(batch, text, step, vlm_loss)

        fakes, _, mu, logvar = generator(noise[:, :4], condition, noise[:, 4:])
        judged = discriminator_loss(judges[0], small, fakes[0], condition.pooled)
        judged = judged + discriminator_loss(judges[1], batch.images, fakes[1], condition.pooled)
        judges_adam.zero_grad()
        judged.backward()
        judges_adam.step()
        judges_gradients = [p.grad.clone() for judge in judges for p in judge.parameters()]

        adversarial, kl = generator_loss(judges, fakes, condition.pooled), kl_loss(mu, logvar)
        if dual:
            matched, terms = vlm_loss(fakes[1], text, batch.images, class_ids=batch.class_ids)
        else:
            parts = damsm_loss(matcher.encode_image(fakes[1]), text, batch.class_ids, 3.0, 4.0, 7.0)
            matched, terms = 0.3 * sum(parts), dict(zip(DAMSM, parts, strict=True))
        generator_adam.zero_grad()
        (1.5 * adversarial + 0.7 * kl + matched).backward()
        generator_adam.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), generator.parameters(), strict=True):
                mean.copy_(0.9 * mean + 0.1 * value)
            for mean, value in zip(average.buffers(), generator.buffers(), strict=True):
                mean.copy_(value)

        expected = {"discriminator": judged, "generator": adversarial, "kl": kl, **terms}
        assert set(values) == set(expected)
        for name, value in expected.items():
            same(values[name], value.detach())
        # The size of a gradient hardly shows in Adam's first steps, so gradients are compared too.
        same([p.grad for p in model.generator.parameters()], [p.grad for p in generator.parameters()])
        same([p.grad for judge in model.discriminators.values() for p in judge.parameters()], judges_gradients)
        for name, network in networks(model).items():
            same(network.state_dict(), twin[name].state_dict())


def test_real_pictures_of_smaller_stages_are_filtered_as_pil_does_it(matcher: VLM) -> None:
    model, batch = build("attngan", matcher, stages=3), some(64)
    seen: dict[int, Tensor] = {}
    for judge in model.discriminators.values():
        # Of the three times that it is asked in a step, the first is about real pictures.
        judge.register_forward_pre_hook(lambda judge, inputs: seen.setdefault(judge.image_size, inputs[0].detach()))
    model.step(batch, encode(matcher, batch.captions), 0, None)
    assert torch.equal(seen[64], batch.images)
    pixels = ((batch.images[1].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    for size in (16, 32):
        theirs = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR), np.float32)
        ours = (seen[size][1].permute(1, 2, 0).numpy() + 1) * 127.5
        assert seen[size].shape == (4, 3, size, size)
        assert np.abs(ours - theirs).max() <= 2


# ---------------------------------------------------------------------------------------------------------------------
# DF-GAN
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("normalise", "dual"), [(True, False), (False, False), (True, True)])
def test_dfgan_equals_a_slow_twin(normalise: bool, dual: bool, matcher: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps, written out, in double precision, as AttnGAN's; the discriminator looks at one pair at a time."""
    model = build(
        "dfgan", matcher, normalise_text=normalise, generator_lr=1e-3, discriminator_lr=3e-3, adam_betas=[0.3, 0.8]
    )
    vlm_loss = DualVLMLoss(matcher, lambda_vvm=0.2, lambda_vlm=0.6) if dual else None
    with torch.no_grad():  # steep enough that the penalty is no rounding error
        model.discriminators["head"].joint_conv[2].weight *= 4
    for network in (*networks(model).values(), matcher):
        network.double()
    twin = copy.deepcopy(networks(model))
    generator, average, discriminator, head = (twin[name] for name in ("generator", "average", "discriminator", "head"))
    judging = [p for network in (discriminator, head) for p in network.parameters() if p.requires_grad]
    generator_adam = torch.optim.Adam(generator.parameters(), 1e-3, (0.3, 0.8))
    judges_adam = torch.optim.Adam(judging, 3e-3, (0.3, 0.8))
    batch = some()
    batch = batch._replace(images=batch.images.double())
    text = encode(matcher, batch.captions)
    sentence = F.normalize(text.pooled, dim=-1) * tiny.DIM**0.5 if normalise else text.pooled

    def judge(image: Tensor, vector: Tensor) -> Tensor:
        return head(discriminator(image[None]), vector[None])[0]

    for step in range(2):
        noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        monkeypatch.setattr(model, "noise", lambda batch, step, noise=noise: noise)
        values = model.step(batch, text, step, vlm_loss)

        fakes = generator(noise, sentence)
        real, fake, mismatched, penalty = [], [], [], 0
        for i in range(4):
            image, vector = batch.images[i].clone().requires_grad_(), sentence[i].clone().requires_grad_()
            real.append(judge(image, vector))
            fake.append(judge(fakes[i].detach(), sentence[i]))
            slopes = torch.autograd.grad(real[i], (image, vector), create_graph=True)
            penalty = penalty + 2 * torch.cat([slope.flatten() for slope in slopes]).norm() ** 6 / 4
        for i in range(3):
            mismatched.append(judge(batch.images[i], sentence[i + 1]))
        hinge = sum(F.relu(1 - logit) for logit in real) / 4
        hinge = hinge + sum(F.relu(1 + logit) for logit in fake) / 4 / 2
        hinge = hinge + sum(F.relu(1 + logit) for logit in mismatched) / 3 / 2
        assert penalty > 1e-3
        judges_adam.zero_grad()
        (hinge + penalty).backward()
        judges_adam.step()
        judges_gradients = [p.grad.clone() for p in judging]

        adversarial, terms = -sum(judge(fakes[i], sentence[i]) for i in range(4)) / 4, {}
        total = adversarial
        if dual:
            matched, terms = vlm_loss(fakes, text, batch.images, class_ids=batch.class_ids)
            total = adversarial + matched
        generator_adam.zero_grad()
        total.backward()
        generator_adam.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), generator.parameters(), strict=True):
                mean.copy_(0.9 * mean + 0.1 * value)

        expected = {"discriminator": hinge, "penalty": penalty, "generator": adversarial, **terms}
        assert set(values) == set(expected)
        for name, value in expected.items():
            same(values[name], value.detach())
        same([p.grad for p in model.generator.parameters()], [p.grad for p in generator.parameters()])
        ours = [p for network in model.discriminators.values() for p in network.parameters() if p.requires_grad]
        same([p.grad for p in ours], judges_gradients)
        for name, network in networks(model).items():
            same(network.state_dict(), twin[name].state_dict())
