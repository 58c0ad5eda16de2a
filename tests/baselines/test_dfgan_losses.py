"""DF-GAN's losses against published values, per-sample loops and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_, wave
from torch import Tensor
from torch.nn import functional as F

from vlm_plugin.baselines.dfgan.losses import (
    discriminator_loss,
    discriminator_terms,
    generator_loss,
    gradient_penalty,
    hinge_fake,
    hinge_real,
    matching_aware_gradient_penalty,
    mismatched_pairs,
)
from vlm_plugin.baselines.dfgan.networks import ConditionalHead, Discriminator


def networks(dtype: torch.dtype = torch.float64) -> tuple[Discriminator, ConditionalHead]:
    return fill_(Discriminator(2, 16)).to(dtype), fill_(ConditionalHead(2, 6)).to(dtype)


def batch(size: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Real images, fake images and sentences; steep enough that the penalty is no rounding error."""
    real, fake = wave(size, 3, 16, 16, phase=4), wave(size, 3, 16, 16, phase=5)
    return real.to(dtype), fake.to(dtype), wave(size, 6, phase=6).to(dtype)


def steep(networks: tuple[Discriminator, ConditionalHead]) -> tuple[Discriminator, ConditionalHead]:
    with torch.no_grad():
        networks[1].joint_conv[2].weight *= 10
    return networks


@pytest.mark.parametrize("size", [64, 256])
def test_published_values(golden: Path, size: int) -> None:
    arrays = np.load(golden / "dfgan.npz")
    discriminator, head = fill_(Discriminator(4, size)), fill_(ConditionalHead(4))
    images, sentence = wave(2, 3, size, size, phase=3), wave(2, 256, phase=2)
    logits = head(discriminator(images), sentence)
    ours = {
        "hinge_real": hinge_real(logits),
        "hinge_fake": hinge_fake(logits),
        "ma_gp": matching_aware_gradient_penalty(discriminator, head, images, sentence),
    }
    for name, value in ours.items():
        # The penalty is about 0.004: an absolute tolerance alone would prove little.
        np.testing.assert_allclose(value.item(), arrays[f"nf4_{size}/{name}"], rtol=1e-4, atol=1e-6)


def test_hinges_by_hand() -> None:
    logits = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
    assert hinge_real(logits).item() == pytest.approx((3 + 2 + 1 + 0.5 + 0 + 0) / 6)
    assert hinge_fake(logits).item() == pytest.approx((0 + 0 + 1 + 1.5 + 2 + 4) / 6)
    assert generator_loss(logits).item() == pytest.approx(-1.5 / 6)


def test_discriminator_loss_weighs_the_kinds_and_not_the_samples() -> None:
    real, fake, wrong = torch.tensor([0.5, 2.0]), torch.tensor([1.0, -3.0, 0.0]), torch.tensor([0.0])
    assert discriminator_loss(real, fake, wrong).item() == pytest.approx(0.25 + (3 / 3 + 1) / 2)


def test_losses_are_at_least_float32() -> None:
    logits = torch.tensor([0.1, 0.2], dtype=torch.bfloat16)
    for loss in (hinge_real(logits), hinge_fake(logits), generator_loss(logits)):
        assert loss.dtype == torch.float32
    assert discriminator_loss(*[logits.double()] * 3).dtype == torch.float64


def test_mismatched_pairs_against_a_loop() -> None:
    features, sentence = torch.arange(5.0)[:, None] * 10, torch.arange(5.0)[:, None]
    left, right = mismatched_pairs(features, sentence)
    pairs = [(left[i].item(), right[i].item()) for i in range(len(left))]
    assert pairs == [(10.0 * i, i + 1.0) for i in range(4)]


def looped_penalty(
    discriminator: Callable[[Tensor], Tensor], head: Callable[..., Tensor], images: Tensor, sentence: Tensor
) -> Tensor:
    """The formula read literally, one pair at a time."""
    total = images.new_zeros(())
    for image, vector in zip(images, sentence, strict=True):
        x = image[None].clone().requires_grad_()
        e = vector[None].clone().requires_grad_()
        (logit,) = head(discriminator(x), e)
        dx, de = torch.autograd.grad(logit, (x, e), create_graph=True)
        total = total + torch.cat([dx.flatten(), de.flatten()]).norm() ** 6
    return 2 * total / len(images)


def gradients(loss: Tensor, *modules: torch.nn.Module) -> list[Tensor]:
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    # Biases that shift a logit and no slope of it are outside the penalty's graph.
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def test_penalty_equals_its_slow_twin_with_gradients() -> None:
    discriminator, head = steep(networks())
    images, _, sentence = batch()
    fast = matching_aware_gradient_penalty(discriminator, head, images, sentence)
    slow = looped_penalty(discriminator, head, images, sentence)
    assert slow > 1e-3
    torch.testing.assert_close(fast, slow)
    fast_gradients, slow_gradients = gradients(fast, discriminator, head), gradients(slow, discriminator, head)
    assert sum(bool(g.any()) for g in fast_gradients) > 10
    torch.testing.assert_close(fast_gradients, slow_gradients)


def test_penalty_passes_gradcheck() -> None:
    """In the parameters of a smooth tiny network: leaky ReLUs have no second derivative to check."""
    torch.manual_seed(0)
    images, sentence = torch.randn(3, 1, 2, 2).double(), torch.randn(3, 2).double()

    def penalty(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        return matching_aware_gradient_penalty(
            lambda x: torch.tanh(F.conv2d(x, first).flatten(1)),
            lambda f, e: (torch.tanh(torch.cat([f, e], 1) @ second) @ third).flatten(),
            images,
            sentence,
        )

    weights = [torch.randn(*shape).double().requires_grad_() for shape in ((3, 1, 2, 2), (5, 4), (4, 1))]
    assert torch.autograd.gradcheck(penalty, weights)


def test_penalty_is_finite_at_zero_slope() -> None:
    discriminator, head = networks()
    with torch.no_grad():
        head.joint_conv[2].weight.zero_()
    images, _, sentence = batch()
    penalty = matching_aware_gradient_penalty(discriminator, head, images, sentence)
    assert penalty.item() == 0
    for gradient in gradients(penalty, discriminator, head):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_penalty_scales_with_weight_and_power() -> None:
    torch.manual_seed(0)
    slope = torch.randn(7).double()
    images, sentence = torch.randn(2, 4).double(), torch.randn(2, 3).double()
    value = matching_aware_gradient_penalty(
        lambda x: x, lambda f, e: torch.cat([f, e], 1) @ slope, images, sentence, weight=3.0, power=2.0
    )
    torch.testing.assert_close(value, 3 * slope.square().sum())


def test_penalty_leaves_its_inputs_alone_and_works_under_no_grad() -> None:
    discriminator, head = steep(networks())
    images, _, sentence = batch()
    sentence.requires_grad_()
    with torch.no_grad():
        penalty = matching_aware_gradient_penalty(discriminator, head, images, sentence)
    penalty.backward()
    assert sentence.grad is None
    assert images.grad is None
    assert not images.requires_grad
    assert discriminator.conv_img.weight.grad.abs().max() > 0


def check_autocast(device: str) -> None:
    discriminator, head = (m.to(device) for m in steep(networks(torch.float32)))
    real, fake, sentence = (t.to(device) for t in batch(dtype=torch.float32))
    exact = matching_aware_gradient_penalty(discriminator, head, real, sentence)
    with torch.autocast(device, torch.bfloat16):
        penalty = matching_aware_gradient_penalty(discriminator, head, real, sentence)
        coarse = matching_aware_gradient_penalty(discriminator, head, real, sentence, autocast=True)
        # Half-precision inputs are widened, so the float32 parameters can read them.
        narrow = matching_aware_gradient_penalty(discriminator, head, real.bfloat16(), sentence.bfloat16())
        terms = discriminator_terms(discriminator, head, real, fake, sentence)
        assert terms.real.dtype == terms.mismatched.dtype == torch.float32
        assert terms.fake.dtype == torch.bfloat16
        loss = discriminator_loss(*terms[:3]) + terms.penalty
    assert penalty.dtype == coarse.dtype == narrow.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(penalty, exact)
    torch.testing.assert_close(terms.penalty, exact)
    assert not torch.equal(coarse, exact)
    torch.testing.assert_close(coarse, exact, rtol=0.2, atol=0)
    loss.backward()
    assert all(p.grad.isfinite().all() for m in (discriminator, head) for p in m.parameters() if p.requires_grad)


def test_penalty_is_float32_under_autocast() -> None:
    check_autocast("cpu")


@pytest.mark.cuda
def test_penalty_is_float32_under_autocast_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    check_autocast("cuda")


def looped_terms(
    discriminator: Discriminator, head: ConditionalHead, real: Tensor, fake: Tensor, sentence: Tensor
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    def logit(image: Tensor, vector: Tensor) -> Tensor:
        return head(discriminator(image[None]), vector[None])[0]

    count = len(real)
    return (
        [logit(real[i], sentence[i]) for i in range(count)],
        [logit(fake[i], sentence[i]) for i in range(count)],
        [logit(real[i], sentence[i + 1]) for i in range(count - 1)],
    )


def test_discriminator_terms_equal_explicit_loops_with_gradients() -> None:
    discriminator, head = steep(networks())
    data = batch()
    terms = discriminator_terms(discriminator, head, *data)
    loops = looped_terms(discriminator, head, *data)
    for fast, slow in zip(terms[:3], loops, strict=True):
        torch.testing.assert_close(fast, torch.stack(slow))
    penalty = looped_penalty(discriminator, head, data[0], data[2])
    torch.testing.assert_close(terms.penalty, penalty)

    real, fake, wrong = loops
    slow_loss = sum(F.relu(1 - logit) for logit in real) / 4
    slow_loss = slow_loss + sum(F.relu(1 + logit) for logit in fake) / 8 + sum(F.relu(1 + logit) for logit in wrong) / 6
    fast_loss = discriminator_loss(*terms[:3])
    torch.testing.assert_close(fast_loss, slow_loss)
    torch.testing.assert_close(
        gradients(fast_loss + terms.penalty, discriminator, head), gradients(slow_loss + penalty, discriminator, head)
    )


def test_discriminator_terms_leave_real_images_and_sentences_without_gradient() -> None:
    discriminator, head = networks()
    real, fake, sentence = batch()
    real.requires_grad_()
    terms = discriminator_terms(discriminator, head, real, fake, sentence)
    (discriminator_loss(*terms[:3]) + terms.penalty).backward()
    assert real.grad is None
    assert not sentence.requires_grad


@pytest.mark.parametrize("loss", [hinge_real, hinge_fake, generator_loss])
def test_losses_refuse_empty_and_integer_logits(loss: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"^logits: expected at least one, got shape \(0,\)"):
        loss(torch.zeros(0))
    with pytest.raises(TypeError, match=r"^logits: expected floating point, got torch\.int64"):
        loss(torch.zeros(2, dtype=torch.int64))


def test_pairs_that_do_not_fit_are_refused() -> None:
    discriminator, head = networks()
    real, fake, sentence = batch()
    with pytest.raises(ValueError, match=r"^features: expected a batch of at least 2, got 1"):
        mismatched_pairs(real[:1], sentence[:1])
    with pytest.raises(ValueError, match="same batch size, got 4 and 3"):
        mismatched_pairs(real, sentence[:3])
    with pytest.raises(ValueError, match=r"^images and sentence: expected the same batch size, got 4 and 3"):
        matching_aware_gradient_penalty(discriminator, head, real, sentence[:3])
    with pytest.raises(ValueError, match=r"^real and fake: expected the same shape"):
        discriminator_terms(discriminator, head, real, fake[:3], sentence)
    with pytest.raises(ValueError, match="same batch size, got 4 and 3"):
        discriminator_terms(discriminator, head, real, fake, sentence[:3])
    with pytest.raises(ValueError, match=r"^features: expected a batch of at least 2, got 1"):
        discriminator_terms(discriminator, head, real[:1], fake[:1], sentence[:1])


def test_gradient_penalty_refuses_what_it_cannot_differentiate() -> None:
    discriminator, head = networks()
    real, _, sentence = batch()
    logits = head(discriminator(real), sentence)
    message = r"^images and sentence: expected both to require a gradient, .* got requires_grad False and False$"
    with pytest.raises(ValueError, match=message):
        gradient_penalty(logits, real, sentence)
    with pytest.raises(ValueError, match=r"^power: expected at least 2"):
        matching_aware_gradient_penalty(discriminator, head, real, sentence, power=1.0)
    with pytest.raises(ValueError, match="got 3, 4 and 4"):
        gradient_penalty(logits[:3], real, sentence)
