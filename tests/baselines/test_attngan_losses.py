"""AttnGAN's losses against published values and against explicit loops over samples, words and regions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_, wave
from reference import cosine, dot, random_features, table, valid
from torch import Tensor

from vlm_plugin import Features, image_features, matching, text_features
from vlm_plugin.baselines.attngan import losses
from vlm_plugin.baselines.attngan.losses import (
    damsm_loss,
    damsm_word_scores,
    discriminator_loss,
    generator_loss,
    kl_loss,
)
from vlm_plugin.baselines.attngan.networks import Discriminator
from vlm_plugin.matching import global_scores, local_scores, matched_loss, unit

PARTS = {"w0": "damsm_w0", "w1": "damsm_w1", "s0": "damsm_s0", "s1": "damsm_s1"}
# Four pictures with 4, 2, 3 and 4 valid regions, four captions with 5, 1, 3 and 2 words; all of them have padding.
IMAGE = random_features([4, 2, 3, 4], seed=1, size=5)
TEXT = random_features([5, 1, 3, 2], seed=2, size=6)
CLASSES = torch.tensor([7, 3, 7, 1])


def with_gradient(features: Features) -> Features:
    return Features(features.local.clone().requires_grad_(), features.pooled.clone().requires_grad_(), features.mask)


def gradients(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def same(fast: Tensor | Sequence[Tensor], slow: Tensor | Sequence[Tensor]) -> None:
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


# -------------------------------------------------------------------------------------------------- published values


def test_published_discriminator_loss(golden: Path) -> None:
    """64 channels, whatever the file's README says: the value is not that of 4 channels."""
    network = fill_(Discriminator(64, 64)).train()
    real, fake = wave(3, 3, 64, 64, phase=20), wave(3, 3, 64, 64, phase=21)
    with torch.no_grad():
        value = discriminator_loss(network, real, fake, wave(3, 256, phase=22))
    expected = np.load(golden / "attngan.npz")["discriminator_loss/value"]
    np.testing.assert_allclose(value.item(), expected, rtol=0, atol=1e-5)


def test_published_kl_loss(golden: Path) -> None:
    value = kl_loss(wave(2, 100, phase=1), wave(2, 100, phase=2))
    np.testing.assert_allclose(value.item(), np.load(golden / "attngan.npz")["KL_loss/value"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["unmasked", "masked"])
def test_published_damsm(golden: Path, kind: str) -> None:
    arrays = {name: torch.from_numpy(value) for name, value in np.load(golden / "damsm.npz").items()}
    regions, code = arrays["regions"].requires_grad_(), arrays["code"].requires_grad_()
    parts = damsm_loss(
        image_features(regions, code),
        text_features(arrays["words"], arrays["sentence"], arrays["lengths"]),
        arrays["class_ids"] if kind == "masked" else None,
    )
    for name, ours in PARTS.items():
        torch.testing.assert_close(getattr(parts, ours), arrays[f"{kind}/{name}"], rtol=0, atol=1e-4)
    sum(parts).backward()
    torch.testing.assert_close(regions.grad, arrays[f"{kind}/d_regions"], rtol=0, atol=1e-4)
    torch.testing.assert_close(code.grad, arrays[f"{kind}/d_code"], rtol=0, atol=1e-4)
    # An absolute tolerance alone would prove little, were they small.
    assert min(regions.grad.abs().max(), code.grad.abs().max()) > 0.01


# -------------------------------------------------------------------------------------------------- slow twins: GAN


def judge(size: int = 16) -> Discriminator:
    """Tiny, in eval mode, so that a sample is judged in a batch as it is judged alone."""
    network = fill_(Discriminator(2, size, 6)).double().eval()
    with torch.no_grad():  # logits about as far from zero as in training
        for head in (network.UNCOND_DNET, network.COND_DNET):
            head.outlogits[0].weight *= 20
    return network


def batch(size: int = 3, side: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    real, fake = wave(size, 3, side, side, phase=4).double(), wave(size, 3, side, side, phase=5).double()
    return real, fake, wave(size, 6, phase=6).double()


def cross_entropy(logit: Tensor, real: bool) -> Tensor:
    """Binary, on the probability."""
    probability = 1 / (1 + (-logit).exp())
    return -(probability if real else 1 - probability).log()


def looped_logits(network: Discriminator, image: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
    features = network(image[None])
    return network.unconditional(features)[0], network.conditional(features, sentence[None])[0]


def looped_discriminator_loss(network: Discriminator, real: Tensor, fake: Tensor, sentence: Tensor) -> Tensor:
    count = len(real)
    own = [looped_logits(network, real[i], sentence[i]) for i in range(count)]
    drawn = [looped_logits(network, fake[i], sentence[i]) for i in range(count)]
    wrong = [looped_logits(network, real[i], sentence[i + 1])[1] for i in range(count - 1)]
    true = sum(cross_entropy(a, True) for a, _ in own) / count + sum(cross_entropy(b, True) for _, b in own) / count
    false = sum(cross_entropy(a, False) for a, _ in drawn) / count
    false = false + sum(cross_entropy(b, False) for _, b in drawn) / count
    false = false + sum(cross_entropy(logit, False) for logit in wrong) / (count - 1)
    return true / 2 + false / 3


@pytest.mark.parametrize("size", [2, 3])
def test_discriminator_loss_equals_the_loops(size: int) -> None:
    network, (real, fake, sentence) = judge(), batch(size)
    sentence.requires_grad_()
    fast = discriminator_loss(network, real, fake, sentence)
    slow = looped_discriminator_loss(network, real, fake, sentence)
    same(fast, slow)
    inputs = [sentence, *network.parameters()]
    same(gradients(fast, *inputs), gradients(slow, *inputs))
    assert all(gradient.any() for gradient in gradients(fast, *inputs))


def test_wrong_pairs_are_told_from_right_ones() -> None:
    """Each summand by itself: the loss on logits given by hand."""
    images = torch.tensor([0.3, -0.2, 0.7])

    class Judge:
        """Unconditional logit: the picture; conditional: 10 * sentence + picture."""

        def __call__(self, pictures: Tensor) -> Tensor:
            return pictures

        def unconditional(self, features: Tensor) -> Tensor:
            return features

        def conditional(self, features: Tensor, sentence: Tensor) -> Tensor:
            return 10 * sentence + features

    def mean(logits: list[float], real: bool) -> float:
        return sum(cross_entropy(torch.tensor(logit).double(), real).item() for logit in logits) / len(logits)

    value = discriminator_loss(Judge(), images, -images, torch.tensor([0.1, 0.2, -0.3]))
    true = mean([0.3, -0.2, 0.7], True) + mean([1.3, 1.8, -2.3], True)
    false = mean([-0.3, 0.2, -0.7], False) + mean([0.7, 2.2, -3.7], False) + mean([2.3, -3.2], False)
    assert value.item() == pytest.approx(true / 2 + false / 3, abs=1e-6)


def test_generator_loss_equals_the_loops_over_stages() -> None:
    networks = [judge(16), judge(32)]
    fakes, sentence = [batch(3, side)[1].requires_grad_() for side in (16, 32)], batch()[2].requires_grad_()
    fast = generator_loss(networks, fakes, sentence)
    slow = 0
    for network, fake in zip(networks, fakes, strict=True):
        for i in range(3):
            for logit in looped_logits(network, fake[i], sentence[i]):
                slow = slow + cross_entropy(logit, True) / 2 / 3
    same(fast, slow)
    inputs = [*fakes, sentence, *(p for network in networks for p in network.parameters())]
    same(gradients(fast, *inputs), gradients(slow, *inputs))
    assert all(gradient.any() for gradient in gradients(fast, *fakes))


def test_generator_loss_wants_a_picture_for_every_discriminator() -> None:
    with pytest.raises(ValueError, match="zip"):
        generator_loss([judge(), judge()], [batch()[1]], batch()[2])


def test_discriminator_loss_sends_no_gradient_into_fakes() -> None:
    network, (real, fake, sentence) = judge(), batch()
    for picture in (real, fake):
        picture.requires_grad_()
    discriminator_loss(network, real, fake, sentence).backward()
    assert fake.grad is None
    assert real.grad.any()


def test_kl_loss_equals_the_loops() -> None:
    mu, logvar = wave(3, 5, phase=1).double().requires_grad_(), wave(3, 5, phase=2, scale=3).double().requires_grad_()
    fast = kl_loss(mu, logvar)
    slow = 0
    for m, v in zip(mu.flatten(), logvar.flatten(), strict=True):
        # KL(p, q) = log(sigma_q / sigma_p) + (sigma_p^2 + (mu_p - mu_q)^2) / (2 sigma_q^2) - 1/2 with q = N(0, 1).
        sigma = (v / 2).exp()
        slow = slow + (1 / sigma).log() + (sigma**2 + m**2) / 2 - 0.5
    slow = slow / 15
    same(fast, slow)
    same(gradients(fast, mu, logvar), gradients(slow, mu, logvar))
    assert kl_loss(torch.zeros(2, 3), torch.zeros(2, 3)) == 0


# ------------------------------------------------------------------------------------------------ slow twins: DAMSM


def looped_word_score(regions: list[Tensor], words: list[Tensor], gamma1: float, gamma2: float) -> Tensor:
    by_word = []
    for region in regions:
        weights = [dot(word, region).exp() for word in words]
        by_word.append([weight / sum(weights) for weight in weights])
    total = 0
    for t, word in enumerate(words):
        weights = [(gamma1 * by_word[r][t]).exp() for r in range(len(regions))]
        context = sum(weight * region for weight, region in zip(weights, regions, strict=True)) / sum(weights)
        total = total + (gamma2 * cosine(context, word)).exp()
    return total.log()


def looped_word_scores(image: Features, text: Features, gamma1: float = 4.0, gamma2: float = 5.0) -> Tensor:
    captions = range(len(text.pooled))
    return table(
        [
            [looped_word_score(valid(image, i), valid(text, j), gamma1, gamma2) for j in captions]
            for i in range(len(image.pooled))
        ]
    )


def looped_damsm(
    image: Features, text: Features, classes: Tensor | None, gamma1: float, gamma2: float, gamma3: float
) -> list[Tensor]:
    words = looped_word_scores(image, text, gamma1, gamma2)
    sentences = table([[cosine(code, sentence) for sentence in text.pooled] for code in image.pooled])
    parts, count = [], len(words)
    for scores in (words, words.T, sentences, sentences.T):
        total = 0
        for i in range(count):
            candidates = [j for j in range(count) if j == i or classes is None or classes[i] != classes[j]]
            weights = {j: (gamma3 * scores[i, j]).exp() for j in candidates}
            total = total - (weights[i] / sum(weights.values())).log()
        parts.append(total / count)
    return parts


@pytest.mark.parametrize(("gamma1", "gamma2"), [(4.0, 5.0), (1.5, 2.0)])
def test_word_scores_equal_the_loops(gamma1: float, gamma2: float) -> None:
    image, text = with_gradient(random_features([4, 2], seed=3, size=5)), with_gradient(TEXT)
    fast, slow = damsm_word_scores(image, text, gamma1, gamma2), looped_word_scores(image, text, gamma1, gamma2)
    assert fast.shape == (2, 4)
    same(fast, slow)
    # Different weights, so that a permutation would show.
    weights = wave(2, 4, phase=1).double()
    inputs = (image.local, text.local)
    same(gradients((weights * fast).sum(), *inputs), gradients((weights * slow).sum(), *inputs))


@pytest.mark.parametrize("classes", [None, CLASSES], ids=["unmasked", "masked"])
@pytest.mark.parametrize("gammas", [(4.0, 5.0, 10.0), (1.5, 2.0, 3.0)])
def test_damsm_equals_the_loops(classes: Tensor | None, gammas: tuple[float, float, float]) -> None:
    image, text = with_gradient(IMAGE), with_gradient(TEXT)
    fast, slow = damsm_loss(image, text, classes, *gammas), looped_damsm(image, text, classes, *gammas)
    inputs = (image.local, image.pooled, text.local, text.pooled)
    for ours, theirs in zip(fast, slow, strict=True):
        same(ours, theirs)
        same(gradients(ours, *inputs), gradients(theirs, *inputs))


def test_damsm_defaults_are_4_5_10() -> None:
    same(list(damsm_loss(IMAGE, TEXT)), list(damsm_loss(IMAGE, TEXT, None, 4.0, 5.0, 10.0)))
    same(damsm_word_scores(IMAGE, TEXT), damsm_word_scores(IMAGE, TEXT, 4.0, 5.0))


# -------------------------------------------------------------------------------------------------------- stability


class Steep:
    """Logits that are 1000 times the mean of a picture, whatever the sentence."""

    def __call__(self, images: Tensor) -> Tensor:
        return 1000 * images.flatten(1).mean(1)

    def unconditional(self, features: Tensor) -> Tensor:
        return features

    def conditional(self, features: Tensor, sentence: Tensor) -> Tensor:
        return features


def test_extreme_logits_have_finite_losses_and_gradients() -> None:
    # Logits -1000 and 1000 of real pictures, 1000 and -1000 of generated ones.
    real = torch.stack([-torch.ones(3, 4, 4), torch.ones(3, 4, 4)]).requires_grad_()
    fake, sentence = (-real).detach().requires_grad_(), torch.zeros(2, 6)
    value = discriminator_loss(Steep(), real, fake, sentence)
    assert value.item() == pytest.approx(2 * 500 / 2 + 2 * 500 / 3)
    value.backward()
    drawn = generator_loss([Steep()], [fake], sentence)
    assert drawn.item() == pytest.approx(500)
    drawn.backward()
    for picture, mistaken, right in ((real, 0, 1), (fake, 1, 0)):
        assert picture.grad.isfinite().all()
        assert picture.grad[mistaken].any()
        assert not picture.grad[right].any()


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_damsm_of_two_is_finite_for_short_and_long_vectors(scale: float) -> None:
    def scaled(lengths: list[int], seed: int) -> Features:
        drawn = random_features(lengths, seed=seed, dtype=torch.float32)
        return with_gradient(drawn._replace(local=scale * drawn.local, pooled=scale * drawn.pooled))

    image, text = scaled([4, 4], 1), scaled([3, 1], 2)
    parts = damsm_loss(image, text)
    sum(parts).backward()
    for value in (*parts, image.local.grad, image.pooled.grad, text.local.grad, text.pooled.grad):
        assert value.isfinite().all()


def test_one_class_alone_leaves_nothing_to_learn() -> None:
    image, text = with_gradient(IMAGE), with_gradient(TEXT)
    parts = damsm_loss(image, text, torch.full((4,), 9))
    assert all(part == 0 for part in parts)
    sum(parts).backward()
    for gradient in (image.local.grad, image.pooled.grad, text.local.grad, text.pooled.grad):
        assert (gradient == 0).all()


@pytest.mark.parametrize("value", [0.0, -1e30, 1e30])
def test_padding_does_not_matter_however_large(value: float) -> None:
    found = []
    for fill in (False, True):
        image, text = (
            with_gradient(f._replace(local=f.local.masked_fill(~f.mask[..., None], value) if fill else f.local))
            for f in (IMAGE, TEXT)
        )
        parts = damsm_loss(image, text, CLASSES)
        sum(parts).backward()
        for features in (image, text):
            assert (features.local.grad[~features.mask] == 0).all()
        found.append([*parts, image.local.grad, image.pooled.grad, text.local.grad, text.pooled.grad])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_losses_are_float32_under_bfloat16_autocast() -> None:
    network, pictures = judge().float(), [x.float() for x in batch()]
    image, text = (f.to(torch.bfloat16) for f in (IMAGE, TEXT))
    exact = discriminator_loss(network, *pictures), generator_loss([network], pictures[1:2], pictures[2])
    wide = image.to(torch.float32), text.to(torch.float32)
    scores, parts = damsm_word_scores(*wide), damsm_loss(*wide)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = discriminator_loss(network, *pictures), generator_loss([network], pictures[1:2], pictures[2])
        narrow_scores, narrow_parts = damsm_word_scores(image, text), damsm_loss(image, text)
    for one, other in zip(coarse, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.02, atol=0)
        assert one != other
    # DAMSM computes what it is given in float32, not only the outcome.
    torch.testing.assert_close(narrow_scores, scores)
    torch.testing.assert_close(narrow_parts, parts)


# ---------------------------------------------------------------------------------------------- DAMSM and the package


@pytest.mark.parametrize("classes", [None, CLASSES], ids=["unmasked", "masked"])
def test_sentence_part_is_the_package_s_global_loss(classes: Tensor | None) -> None:
    excluded = None if classes is None else classes[:, None] == classes[None, :]
    parts = damsm_loss(IMAGE, TEXT, classes, gamma3=7.0)
    assert torch.equal(
        parts.damsm_s0 + parts.damsm_s1,
        matched_loss(global_scores(IMAGE, TEXT), 7.0, excluded),
    )


def test_word_part_is_the_package_s_posterior_of_other_scores() -> None:
    excluded = CLASSES[:, None] == CLASSES[None, :]
    parts = damsm_loss(IMAGE, TEXT, CLASSES)
    assert torch.equal(parts.damsm_w0 + parts.damsm_w1, matched_loss(damsm_word_scores(IMAGE, TEXT), 10.0, excluded))
    other = matched_loss(local_scores(IMAGE, TEXT), 10.0, excluded)
    assert (parts.damsm_w0 + parts.damsm_w1 - other).abs() > 0.1


@pytest.mark.parametrize("name", ["contrastive_loss", "global_scores", "unit"])
def test_damsm_shares_the_package_s_functions(name: str) -> None:
    assert getattr(losses, name) is getattr(matching, name)


def test_word_score_without_the_package_s_factor() -> None:
    """Of a single word, DAMSM attends to all regions alike, as the package does for gamma1 = 0; the factor remains."""
    word = random_features([1, 1, 1], seed=5)
    scores, package = damsm_word_scores(IMAGE, word, 4.0, 3.0), local_scores(IMAGE, word, 0.0, 3.0)
    same(scores, 3.0 * package)
    assert (scores - package).abs().max() > 0.1


def test_word_score_differs_beyond_the_factor() -> None:
    unit_text = TEXT._replace(local=unit(TEXT.local))
    unit_image = IMAGE._replace(local=unit(IMAGE.local))
    package, ours = 5.0 * local_scores(IMAGE, TEXT), damsm_word_scores(IMAGE, TEXT)
    assert (ours - package).abs().max() > 0.1
    # The length of a word matters to a dot product alone.
    same(5.0 * local_scores(IMAGE, unit_text), package)
    assert (damsm_word_scores(IMAGE, unit_text) - ours).abs().max() > 0.1
    # Where all vectors have length 1, dot products are cosines, and the softmax over words remains.
    difference = damsm_word_scores(unit_image, unit_text) - 5.0 * local_scores(unit_image, unit_text)
    assert difference.abs().max() > 0.1
