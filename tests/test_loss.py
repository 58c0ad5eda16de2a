"""The dual loss equals loops over pairs, term by term; it stays frozen, finite and precise; errors name arguments."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import reference
import torch
from reference import NAMES, TinyEncoder, TinyTextEncoder, pictures, random_features, sharpen
from torch import nn

import vlm_plugin.loss
from vlm_plugin import TERMS, VLM, ConvEncoder, DualVLMLoss, Features, LSTMTextEncoder, MatchingScoreBlock, Vocabulary
from vlm_plugin.host import FrontDoor

WEIGHTS = {"lambda_vvm": 0.3, "lambda_vlm": 1.7}
GROUPS = [3, 1, 3, -7]
LENGTHS = [2, 5, 1, 3]


class Counting(nn.Module):
    """Counts the calls of a scorer, and the kinds it was asked for."""

    def __init__(self, scorer):
        super().__init__()
        self.scorer, self.kinds = scorer, []

    def forward(self, image, anchor, kind):
        self.kinds.append(kind)
        return self.scorer(image, anchor, kind)


def make_scorer(dim=6):
    torch.manual_seed(1)
    return sharpen(MatchingScoreBlock(dim, layers=2, heads=2)).double()


def make_loss(encoder=None, scorer=None, **arguments):
    encoder, scorer = encoder or TinyEncoder(some_regions=True), scorer or make_scorer()
    return DualVLMLoss(image_encoder=encoder.double(), scorer=scorer, **{**WEIGHTS, **arguments})


def batch(size=4, seed=0):
    """Fakes with gradient, captions of unequal lengths, real images."""
    return (
        pictures(size, seed).requires_grad_(),
        random_features((LENGTHS * size)[:size], seed=seed + 1),
        pictures(size, seed + 2),
    )


# ----------------------------------------------------------------------------------------- values and gradients


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["no classes", "classes"])
@pytest.mark.parametrize("gammas", [{}, {"gamma1": 2.0, "gamma2": 3.0, "gamma3": 7.0}], ids=["default", "other"])
def test_terms_total_and_gradient_equal_the_loops(groups, gammas):
    """Unequal weights and captions, masked regions, repeated classes; gradient through the encoder to the fakes."""
    loss = make_loss(**gammas)
    fake, text, real = batch()
    total, terms = loss(fake, text, real, class_ids=None if groups is None else torch.tensor(groups))
    (gradient,) = torch.autograd.grad(total, fake)

    slow = fake.detach().clone().requires_grad_()
    image = loss.image_encoder(slow)
    assert not image.mask.all(), "this batch should have masked regions"
    sharpness = {"gamma3_local": gammas["gamma2"] * gammas["gamma3"]} if gammas else {}
    expected = reference.dual_terms(
        image, text, loss.image_encoder(real).detach(), loss.scorer, groups, **gammas, **sharpness
    )
    assert list(terms) == list(NAMES)
    for name in NAMES:
        torch.testing.assert_close(terms[name], expected[name], rtol=1e-9, atol=1e-11, msg=name)
    expected_total = reference.total(expected, **WEIGHTS)
    torch.testing.assert_close(total, expected_total, rtol=1e-9, atol=0)
    (slow_gradient,) = torch.autograd.grad(expected_total, slow)
    torch.testing.assert_close(gradient, slow_gradient, rtol=1e-8, atol=1e-11)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_each_term_alone_equals_the_loops(name):
    """Value, weight and gradient of every single term, the latter with regard to the image's features."""
    fake, text, real = batch()
    loss = make_loss(terms=[name], gamma3_local=11.0)
    total, terms = loss(fake, text, real, class_ids=GROUPS)
    slow = fake.detach().clone().requires_grad_()
    expected = reference.dual_terms(
        loss.image_encoder(slow), text, loss.image_encoder(real).detach(), loss.scorer, GROUPS, gamma3_local=11.0
    )[name]
    assert list(terms) == [name]
    torch.testing.assert_close(terms[name], expected, rtol=1e-9, atol=0)
    weight = WEIGHTS[f"lambda_{name[:3]}"]
    torch.testing.assert_close(total, weight * expected, rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(total, fake)
    (slow_gradient,) = torch.autograd.grad(weight * expected, slow)
    torch.testing.assert_close(gradient, slow_gradient, rtol=1e-8, atol=1e-11)
    assert gradient.abs().max() > 1e-5


class FromFeatures(nn.Module):
    """An "encoder" that hands out given features for the fakes, to ask for gradients with regard to them."""

    def __init__(self, features, real):
        super().__init__()
        self.features, self.real = features, real

    def forward(self, images):
        return self.features if images.requires_grad else self.real


def test_gradcheck_with_regard_to_the_features():
    mask, anchor = random_features([4, 2, 4, 1]).mask, random_features([1, 2, 4, 3], seed=5)
    fake, text, real = batch()

    def total(local, pooled):
        loss = make_loss(FromFeatures(Features(local, pooled, mask), anchor))
        return loss(fake, text, real, class_ids=GROUPS).total

    image = random_features([4, 4, 4, 4], seed=4)
    assert torch.autograd.gradcheck(total, [part.requires_grad_() for part in image[:2]])


def test_total_is_the_weighted_sum_and_weights_may_be_ramped():
    loss = make_loss()
    fake, text, real = batch()
    for vvm, vlm in ((0.3, 1.7), (0.0, 2.0), (5.0, 0.0)):
        loss.lambda_vvm, loss.lambda_vlm = vvm, vlm
        total, terms = loss(fake, text, real)
        torch.testing.assert_close(total, reference.total(terms, vvm, vlm), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(total, fake)[0],
        5.0 * torch.autograd.grad(make_loss(terms=TERMS[3:], lambda_vvm=1)(fake, text, real).total, fake)[0],
    )


def test_class_ids_of_any_kind():
    loss = make_loss()
    fake, text, real = batch()
    expected = loss(fake, text, real, class_ids=torch.tensor(GROUPS)).total
    assert expected < loss(fake, text, real).total
    for ids in (GROUPS, np.array(GROUPS), np.array(GROUPS, dtype=np.int16), torch.tensor(GROUPS, dtype=torch.int8)):
        assert torch.equal(loss(fake, text, real, class_ids=ids).total, expected)
    assert torch.equal(loss(fake, text, real, class_ids=[1, 2, 3, 4]).total, loss(fake, text, real).total)


@pytest.mark.parametrize(
    ("large", "small"),
    [
        ([2**62 + 1, 2**62, 5, 5 + 2**32], [0, 1, 2, 3]),
        ([5, 5 + 2**8, 5 + 2**16, 5 - 2**63], [0, 1, 2, 3]),
        ([2**62 + 1, 2**62, 2**62 + 1, 2**62], [0, 1, 0, 1]),
        ([2**62 + 1, -(2**62), 5 + 2**32, 2**62 + 1], [0, 1, 2, 0]),
    ],
)
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_class_ids_count_to_their_last_bit(large, small, kind):
    """Hashes serve: they are compared whole, as integers."""
    loss, (fake, text, real) = make_loss(), batch()
    found, expected = (loss(fake, text, real, class_ids=ids) for ids in (kind(large), small))
    assert torch.equal(found.total, expected.total)
    assert torch.equal(*(torch.autograd.grad(output.total, fake)[0] for output in (found, expected)))


def test_general_terms_do_not_depend_on_classes_or_neighbours():
    """They judge each pair alone: the mean over a batch is the mean over its pairs."""
    loss = make_loss(terms=["vlm_general", "vvm_general"])
    fake, text, real = batch()
    whole = loss(fake, text, real, class_ids=GROUPS).terms
    single = [loss(fake[i : i + 1], Features(*(p[i : i + 1] for p in text)), real[i : i + 1]).terms for i in range(4)]
    for name, value in whole.items():
        torch.testing.assert_close(value, sum(s[name] for s in single) / 4)


# ------------------------------------------------------------------------------------------------- terms and calls


def test_names_and_their_order():
    assert TERMS == NAMES
    fake, text, real = batch()
    for terms in (TERMS, reversed(TERMS), set(TERMS), ["vvm_general", "vlm_local", "vvm_general"]):
        terms = list(terms)
        output = make_loss(terms=iter(terms))(fake, text, real)
        assert list(output.terms) == [name for name in NAMES if name in terms]
        assert output._fields == ("total", "terms")


@pytest.mark.parametrize(
    ("terms", "images", "kinds"),
    [
        (NAMES, 2, ["caption", "image"]),
        (["vlm_local", "vlm_global"], 1, []),
        (["vlm_general"], 1, ["caption"]),
        (["vvm_local"], 2, []),
        (["vvm_global", "vvm_general", "vlm_global"], 2, ["image"]),
    ],
)
def test_what_is_off_is_not_computed(terms, images, kinds, monkeypatch):
    """The fakes are encoded once, the real images at most once, scores and scorer only as far as terms are on."""
    calls = {"local": 0, "global": 0}
    fake, text, real = batch()
    full = make_loss()(fake, text, real).terms

    def counted(name, function):
        def wrapper(*arguments):
            calls[name] += 1
            return function(*arguments)

        return wrapper

    for name in calls:
        function = getattr(vlm_plugin.loss, f"{name}_scores")
        monkeypatch.setattr(vlm_plugin.loss, f"{name}_scores", counted(name, function))
    loss = make_loss(scorer=Counting(make_scorer()), terms=terms)
    output = loss(fake, text, real)
    assert loss.image_encoder.calls == images
    assert loss.scorer.kinds == kinds
    assert calls == {level: sum(t.endswith(level) for t in terms) for level in calls}
    assert set(output.terms) == set(terms)
    assert all(torch.equal(value, full[name]) for name, value in output.terms.items())


def test_halves_do_not_need_the_other_halfs_arguments():
    fake, text, real = batch()
    vlm = make_loss(terms=[t for t in TERMS if t.startswith("vlm")])
    assert torch.equal(vlm(fake, text).total, vlm(fake, text, real).total)
    vvm = make_loss(terms=[t for t in TERMS if t.startswith("vvm")])
    assert torch.equal(vvm(fake, real=real).total, vvm(fake, text, real).total)


def test_terms_are_detached_scalars_and_total_carries_gradient():
    total, terms = make_loss()(*batch())
    assert total.requires_grad
    assert total.shape == ()
    for value in terms.values():
        assert not value.requires_grad
        assert value.shape == ()


# ---------------------------------------------------------------------------------------------------- host layouts


def test_a_damsm_image_encoder_gives_the_same_loss():
    """A host's (regions, code) encoder and its (B, D, T) words are the same loss as Features."""
    fake, text, real = batch()
    ours = make_loss(TinyEncoder())(fake, text, real)
    host_text = vlm_plugin.text_features(text.local.transpose(1, 2), text.pooled, torch.tensor(LENGTHS))
    host = make_loss(TinyEncoder(pair=True))(fake, host_text, real)
    assert torch.equal(ours.total, host.total)
    host.total.backward()
    assert fake.grad.abs().max() > 0


def test_an_encoder_without_parameters():
    """Any module that maps images to Features will do."""

    class Pixels(nn.Module):
        def forward(self, images):
            x = nn.functional.adaptive_avg_pool2d(images, 2)
            return torch.cat([x, x.square()], 1), torch.cat([x, x.square()], 1).mean((2, 3))

    fake, text, real = batch()
    total, _ = DualVLMLoss(image_encoder=Pixels(), scorer=make_scorer(), **WEIGHTS)(fake, text, real)
    assert torch.autograd.grad(total, fake)[0].abs().max() > 0


def test_real_and_fake_may_differ_in_size():
    vlm = make_vlm()
    loss = DualVLMLoss(vlm, **WEIGHTS)
    total, _ = loss(
        pictures(2, 0, torch.float32, 16), loss.encode_text(["a bird", "red"]), pictures(2, 1, torch.float32, 40)
    )
    assert total.isfinite()


def make_vlm():
    torch.manual_seed(0)
    words = ["<end>", "<unk>", "a", "small", "red", "blue", "bird", "with", "black", "wings"]
    return VLM(
        ConvEncoder(16, 4),
        LSTMTextEncoder(len(words), 16, 8),
        Vocabulary(words),
        sharpen(MatchingScoreBlock(16, 1, 2)),
        max_words=4,
    )


def test_captions_through_a_vlm():
    """Strings and ids give the same anchors, without gradient, in float32 also under autocast."""
    vlm = make_vlm()
    loss = DualVLMLoss(vlm, **WEIGHTS)
    assert loss.image_encoder is vlm.image_encoder
    assert loss.text_encoder is vlm.text_encoder
    assert loss.scorer is vlm.scorer
    captions = ["a small red bird with black wings", "bird"]
    text = loss.encode_text(captions)
    assert text.mask.sum(1).tolist() == [4, 1]
    tokens, lengths = vlm.vocabulary.encode_batch(captions, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same = loss.encode_tokens(tokens, lengths)
        again = loss.encode_text(captions)
    for part, other, third in zip(text, same, again, strict=True):
        assert torch.equal(part, other)
        assert torch.equal(part, third)
        assert not part.requires_grad
    fake = pictures(2, 0, torch.float32, 64).requires_grad_()
    total, _ = loss(fake, text, pictures(2, 1, torch.float32, 64))
    total.backward()
    assert fake.grad.abs().max() > 0
    parts = {"image_encoder": vlm.image_encoder, "text_encoder": vlm.text_encoder, "scorer": vlm.scorer}
    by_parts = DualVLMLoss(**parts, **WEIGHTS)
    assert torch.equal(by_parts(fake, text, pictures(2, 1, torch.float32, 64)).total, total)
    assert sorted(by_parts.state_dict()) == sorted(loss.state_dict())


def test_captions_are_encoded_in_float32_under_autocast():
    """By a text encoder that autocast would run in bfloat16, as it does linear layers."""

    class Projected(LSTMTextEncoder):
        def __init__(self, words):
            super().__init__(words, 16, 8)
            self.project = nn.Linear(16, 16)

        def forward(self, tokens, lengths):
            found = super().forward(tokens, lengths)
            return Features(self.project(found.local), self.project(found.pooled), found.mask)

    vlm = make_vlm()
    vlm.text_encoder = Projected(len(vlm.vocabulary))
    loss, captions = DualVLMLoss(vlm, **WEIGHTS), ["a small red bird", "bird"]
    ids = vlm.vocabulary.encode_batch(captions, 4)
    for encode in (lambda: loss.encode_text(captions), lambda: loss.encode_tokens(*ids)):
        plain = encode()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert vlm.text_encoder(*ids).pooled.dtype == torch.bfloat16
            under = encode()
        assert under.local.dtype == under.pooled.dtype == torch.float32
        assert all(torch.equal(a, b) for a, b in zip(plain, under, strict=True))


def test_captions_errors():
    vlm = make_vlm()
    loss = DualVLMLoss(vlm, **WEIGHTS)
    with pytest.raises(TypeError, match="captions: expected a list of strings, got str"):
        loss.encode_text("a bird")
    with pytest.raises(ValueError, match=r"captions\[1\]: expected at least one word"):
        loss.encode_text(["a bird", "?"])
    with pytest.raises(ValueError, match=r"tokens: .* vocabulary has 10 words, got id 99"):
        loss.encode_tokens(torch.tensor([[99]]), torch.tensor([1]))
    with pytest.raises(ValueError, match="lengths: expected at least one word"):
        loss.encode_tokens(torch.tensor([[1]]), torch.tensor([0]))
    with pytest.raises(TypeError, match="tokens: expected an integer Tensor"):
        loss.encode_tokens([[1]], [1])
    bare = make_loss()
    with pytest.raises(ValueError, match="encode_text: this loss was built from modules"):
        bare.encode_text(["a bird"])
    with pytest.raises(ValueError, match="encode_tokens: this loss has no text_encoder"):
        bare.encode_tokens(torch.tensor([[1]]), torch.tensor([1]))
    host = make_loss(text_encoder=TinyTextEncoder().double())
    assert host.encode_tokens(torch.tensor([[1, 2]]), torch.tensor([1])).mask.tolist() == [[True, False]]


# ------------------------------------------------------------------------------------------------- frozen for good


def test_frozen_for_good():
    """A host that wakes, unfreezes and optimises everything it holds changes nothing inside, BatchNorm and dropout
    included; the generator still learns."""
    loss = make_loss(TinyEncoder(noisy=True), text_encoder=TinyTextEncoder().double())
    generator = nn.Linear(5, 3 * 8 * 8).double()
    parent = nn.ModuleDict({"loss": loss, "generator": generator})
    before = copy.deepcopy(loss.state_dict())
    first = generator.weight.detach().clone()
    optimizer = torch.optim.SGD(parent.parameters(), lr=0.1, weight_decay=0.1)
    _, text, real = batch()
    noise = torch.randn(4, 5, dtype=torch.float64)
    for _ in range(3):
        parent.train()
        parent.requires_grad_(True)
        optimizer.zero_grad()
        fake = generator(noise).view(4, 3, 8, 8).tanh()
        total, _ = loss(fake, text, real)
        parent.train()
        parent.requires_grad_(True)
        total.backward()
        for name, parameter in loss.named_parameters():
            assert parameter.grad is None, name
        assert generator.weight.grad.abs().max() > 0
        optimizer.step()
    assert (generator.weight - first).abs().max() > 0
    after = loss.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert any("running_mean" in name for name in before)
    assert not any(module.training for module in loss.modules())
    assert torch.equal(loss(fake, text, real).total, loss(fake, text, real).total)


def test_parts_shared_with_a_training_host_are_eval_at_every_call():
    """The host trains the module it shares; the loss puts it back, in `encode_tokens` too."""
    encoder, text_encoder = TinyEncoder(noisy=True), TinyTextEncoder().double()
    loss = make_loss(encoder, text_encoder=text_encoder)
    fake, text, real = batch()
    expected = loss(fake, text, real).total
    encoder.train().requires_grad_(True)
    assert torch.equal(loss(fake, text, real).total, expected)
    assert not encoder.noise.training
    text_encoder.train().requires_grad_(True)
    loss.encode_tokens(torch.tensor([[1]]), torch.tensor([1]))
    assert not text_encoder.training
    assert not any(p.requires_grad for p in loss.parameters())


def test_train_returns_the_loss_in_eval_mode():
    loss = make_loss()
    assert loss.train() is loss
    assert loss.train(True) is loss
    assert loss.eval() is loss
    assert not loss.training


def test_anchors_get_no_gradient_and_the_fakes_do():
    loss = make_loss()
    fake, text, real = batch()
    text.local.requires_grad_()
    text.pooled.requires_grad_()
    real.requires_grad_()
    loss(fake, text, real).total.backward()
    assert real.grad is None
    assert text.local.grad is None
    assert text.pooled.grad is None
    assert (fake.grad.flatten(1).abs().amax(1) > 0).all()


def test_the_fake_is_its_own_real_image():
    """The same tensor as fake and as real: gradient flows through the fake's role alone."""
    loss = make_loss(terms=TERMS[3:])
    fake = pictures(4).requires_grad_()
    apart = fake.detach().clone().requires_grad_()
    loss(fake, real=fake).total.backward()
    loss(apart, real=fake.detach()).total.backward()
    assert torch.equal(fake.grad, apart.grad)


# ---------------------------------------------------------------------------------------------- augment and ranges


def test_an_augmenting_module_stays_awake():
    """Dropout is one; the matcher around it sleeps."""
    fake, text, real = batch()
    plain = make_loss()(fake, text, real).total
    loss = make_loss(augment=nn.Dropout2d(0.5))
    for host in (loss, loss.train(), loss.eval()):
        torch.manual_seed(0)
        assert not torch.equal(host(fake, text, real).total, plain)
    assert not loss.image_encoder.training


def test_augment_sees_the_fakes_alone_in_the_encoders_range():
    seen = []

    def augment(images):
        seen.append(images)
        return images.flip(-1) * 0.5

    fake, text, real = batch()
    plain = make_loss()
    expected = plain(fake.detach().flip(-1) * 0.5, text, real).total
    output = make_loss(augment=augment)(fake, text, real)
    assert torch.equal(output.total, expected)
    assert output.total != plain(fake, text, real).total
    assert [x.shape for x in seen] == [fake.shape]
    output.total.backward()
    assert fake.grad.abs().max() > 0
    make_loss(augment=augment, image_range=(0, 255))((fake + 1) * 127.5, text, (real + 1) * 127.5)
    torch.testing.assert_close(seen[1], fake)


@pytest.mark.parametrize("image_range", [(0, 1), (0, 255), (-0.5, 0.5)])
def test_image_range(image_range):
    """The same pictures in another range: the same loss, and the gradient by the chain rule."""
    low, high = image_range
    half = (high - low) / 2
    fake, text, real = batch()
    expected = make_loss()(fake, text, real).total
    (gradient,) = torch.autograd.grad(expected, fake)
    other = (fake.detach() * half + low + half).requires_grad_()
    total = make_loss(image_range=image_range)(other, text, real * half + low + half).total
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(torch.autograd.grad(total, other)[0] * half, gradient, rtol=1e-7, atol=1e-11)


def test_image_range_is_that_of_the_encoder():
    """An encoder may want another range than [-1, 1]; it says so in `input_range`."""
    fake, text, real = batch()

    def total(fake, real, input_range, **arguments):
        encoder = TinyEncoder(some_regions=True)
        encoder.input_range = input_range
        return make_loss(encoder, **arguments)(fake, text, real).total

    mapped = total(fake, real, (0, 1))
    torch.testing.assert_close(mapped, total((fake + 1) / 2, (real + 1) / 2, (0, 1), image_range=(0, 1)))
    torch.testing.assert_close(total(fake, real, (-1, 1)), make_loss()(fake, text, real).total, rtol=0, atol=0)
    assert (mapped - total(fake, real, (-1, 1))).abs() > 1e-3


@pytest.mark.parametrize(
    ("image_range", "convert", "message"),
    [
        ((-1, 1), lambda x: (x + 1) / 2, r"real: .*image_range \(-1.0, 1.0\), got no negative value .*\(0, 1\)"),
        ((-1, 1), lambda x: (x + 1) * 127.5, r"real: .*image_range \(-1.0, 1.0\), got .* to 25"),
        ((-1, 1), lambda x: x * 2, r"real: .*image_range"),
        ((0, 1), lambda x: x, r"real: .*image_range \(0.0, 1.0\), got -"),
        ((0, 1), lambda x: (x + 1) * 127.5, r"real: .*image_range \(0.0, 1.0\), got .* to 25"),
        ((0, 255), lambda x: (x + 1) / 2, r"real: .*image_range \(0.0, 255.0\), got .*\(0, 1\)"),
        ((0, 255), lambda x: x, r"real: .*image_range \(0.0, 255.0\)"),
    ],
)
def test_real_images_of_another_range(image_range, convert, message):
    fake, text, real = batch()
    loss = make_loss(image_range=image_range)
    for _ in range(2):  # an error is no check passed
        with pytest.raises(ValueError, match=message):
            loss(fake, text, convert(real))


def test_nan_in_real_images_is_refused_and_is_no_check_passed():
    loss = make_loss()
    fake, text, real = batch()
    broken = real.clone()
    broken[1, 2, 3, 4] = float("nan")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"real: expected values in image_range \(-1.0, 1.0\), got NaN"):
            loss(fake, text, broken)
    with pytest.raises(ValueError, match=r"real: .*image_range \(-1.0, 1.0\), got .* to 25"):
        loss(fake, text, (real + 1) * 127.5)
    loss(fake, text, real)


def test_real_images_are_checked_where_no_term_needs_them():
    fake, text, real = batch()
    loss = make_loss(terms=["vlm_global"])
    loss(fake, text)
    for wrong, message in (
        ((real + 1) / 2, r"real: .*image_range \(-1.0, 1.0\), got no negative value"),
        (real[:-1], "real: expected 4 images as in fake, got 3"),
        (real[0], r"real: expected shape \(B, 3, H, W\)"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(fake, text, wrong)
    torch.testing.assert_close(loss(fake, text, real).total, loss(fake, text).total)


@pytest.mark.filterwarnings("ignore:fake")
def test_range_is_checked_once_and_never_on_fakes(monkeypatch):
    loss = make_loss()
    fake, text, real = batch()
    looked = []
    original = torch.Tensor.min
    monkeypatch.setattr(torch.Tensor, "min", lambda self, *a, **k: looked.append(self) or original(self, *a, **k))
    loss(fake.detach() * 100, text, real)
    assert [x.data_ptr() for x in looked] == [real.data_ptr()]
    for _ in range(2):
        loss(fake.detach() + 300, text, real.abs())  # of the wrong range, but the first batch has told
    assert len(looked) == 1


@pytest.mark.parametrize(
    ("image_range", "convert", "message"),
    [
        (
            (-1, 1),
            lambda x: (x + 1) / 2,
            r"none negative, where image_range is \(-1.0, 1.0\): if theirs",
        ),
        ((-1, 1), lambda x: x * 50, r"far outside of image_range \(-1.0, 1.0\)"),
        ((0, 1), lambda x: x * 2, r"far outside of image_range \(0.0, 1.0\)"),
    ],
)
def test_generated_images_of_another_range_are_told_of_once(image_range, convert, message):
    fake, text, real = batch()
    low, high = image_range
    loss, real = make_loss(image_range=image_range), (real + 1) * (high - low) / 2 + low
    with pytest.warns(UserWarning, match=f"^fake: the first generated images have values from .*{message}") as told:
        loss(convert(fake), text, real)
    assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="fake")
        loss(convert(fake), text, real)
        # In range, uniform, or of an untrained generator without tanh: nothing to say.
        for usual in (fake, fake * 0, fake * 2.5):
            make_loss()(usual, text, batch()[2])


def test_captions_that_the_matcher_hardly_knows_are_told_of_once():
    loss = DualVLMLoss(make_vlm(), **WEIGHTS)
    known = loss._door.vlm.vocabulary.words[2]
    with pytest.warns(
        UserWarning, match="^captions: 2 of the first 4 words are unknown .* \\(zebra, lion\\), which"
    ) as told:
        loss.encode_text([f"{known} zebra", f"lion {known}"])
    assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="captions")
        loss.encode_text([f"{known} zebra"])
        DualVLMLoss(make_vlm(), **WEIGHTS).encode_text([f"{known} {known} {known} {known} zebra"])


def test_a_few_values_beyond_an_end_tell_no_range():
    """Resized pictures overshoot: in [0, 1] as well, which then has negative values."""
    real = batch()[2]
    for low, high in ((-1, 1), (0, 1), (0, 255)):
        ends = real.clone() * (high - low) / 2 + (high + low) / 2
        near, far = ends.clone(), ends.clone()
        near[0, 0, 0, 0], far[0, 0, 0, 0] = high + 0.009 * (high - low), high + 0.011 * (high - low)
        FrontDoor((low, high)).check_range(near)
        with pytest.raises(ValueError, match="real: expected values in image_range"):
            FrontDoor((low, high)).check_range(far)
    from_zero = (real + 1) / 2
    from_zero[0, 0, 0, 0] = -0.001
    with pytest.raises(ValueError, match="got no negative value to speak of"):
        FrontDoor((-1, 1)).check_range(from_zero)
    with pytest.raises(ValueError, match=r"real: .*image_range \(0.0, 255.0\), got -2"):
        FrontDoor((0, 255)).check_range(real * 2.1)


@pytest.mark.filterwarnings("ignore:fake")
@pytest.mark.parametrize("image_range", [(-1, 1), (0, 1)])
def test_fakes_outside_the_range_are_not_clamped(image_range):
    """They are encoded as they are, and the gradient that would bring them back is the encoder's."""
    low, high = image_range
    loss, (fake, text, real) = make_loss(image_range=image_range), batch()
    fake = (fake.detach() * 100).requires_grad_()
    total, _ = loss((fake + 1) * (high - low) / 2 + low, text, (real + 1) * (high - low) / 2 + low)
    (gradient,) = torch.autograd.grad(total, fake)
    slow = fake.detach().clone().requires_grad_()
    expected = reference.total(
        reference.dual_terms(loss.image_encoder(slow), text, loss.image_encoder(real).detach(), loss.scorer), **WEIGHTS
    )
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, slow)[0], rtol=1e-8, atol=1e-11)
    assert gradient[fake.abs() > 1].abs().max() > 1e-4


def test_uniform_pictures_tell_no_range():
    """A grey batch fits any range: the check waits for one with content."""
    loss = make_loss()
    fake, text, real = batch()
    loss(fake, text, torch.zeros_like(real))
    with pytest.raises(ValueError, match=r"real: .*no negative value"):
        loss(fake, text, real.abs())


# ------------------------------------------------------------------------------------------------------- precision


class Full(nn.Module):
    """Runs the encoder outside autocast, so that what is left under autocast is the loss itself."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        with torch.autocast("cpu", enabled=False):
            return self.encoder(images)


def test_scores_leave_autocast():
    """Local and global terms are bit-identical under autocast when the encoder is; all terms are float32."""
    loss = DualVLMLoss(image_encoder=Full(TinyEncoder()), scorer=make_scorer().float(), **WEIGHTS)
    fake, text, real = (x.detach().to(torch.float32) for x in batch())
    plain = loss(fake, text, real)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = loss(fake, text, real)
    assert {low.total.dtype, *(v.dtype for v in low.terms.values())} == {torch.float32}
    for name in NAMES:
        if name.endswith("general"):
            torch.testing.assert_close(low.terms[name], plain.terms[name], rtol=0.05, atol=0.02)
        else:
            assert torch.equal(low.terms[name], plain.terms[name]), name


def test_autocast_is_close_to_float32():
    """Encoders in bfloat16, a generator's bfloat16 images included: values near float32's, finite gradients."""
    loss = DualVLMLoss(image_encoder=TinyEncoder(), scorer=make_scorer().float(), gamma3_local=10.0, **WEIGHTS)
    fake, text, real = (x.detach().to(torch.float32) for x in batch())
    plain = loss(fake, text, real)
    for dtype in (torch.float32, torch.bfloat16):
        images = fake.clone().to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = loss(images, text.to(dtype), real)
        low.total.backward()
        assert low.total.dtype == torch.float32
        assert images.grad.isfinite().all()
        for name in NAMES:
            torch.testing.assert_close(low.terms[name], plain.terms[name], rtol=0.05, atol=0.1, msg=name)


def test_float64_stays_float64():
    fake, text, real = batch()
    plain = make_loss()(fake, text, real)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = make_loss()(fake, text, real)
    for output in (plain, under):
        assert {output.total.dtype, *(v.dtype for v in output.terms.values())} == {torch.float64}
    for name, value in plain.terms.items():
        torch.testing.assert_close(under.terms[name], value, rtol=1e-12, atol=0)


@pytest.mark.cuda
def test_cuda_under_autocast():
    """On a GPU in bfloat16, with lengths and class ids on the CPU: finite total and gradients."""
    loss = DualVLMLoss(make_vlm(), **WEIGHTS).to("cuda")
    tokens, lengths = loss._door.vlm.vocabulary.encode_batch(["a small red bird", "bird", "blue wings"])
    real = pictures(3, 1, torch.float32, 64).cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        encoded = loss.encode_tokens(tokens, lengths)
        host = vlm_plugin.text_features(encoded.local.transpose(1, 2), encoded.pooled, lengths)
        for text in (encoded, host, loss.encode_text(["a small red bird", "bird", "blue wings"])):
            fake = pictures(3, 0, torch.float32, 64).cuda().requires_grad_()
            total, terms = loss(fake, text, real, class_ids=np.array([1, 2, 1]))
            total.backward()
            assert total.isfinite()
            assert total.dtype == torch.float32
            assert all(value.isfinite() for value in terms.values())
            assert fake.grad.isfinite().all()
            assert fake.grad.abs().max() > 0
    with pytest.raises(ValueError, match="fake: expected images on cuda:0, where the matcher is, got cpu"):
        loss(fake.detach().cpu(), encoded, real)
    with pytest.raises(ValueError, match="text: expected features on cuda:0, got cpu"):
        loss(fake, encoded.to("cpu"), real)


# --------------------------------------------------------------------------------------------------- finite always


def finite(loss, fake, text, real, **arguments):
    fake = fake.detach().clone().requires_grad_()
    total, terms = loss(fake, text, real, **arguments)
    total.backward()
    assert total.isfinite()
    assert all(value.isfinite() for value in terms.values())
    assert fake.grad.isfinite().all()
    return terms, fake.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_a_perfect_match(dtype):
    """The fakes are the real images, and the captions' features are the images' own."""
    loss = make_loss().to(dtype)
    real = pictures(4, dtype=dtype)
    with torch.no_grad():
        text = loss.image_encoder(real)
    finite(loss, real, text, real)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_zero_features(dtype):
    loss = make_loss(TinyEncoder()).to(dtype)
    for parameter in loss.image_encoder.parameters():
        parameter.zero_()
    fake, text, real = (x.detach().to(dtype) for x in batch())
    finite(loss, fake, text, real)
    finite(loss, fake, Features(text.local * 0, text.pooled * 0, text.mask), real)


@pytest.mark.filterwarnings("ignore:fake. one row")
def test_finite_with_one_word_and_one_pair():
    """B = 1 has no negatives: contrastive terms are 0, the general ones go on."""
    fake, _, real = batch(1)
    terms, gradient = finite(make_loss(), fake, random_features([1], seed=9), real)
    for name, value in terms.items():
        assert (value == 0) == (not name.endswith("general"))
    assert gradient.any()
    _, gradient = finite(make_loss(terms=["vlm_local", "vvm_global"]), fake, random_features([1], seed=9), real)
    assert not gradient.any()


@pytest.mark.filterwarnings("ignore:class_ids")
def test_finite_with_every_negative_masked():
    fake, text, real = batch()
    terms, gradient = finite(make_loss(), fake, text, real, class_ids=[7] * 4)
    assert all((value == 0) == (not name.endswith("general")) for name, value in terms.items())
    contrastive = [name for name in TERMS if not name.endswith("general")]
    _, gradient = finite(make_loss(terms=contrastive), fake, text, real, class_ids=[7] * 4)
    assert not gradient.any()


@pytest.mark.parametrize("bias", [1e4, -1e4, 1e30, -1e30])
def test_finite_with_huge_logits(bias):
    loss = make_loss().to(torch.float32)
    loss.scorer.to_score.bias.fill_(bias)
    fake, text, real = (x.detach().to(torch.float32) for x in batch())
    finite(loss, fake, text, real)


def test_a_confident_scorer_still_teaches():
    """At a logit of -40 the gradient is that of -logit, not zero: softplus, not the log of a sigmoid."""
    loss = make_loss(terms=["vlm_general"], lambda_vlm=1.0).to(torch.float32)
    loss.scorer.to_score.bias.fill_(-1000.0)
    fake, text, _ = (x.detach().to(torch.float32) for x in batch())
    fake.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(fake, text).total, fake)
    logits = loss.scorer(loss.image_encoder(fake), text, "caption")
    (expected,) = torch.autograd.grad(-logits.mean(), fake)
    torch.testing.assert_close(gradient, expected)
    assert gradient.any()


def test_nan_fakes_show():
    fake, text, real = batch()
    for name in TERMS:
        assert make_loss(terms=[name])(fake * float("nan"), text, real).total.isnan(), name


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"terms": ["vlm_local", "vlm_fine"]}, ValueError, r"terms: expected names of .*, got \['vlm_fine'\]"),
        ({"terms": []}, ValueError, "terms: expected at least one of"),
        ({"terms": "vlm_local"}, TypeError, "terms: expected a collection of names, got the string 'vlm_local'"),
        ({"image_range": (1, -1)}, ValueError, r"image_range: expected \(lowest, highest\), .*, got \(1, -1\)"),
        ({"image_range": (1, 1)}, ValueError, "image_range: expected"),
        ({"image_range": 1}, (TypeError, ValueError), "image_range: expected"),
        ({"image_range": (0, 1, 2)}, ValueError, "image_range: expected"),
        ({"image_range": (0, math.inf)}, ValueError, "image_range: expected .*both finite, got .*inf"),
        ({"image_range": "01"}, ValueError, "image_range: expected .*, got '01'"),
        ({"terms": None}, TypeError, "terms: expected a collection of names, got NoneType"),
        ({"augment": True}, TypeError, "augment: expected a function or module of images, got bool"),
        ({"lambda_vlm": None}, TypeError, "lambda_vlm: expected a finite number, got NoneType"),
        ({"lambda_vvm": math.nan}, ValueError, "lambda_vvm: expected a finite number, got nan"),
        ({"gamma1": "4"}, TypeError, "gamma1: expected a positive, finite number, got str"),
        ({"gamma2": None}, TypeError, "gamma2: expected a positive, finite number, got NoneType"),
        ({"gamma3": 0}, ValueError, "gamma3: expected a positive, finite number, got 0"),
        ({"gamma3_local": math.inf}, ValueError, "gamma3_local: expected a positive, finite number, got inf"),
        ({"vlm": make_vlm()}, ValueError, "vlm: expected either a VLM or the modules image_encoder, scorer"),
        ({"image_encoder": None}, TypeError, "image_encoder: expected a VLM or an image encoder, got NoneType"),
        ({"image_encoder": lambda x: x}, TypeError, "image_encoder: expected a VLM or an image encoder, got function"),
        ({"scorer": None}, ValueError, "terms: vlm_general, vvm_general need a trained scorer"),
        ({"scorer": "birds.vlm.pt"}, TypeError, "scorer: expected an nn.Module, got str"),
        ({"text_encoder": lambda tokens, lengths: None}, TypeError, "text_encoder: expected an nn.Module, got functio"),
        ({"scorer": None, "terms": ["vvm_general", "vlm_local"]}, ValueError, "terms: vvm_general need"),
    ],
)
def test_constructor_errors(arguments, error, message):
    arguments = {"image_encoder": TinyEncoder(), "scorer": make_scorer(), **WEIGHTS, **arguments}
    with pytest.raises(error, match=message):
        DualVLMLoss(**arguments)


def test_a_scorer_that_nothing_says_was_trained():
    parts = {"image_encoder": TinyEncoder(), **WEIGHTS}
    with pytest.warns(
        UserWarning, match="^scorer: nothing says that it was trained, and vlm_general, vvm_general are on"
    ) as told:
        DualVLMLoss(scorer=make_scorer(), **parts)
    assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DualVLMLoss(scorer=make_scorer(), terms=["vlm_local"], **parts)
        DualVLMLoss(scorer=make_scorer(), allow_other_encoders=True, **parts)
        vlm = make_vlm()
        vlm.stamp()
        DualVLMLoss(vlm, **WEIGHTS)


def test_what_an_encoder_or_an_augmentation_gives_back():
    class Fewer(TinyEncoder):
        def forward(self, images):
            return Features(*(part[:-1] for part in super().forward(images)))

    class Blind(TinyEncoder):
        def forward(self, images):
            features = super().forward(images)
            mask = features.mask.clone()
            mask[1] = False
            return features._replace(mask=mask)

    fake, text, real = batch()
    for half in ("vlm", "vvm"):
        with pytest.raises(ValueError, match=r"^image_encoder: expected features of 4 images, got 3$"):
            make_loss(Fewer(), terms=[f"{half}_local"])(fake, text, real)
        blind = make_loss(Blind(), terms=[f"{half}_global"])
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^image_encoder: expected at least one region of every image, got"):
                blind(fake, text, real)
    for augment, got in (
        (lambda x: x[:3], r"\(3, 3, "),
        (lambda x: x[:, :1], r"\(4, 1, "),
        (lambda x: None, "NoneType"),
    ):
        with pytest.raises(ValueError, match=rf"^augment: expected images \(4, 3, H, W\) of its 4 images, got {got}"):
            make_loss(augment=augment)(fake, text, real)
    # Another size is no mistake.
    assert make_loss(augment=lambda x: x[..., 1:, 1:])(fake, text, real).total.isfinite()


def test_autocast_leaves_float64_as_it_is():
    loss = DualVLMLoss(image_encoder=TinyEncoder().float(), scorer=make_scorer().float(), **WEIGHTS)
    fake, text, real = FAKE.float(), TEXT.to(torch.float32), REAL.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(fake, text, real).total.isfinite()
        for name, images in (("fake", (fake.double(), text, real)), ("real", (fake, text, real.double()))):
            with pytest.raises(TypeError, match=f"^{name}: expected torch.float32, .*float64, which autocast leaves"):
                loss(*images)


def test_a_text_encoder_of_a_damsm_pair():
    class Damsm(nn.Module):
        def forward(self, tokens, lengths):
            return torch.zeros(1, 6, 2), torch.zeros(1, 6)

    loss = make_loss(text_encoder=Damsm())
    with pytest.raises(
        TypeError, match=r"^text_encoder: expected Features \(text_features\(\.\.\.\) makes them .* got tuple"
    ):
        loss.encode_tokens(torch.ones(1, 2, dtype=torch.long), torch.tensor([2]))


def test_constructor_errors_of_the_vlm():
    with pytest.raises(TypeError, match=r"vlm: expected a VLM .*, got str"):
        DualVLMLoss("birds.vlm.pt", **WEIGHTS)
    for part in ("image_encoder", "scorer", "text_encoder"):
        with pytest.raises(ValueError, match="vlm: expected either"):
            DualVLMLoss(make_vlm(), **{part: nn.Identity()}, **WEIGHTS)
    with pytest.raises(TypeError, match="lambda_v"):
        DualVLMLoss(make_vlm())
    DualVLMLoss(image_encoder=TinyEncoder(), terms=["vlm_local"], **WEIGHTS)


FAKE, TEXT, REAL = pictures(4), random_features(LENGTHS, seed=1), pictures(4, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fake": None}, TypeError, r"fake: expected a floating-point tensor \(B, 3, H, W\), got NoneType"),
        ({"fake": FAKE.numpy()}, TypeError, "fake: .* got ndarray"),
        ({"fake": (FAKE * 99).to(torch.uint8)}, TypeError, "fake: .* got torch.uint8"),
        ({"fake": FAKE[0]}, ValueError, r"fake: expected shape \(B, 3, H, W\), got \(3, 8, 8\)"),
        ({"fake": FAKE[:, :1]}, ValueError, r"fake: expected shape \(B, 3, H, W\), got \(4, 1, 8, 8\)"),
        ({"fake": FAKE.permute(0, 2, 3, 1)}, ValueError, r"fake: expected shape .* got \(4, 8, 8, 3\)"),
        ({"fake": FAKE[:0]}, ValueError, r"fake: expected shape .* got \(0, 3, 8, 8\)"),
        ({"fake": FAKE.to("meta")}, ValueError, "fake: expected images on cpu, where the matcher is, got meta"),
        ({"fake": FAKE.float()}, TypeError, "fake: expected torch.float64, .* got torch.float32"),
        ({"text": None}, ValueError, r"text: expected Features for the terms .*vlm_local.*, got None"),
        ({"text": ["a bird"] * 4}, TypeError, "text: expected Features .* got list"),
        ({"text": tuple(TEXT)}, TypeError, "text: expected Features .* got tuple"),
        ({"text": TEXT._replace(local=TEXT.local.long())}, TypeError, "text: expected floating-point"),
        ({"text": TEXT._replace(mask=TEXT.mask.float())}, TypeError, "text.mask: expected bool"),
        ({"text": TEXT._replace(pooled=TEXT.pooled[:, :3])}, ValueError, "text: expected pooled of shape"),
        ({"text": TEXT._replace(mask=TEXT.mask & (torch.arange(4) != 2)[:, None])}, ValueError,
         "text: expected at least one word in every caption, got an empty one"),
        ({"text": TEXT.to("meta")}, ValueError, "text: expected features on cpu, got meta"),
        ({"text": TEXT.to(torch.float32)}, TypeError, "text: expected torch.float64 .* got torch.float32"),
        ({"text": Features(*(p[:3] for p in TEXT))}, ValueError, "text: expected 4 captions as .* fake, got 3"),
        ({"text": random_features(LENGTHS, dim=5)}, ValueError, "text: expected features of width 6 .* got 5"),
        ({"real": None}, ValueError, r"real: expected images \(B, 3, H, W\) for the terms .*vvm_local.*, got None"),
        ({"real": [REAL]}, TypeError, "real: expected a floating-point tensor .* got list"),
        ({"real": REAL.to(torch.int64)}, TypeError, "real: .* got torch.int64"),
        ({"real": REAL[:, 0]}, ValueError, r"real: expected shape .* got \(4, 8, 8\)"),
        ({"real": REAL[:2]}, ValueError, "real: expected 4 images as in fake, got 2"),
        ({"real": REAL.to("meta")}, ValueError, "real: expected images on cpu, .* got meta"),
        ({"real": REAL.float()}, TypeError, "real: expected torch.float64, .* got torch.float32"),
        ({"class_ids": torch.tensor([1.0, 2.0, 3.0, 4.0])}, TypeError, "class_ids: expected integers, got torch.float"),
        ({"class_ids": [True, False, True, True]}, TypeError, "class_ids: expected integers, got torch.bool"),
        ({"class_ids": ["a", "b", "c", "d"]}, TypeError, "class_ids: expected integers, got list"),
        ({"class_ids": np.array(["a", "b", "c", "d"])}, TypeError, "class_ids: expected integers, got ndarray"),
        ({"class_ids": [1, 2, 3]}, ValueError, r"class_ids: expected shape \(4,\), got \(3,\)"),
        ({"class_ids": torch.ones(4, 1, dtype=torch.int64)}, ValueError, r"class_ids: expected shape .* \(4, 1\)"),
    ],
)  # fmt: skip
def test_call_errors(change, error, message):
    arguments = {"fake": FAKE, "text": TEXT, "real": REAL, **change}
    with pytest.raises(error, match=message):
        make_loss()(**arguments)


def test_an_empty_caption_is_refused_at_every_call():
    """On a CPU, where it costs nothing to look."""
    loss = make_loss()
    loss(FAKE, TEXT, REAL)
    empty = TEXT._replace(mask=TEXT.mask & (torch.arange(4) != 2)[:, None])
    for _ in range(2):
        with pytest.raises(ValueError, match="text: expected at least one word in every caption, got an empty one"):
            loss(FAKE, empty, REAL)


def test_single_precision_is_no_error_under_autocast_and_half_text_is_raised():
    """What autocast mixes is fine: float32 networks, bfloat16 images or captions."""
    loss = DualVLMLoss(image_encoder=TinyEncoder(), scorer=make_scorer().float(), **WEIGHTS)
    fake, text, real = FAKE.float(), TEXT.to(torch.bfloat16), REAL.float()
    assert loss(fake, text, real).total.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(fake.bfloat16(), text, real).total.dtype == torch.float32
    with pytest.raises(TypeError, match=r"fake: expected torch.float32, .*, got torch.bfloat16, outside autocast"):
        loss(fake.bfloat16(), text, real)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda x: x, TypeError, r"image_encoder: expected it to return Features or a \(regions, code\) pair"),
        (lambda x: (x, x), ValueError, "regions, code: expected"),
        (lambda x: (x.mean((2, 3)), x), ValueError, "regions, code: expected"),
        (lambda x: Features(x.flatten(2), x.mean((2, 3)), None), TypeError, "image_encoder: expected tensors"),
    ],
)
def test_encoders_that_return_something_else(output, error, message):
    class Odd(nn.Module):
        def forward(self, x):
            return output(x)

    with pytest.raises(error, match=message):
        make_loss(Odd(), terms=["vlm_local"])(FAKE, TEXT)


def test_a_scorer_belongs_to_its_encoders():
    """Around other encoders than it was trained on it is an error, unless said otherwise."""
    vlm, other = make_vlm(), make_vlm()
    vlm.stamp()
    DualVLMLoss(vlm, **WEIGHTS)
    with torch.no_grad():
        other.image_encoder.stem.weight.mul_(2)
        other.text_encoder.encoder.weight.mul_(2)
    message = "scorer: it was trained on another {}.*allow_other_encoders=True"
    with pytest.raises(ValueError, match=message.format("image_encoder")):
        DualVLMLoss(image_encoder=other.image_encoder, scorer=vlm.scorer, **WEIGHTS)
    parts = {"image_encoder": vlm.image_encoder, "scorer": vlm.scorer, "text_encoder": other.text_encoder}
    with pytest.raises(ValueError, match=message.format("text_encoder")):
        DualVLMLoss(**parts, **WEIGHTS)
    DualVLMLoss(**parts, allow_other_encoders=True, **WEIGHTS)
    DualVLMLoss(image_encoder=vlm.image_encoder, scorer=vlm.scorer, **WEIGHTS)  # a host's own text embeddings


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))])
def test_encoders_in_wrappers_are_the_same(wrap):
    vlm = make_vlm()
    vlm.stamp()
    parts = {name: wrap(getattr(vlm, name)) for name in ("image_encoder", "text_encoder", "scorer")}
    DualVLMLoss(**parts, **WEIGHTS)
    with torch.no_grad():
        vlm.image_encoder.stem.weight.mul_(2)
    with pytest.raises(ValueError, match=r"scorer: it was trained on another image_encoder \(fingerprint \w+, this one "
                                         r"is \w{16}\): train"):  # fmt: skip
        DualVLMLoss(**parts, **WEIGHTS)


def test_the_range_of_an_encoder_in_a_wrapper():
    fake, text, real = batch()
    encoder = TinyEncoder(some_regions=True)
    encoder.input_range = (0, 1)
    expected = make_loss(encoder)(fake, text, real).total
    torch.testing.assert_close(make_loss(nn.DataParallel(encoder))(fake, text, real).total, expected)


def test_a_cast_is_named_where_it_may_be_all_that_differs():
    vlm = make_vlm()
    vlm.stamp()
    DualVLMLoss(vlm, **WEIGHTS).double()
    with pytest.raises(ValueError, match=r"of torch\.float64: if it is the same one, cast the loss in its place\)"):
        DualVLMLoss(vlm.double(), **WEIGHTS)


# ----------------------------------------------------------------------------------------------------- the front door


def test_captions_are_divided_into_words_once(monkeypatch):
    """Also at the first call, which looks for unknown words."""
    from vlm_plugin.matcher import vocabulary

    divided, divide = [], vocabulary._tokens
    monkeypatch.setattr(vocabulary, "_tokens", lambda caption, *rest: divided.append(caption) or divide(caption, *rest))
    loss, captions = DualVLMLoss(make_vlm(), **WEIGHTS, allow_other_encoders=True), ["a red bird", "a blue bird"]
    for _ in range(2):
        divided.clear()
        loss.encode_text(captions)
        assert divided == captions


WRAPPERS = {
    "bare": lambda network: network,
    "DataParallel": nn.DataParallel,
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "both": lambda network: torch.compile(nn.DataParallel(network), backend="eager"),
}


@pytest.fixture
def looks(monkeypatch):
    """Who looks at images: `("door", batch)` or `("encoder", batch)`, in order."""
    from vlm_plugin import host
    from vlm_plugin.matcher import image_encoders

    found, at_door, at_encoder = [], host.is_image_batch, image_encoders.check_image_batch
    monkeypatch.setattr(host, "is_image_batch", lambda images: found.append(("door", images)) or at_door(images))
    monkeypatch.setattr(
        image_encoders,
        "check_image_batch",
        lambda images, like: found.append(("encoder", images)) or at_encoder(images, like),
    )
    return found


def door_loss(encoder, vlm, **arguments):
    parts = {"image_encoder": encoder, "scorer": vlm.scorer, "text_encoder": vlm.text_encoder}
    return DualVLMLoss(**parts, **WEIGHTS, allow_other_encoders=True, **arguments)


def small_batch(vlm):
    tokens, lengths = vlm.vocabulary.encode_batch(["a red bird", "a blue bird"])
    fake, real = (pictures(2, seed, torch.float32, 16) for seed in (0, 1))
    return fake, vlm.encode_tokens(tokens, lengths), real


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_fakes_and_real_images_are_looked_at_once_and_the_encoder_does_not_look_again(looks, wrapper):
    """At every call; and who calls the encoder directly is told what is wrong."""
    vlm = make_vlm()
    fake, text, real = small_batch(vlm)
    loss = door_loss(WRAPPERS[wrapper](vlm.image_encoder), vlm)
    expected = door_loss(vlm.image_encoder, vlm)(fake, text, real).total
    for _ in range(2):
        looks.clear()
        assert torch.equal(loss(fake, text, real).total, expected)
        assert [who for who, _ in looks] == ["door", "door"]
        assert looks[0][1] is fake
        assert looks[1][1] is real
    with pytest.raises(ValueError, match=r"fake: expected shape \(B, 3, H, W\), got \(2, 3, 0, 16\)"):
        loss(fake[:, :, :0], text, real)
    looks.clear()
    vlm.image_encoder(fake)
    assert [who for who, _ in looks] == ["encoder"]
    # Torch 2.4 hands on what a compiled module raises as an error of its own.
    refusal = r"images: expected shape \(B, 3, H, W\) with B, H and W at least 1, got"
    with pytest.raises((ValueError, RuntimeError), match=refusal):
        loss.image_encoder(fake[:, :, :0])


def test_what_an_augmentation_made_is_looked_at_by_the_encoder(looks):
    """It has not been through the door: an augmentation may change type, device and size."""
    vlm = make_vlm()
    fake, text, real = small_batch(vlm)
    door_loss(vlm.image_encoder, vlm, augment=lambda images: images.flip(-1))(fake, text, real)
    assert [who for who, _ in looks] == ["door", "door", "encoder"]
    looks.clear()
    door_loss(vlm.image_encoder, vlm, augment=lambda images: images)(fake, text, real)
    assert [who for who, _ in looks] == ["door", "door"]
    for augment, error, message in (
        (
            lambda images: images.double(),
            TypeError,
            "images: expected the encoder's dtype torch.float32, got torch.float",
        ),
        (lambda images: images[..., :0], ValueError, r"images: expected shape .*, got \(2, 3, 16, 0\)"),
        (lambda images: images.to("meta"), ValueError, "images: expected them on the encoder's device cpu, got meta"),
    ):
        with pytest.raises(error, match=message):
            door_loss(vlm.image_encoder, vlm, augment=augment)(fake, text, real)


def test_encoders_with_a_forward_of_their_own_are_called_as_they_are():
    """A subclass, a replaced method, a module around ours: none of them has to know what our encoders are told."""

    class Mirror(ConvEncoder):
        def forward(self, images):
            return super().forward(images.flip(-1))

    class Around(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, images):
            return self.encoder(images)

    vlm = make_vlm()
    fake, text, real = small_batch(vlm)
    expected = door_loss(vlm.image_encoder, vlm)(fake, text, real).total
    mirrored = door_loss(vlm.image_encoder, vlm)(fake.flip(-1), text, real.flip(-1)).total
    mirror = Mirror(16, 4)
    mirror.load_state_dict(vlm.image_encoder.state_dict())
    for wrap in WRAPPERS.values():
        assert torch.equal(door_loss(wrap(mirror), vlm)(fake, text, real).total, mirrored)
        assert torch.equal(door_loss(wrap(Around(vlm.image_encoder)), vlm)(fake, text, real).total, expected)
    forward = vlm.image_encoder.forward
    vlm.image_encoder.forward = lambda images: forward(images.flip(-1))
    assert torch.equal(door_loss(vlm.image_encoder, vlm)(fake, text, real).total, mirrored)


def test_a_range_is_that_of_the_beginning():
    """What was looked at in one range says nothing about another."""
    loss = make_loss()
    assert loss.image_range == (-1.0, 1.0)
    with pytest.raises(AttributeError):
        loss.image_range = (0.0, 1.0)
