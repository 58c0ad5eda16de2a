"""Features: adapters from host layouts, and errors that name the argument."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlm_plugin import Features, image_features, text_features
from vlm_plugin.checks import as_integers
from vlm_plugin.features import as_features, check_features, mask_from_lengths

WORDS, SENTENCE = torch.randn(3, 6, 5), torch.randn(3, 6)
REGIONS, CODE = torch.randn(2, 6, 3, 4), torch.randn(2, 6)


def test_text_features_of_a_host():
    """(B, D, T) words and their lengths: local[b, t] is words[b, :, t], valid before each length."""
    features = text_features(WORDS, SENTENCE, torch.tensor([5, 1, 3]))
    assert isinstance(features, Features)
    assert features.local.shape == (3, 5, 6)
    for b in range(3):
        for t in range(5):
            assert torch.equal(features.local[b, t], WORDS[b, :, t])
    assert features.pooled is SENTENCE
    assert features.mask.tolist() == [[True] * 5, [True] + [False] * 4, [True] * 3 + [False] * 2]
    check_features(features, "text")


def test_lengths_may_be_left_out_or_be_a_list_or_an_array():
    assert text_features(WORDS, SENTENCE).mask.all()
    expected = text_features(WORDS, SENTENCE, torch.tensor([5, 1, 3])).mask
    for lengths in ([5, 1, 3], np.array([5, 1, 3]), torch.tensor([5, 1, 3], dtype=torch.int32)):
        assert torch.equal(text_features(WORDS, SENTENCE, lengths).mask, expected)


def test_text_features_keep_the_gradient_of_their_inputs():
    words = WORDS.clone().requires_grad_()
    text_features(words, SENTENCE).local.sum().backward()
    assert torch.equal(words.grad, torch.ones_like(words))


def test_image_features_of_a_host():
    """(B, D, H, W) regions become H*W vectors in row-major order, all valid."""
    features = image_features(REGIONS, CODE)
    assert features.local.shape == (2, 12, 6)
    for row in range(3):
        for column in range(4):
            assert torch.equal(features.local[:, row * 4 + column], REGIONS[:, :, row, column])
    assert features.pooled is CODE
    assert features.mask.shape == (2, 12)
    assert features.mask.all()


def test_as_features_takes_features_and_pairs():
    features = image_features(REGIONS, CODE)
    assert as_features(features, "image_encoder") is features
    for pair in ((REGIONS, CODE), [REGIONS, CODE]):
        assert torch.equal(as_features(pair, "image_encoder").local, features.local)
    for other in (REGIONS, (REGIONS, CODE, CODE), None, {"regions": REGIONS}):
        with pytest.raises(TypeError, match=r"image_encoder: expected it to return .* pair, got"):
            as_features(other, "image_encoder")


def test_to_and_detach():
    features = image_features(REGIONS.clone().requires_grad_(), CODE.clone().requires_grad_())
    double = features.to(torch.float64)
    assert (double.local.dtype, double.pooled.dtype, double.mask.dtype) == (torch.float64, torch.float64, torch.bool)
    moved = features.to("meta")
    assert {part.device.type for part in moved} == {"meta"}
    detached = features.detach()
    assert not detached.local.requires_grad
    assert not detached.pooled.requires_grad
    assert torch.equal(detached.local, features.local)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("a bird", SENTENCE), TypeError, "words: expected a floating-point tensor .B, D, T., got str"),
        ((WORDS.long(), SENTENCE), TypeError, "words: .* got a tensor of torch.int64"),
        ((WORDS, SENTENCE.numpy()), TypeError, "sentence: .* got ndarray"),
        ((WORDS[0], SENTENCE), ValueError, r"words, sentence: .* got \(6, 5\) and \(3, 6\)"),
        ((WORDS.transpose(1, 2), SENTENCE), ValueError, r"words, sentence: .* got \(3, 5, 6\) and \(3, 6\)"),
        ((WORDS, SENTENCE[:2]), ValueError, r"words, sentence: .* and \(2, 6\)"),
        ((WORDS, SENTENCE, torch.tensor([1, 2])), ValueError, r"lengths: expected shape \(3,\), got \(2,\)"),
        ((WORDS, SENTENCE, torch.tensor([1.0, 2.0, 3.0])), TypeError, "lengths: expected integers, got torch.float32"),
        ((WORDS, SENTENCE, torch.tensor([True, True, True])), TypeError, "lengths: expected integers, got torch.bool"),
        ((WORDS, SENTENCE, [1, 0, 2]), ValueError, "lengths: expected at least one word in every caption, got .* 0"),
        ((WORDS, SENTENCE, [1, 6, 2]), ValueError, "lengths: expected at most 5 .* got 6"),
    ],
)
def test_text_features_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        text_features(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, CODE), TypeError, "regions: expected a floating-point tensor .B, D, H, W., got NoneType"),
        ((REGIONS, CODE.int()), TypeError, "code: .* got a tensor of torch.int32"),
        ((REGIONS.flatten(2), CODE), ValueError, r"regions, code: .* got \(2, 6, 12\) and \(2, 6\)"),
        ((REGIONS, CODE[:, :5]), ValueError, r"regions, code: .* and \(2, 5\)"),
    ],
)
def test_image_features_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        image_features(*arguments)


def test_mask_from_lengths_errors():
    with pytest.raises(ValueError, match=r"lengths: expected shape \(B,\), got \(1, 2\)"):
        mask_from_lengths(torch.tensor([[1, 2]]), 3, torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: tuple(f), TypeError, "anchor: expected Features .* got tuple"),
        (lambda f: f._replace(local=f.local.long()), TypeError, "anchor: expected floating-point vectors"),
        (lambda f: f._replace(pooled=f.pooled.int()), TypeError, "anchor: expected floating-point vectors"),
        (
            lambda f: f._replace(local=f.local.numpy()),
            TypeError,
            "anchor: expected tensors, got ndarray, Tensor, Tensor",
        ),
        (lambda f: f._replace(mask=None), TypeError, "anchor: expected tensors, .* NoneType"),
        (lambda f: f._replace(mask=f.mask.long()), TypeError, "anchor.mask: expected bool"),
        (lambda f: f._replace(mask=f.mask[:, :-1]), ValueError, "anchor: expected local .* mask"),
        (lambda f: f._replace(local=f.local[0]), ValueError, "anchor: expected local"),
        (lambda f: f._replace(pooled=f.pooled[:, :-1]), ValueError, r"anchor: expected pooled of shape \(3, 6\)"),
        (lambda f: f._replace(pooled=f.pooled[:-1]), ValueError, r"anchor: expected pooled of shape \(3, 6\)"),
        (lambda f: f._replace(mask=f.mask.to("meta")), ValueError, "anchor: expected .* one device, got .*meta"),
    ],
)
def test_check_features_errors(change, error, message):
    features = text_features(WORDS, SENTENCE)
    assert check_features(features, "anchor") is features
    with pytest.raises(error, match=message):
        check_features(change(features), "anchor")


ONE = torch.ones((), dtype=torch.int64)


@pytest.mark.parametrize(
    "values",
    [
        [3, 1, 2],
        (3, 1, 2),
        [3 * ONE, ONE, 2 * ONE],
        np.array([2, 1, 3])[::-1],
        np.array([3, 1, 2], dtype=">i4"),
        np.array([3, 1, 2], dtype=object),
        np.array([3, 1, 2], dtype=np.uint16),
        torch.tensor([3, 1, 2], dtype=torch.int8),
    ],
)
def test_integers_of_any_kind(values: object) -> None:
    assert as_integers(values, "x").tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (["a", "b"], "list of other values"),
        ([1, None], "list of other values"),
        ([[1], [2, 3]], "list of other values"),
        (np.array([1, "a"], dtype=object), "ndarray of other values"),
        (np.array([1, True], dtype=object), "ndarray of other values"),
        (np.array([2**70], dtype=object), "ndarray of other values"),
        (np.array([True]), "torch.bool"),
        ([1.0], "torch.float32"),
        (torch.zeros(1, dtype=torch.complex64), "torch.complex64"),
    ],
)
def test_what_is_no_integer(values: object, got: str) -> None:
    with pytest.raises(TypeError, match=rf"^x: expected integers, got {got}$"):
        as_integers(values, "x")
    with pytest.raises(TypeError, match=rf"^lengths: expected integers, got {got}$"):
        text_features(torch.zeros(1, 2, 3), torch.zeros(1, 2), values)
