"""AttnGAN's networks against the published shapes and outputs, and the word attention against explicit loops."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_, wave
from reference import dot, random_features
from torch import Tensor, nn

from vlm_plugin import Features, text_features
from vlm_plugin.baselines.attngan.networks import Discriminator, Generated, Generator, generator_of

STATE_DICTS = json.loads((Path(__file__).parents[1] / "golden" / "attngan_state_dicts.json").read_text())
NETWORKS = [name for name in STATE_DICTS if "_NET" in name]
GENERATORS = [name for name in NETWORKS if name.startswith("G_NET")]
LENGTHS = [5, 1, 3]


def build(published_name: str) -> nn.Module:
    match = re.fullmatch(r"G_NET\(GF_DIM=(\d+),BRANCH_NUM=(\d+)\)|D_NET(\d+)\(DF_DIM=(\d+)\)", published_name)
    assert match
    gf_dim, stages, size, df_dim = (int(group or 0) for group in match.groups())
    return Generator(gf_dim, stages) if gf_dim else Discriminator(df_dim, size)


def shapes(network: nn.Module) -> list[tuple[str, list[int]]]:
    return [(name, list(value.shape)) for name, value in network.state_dict().items()]


def test_eight_published_networks_are_compared() -> None:
    assert len(NETWORKS) == 8
    assert len(GENERATORS) == 2


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_shapes_are_the_published_ones_and_load(name: str) -> None:
    with torch.device("meta"):
        network = build(name)
        state = {key: torch.empty(shape) for key, shape in STATE_DICTS[name].items()}
    assert shapes(network) == list(STATE_DICTS[name].items())
    network.load_state_dict(state, strict=True)


@pytest.mark.parametrize("name", GENERATORS)
def test_published_shapes_tell_the_sizes(name: str) -> None:
    with torch.device("meta"):
        network = generator_of({key: torch.empty(shape) for key, shape in STATE_DICTS[name].items()})
    assert shapes(network) == list(STATE_DICTS[name].items())
    assert (network.z_dim, network.condition_dim, network.embed_dim) == (100, 100, 256)
    assert network.image_sizes == [64, 128, 256]


def near(value: Tensor, expected: np.ndarray, largest: float = 1e-4, rms: float = 1e-4) -> None:
    assert value.shape == expected.shape
    difference = value.detach().double().numpy() - expected
    assert np.abs(difference).max() < largest
    assert np.sqrt((difference**2).mean()) < rms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_generator_draws_the_published_pictures(golden: Path, dtype: torch.dtype) -> None:
    arrays = np.load(golden / "attngan.npz")
    network = fill_(Generator(4)).eval().to(dtype)
    text = text_features(wave(2, 256, 7, phase=3), wave(2, 256, phase=2)).to(dtype)
    torch.manual_seed(123)
    # In float32 the network draws for itself, as published; in float64 it would draw other numbers.
    augmentation = None if dtype == torch.float32 else torch.randn(2, 100).to(dtype)
    with torch.no_grad():
        images, attention, mu, logvar = network(wave(2, 100, phase=1).to(dtype), text, augmentation)
    assert [image.shape[-1] for image in images] == network.image_sizes == [64, 128, 256]
    near(mu, arrays["G_NET/mu"])
    near(logvar, arrays["G_NET/logvar"])
    near(images[0], arrays["G_NET/img64"])
    near(attention[0][..., ::4, ::4], arrays["G_NET/att1"])
    near(attention[1][..., ::8, ::8], arrays["G_NET/att2"])
    # These parameters and inputs amplify float32 rounding from stage to stage. The published float32 pictures of 128
    # and 256 pixels are up to 1.9e-4 and 2.8e-3 from a float64 run of the same network (rms 2.5e-6 and 4e-5), ours in
    # float32 are up to 9e-5 and 3.3e-3 from the published ones (rms 2e-6 and 5e-5).
    near(images[1][..., ::2, ::2], arrays["G_NET/img128"], largest=4e-4, rms=1e-5)
    near(images[2][..., ::4, ::4], arrays["G_NET/img256"], largest=6e-3, rms=2e-4)


@pytest.mark.parametrize(("size", "phase"), [(64, 4), (128, 5), (256, 6)])
def test_discriminators_judge_as_published(golden: Path, size: int, phase: int) -> None:
    arrays = np.load(golden / "attngan.npz")
    network = fill_(Discriminator(4, size)).eval()
    with torch.no_grad():
        features = network(wave(3, 3, size, size, phase=phase))
        conditional = network.conditional(features, wave(3, 256, phase=2))
        unconditional = network.unconditional(features)
    near(features, arrays[f"D_NET{size}/features"])
    near(conditional.sigmoid(), arrays[f"D_NET{size}/cond"])
    near(unconditional.sigmoid(), arrays[f"D_NET{size}/uncond"])


@pytest.mark.parametrize(
    ("stages", "base_size", "residual_blocks", "widths"),
    [
        (1, 16, 1, (5, 4, 6)),
        (1, 64, 3, (3, 8, 5)),
        (2, 32, 3, (7, 2, 9)),
        (2, 64, 1, (4, 4, 4)),
        (3, 16, 1, (6, 5, 7)),
        (3, 32, 3, (2, 9, 3)),
    ],
)
def test_other_sizes_fit_together_and_are_told_by_the_shapes(
    stages: int, base_size: int, residual_blocks: int, widths: tuple[int, int, int]
) -> None:
    z_dim, condition_dim, embed_dim = widths
    network = fill_(Generator(2, stages, base_size, z_dim, condition_dim, embed_dim, residual_blocks)).eval()
    text, noise = random_features([4, 2], embed_dim, dtype=torch.float32), wave(2, z_dim + condition_dim)
    z, augmentation = network.split(noise)
    assert (z.shape, augmentation.shape) == ((2, z_dim), (2, condition_dim))
    generated = network(z, text, augmentation)
    sides = [base_size * 2**stage for stage in range(stages)]
    assert network.image_sizes == sides
    assert network.noise_dim == z_dim + condition_dim
    assert [tuple(image.shape) for image in generated.images] == [(2, 3, side, side) for side in sides]
    assert all(image.abs().max() <= 1 for image in generated.images)
    assert [tuple(weights.shape) for weights in generated.attention] == [(2, 4, side, side) for side in sides[:-1]]
    assert generated.mu.shape == generated.logvar.shape == (2, condition_dim)
    blocks = len(network.h_net2.residual) if stages > 1 else residual_blocks
    assert blocks == residual_blocks

    again = generator_of(network.state_dict()).eval()
    again.load_state_dict(network.state_dict(), strict=True)
    for name in ("stages", "z_dim", "condition_dim", "embed_dim", "noise_dim", "image_sizes"):
        assert getattr(again, name) == getattr(network, name), name
    assert torch.equal(again.draw(noise, text)[0], generated.images[-1])


def test_sizes_of_another_network_are_refused() -> None:
    with pytest.raises(KeyError):
        generator_of(Discriminator(2, 16).state_dict())


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize(("df_dim", "embed_dim"), [(1, 5), (3, 8)])
def test_discriminators_of_other_sizes(size: int, df_dim: int, embed_dim: int) -> None:
    network = fill_(Discriminator(df_dim, size, embed_dim)).double().eval()
    images, sentence = wave(3, 3, size, size, phase=3).double(), wave(3, embed_dim, phase=2).double()
    features = network(images)
    assert features.shape == (3, 8 * df_dim, 4, 4)
    unconditional, conditional = network.unconditional(features), network.conditional(features, sentence)
    assert unconditional.shape == conditional.shape == (3,)
    for i in range(3):
        alone = network(images[i : i + 1])
        assert alone.shape == (1, 8 * df_dim, 4, 4)
        torch.testing.assert_close(network.unconditional(alone), unconditional[i : i + 1])
        torch.testing.assert_close(network.conditional(alone, sentence[i : i + 1]), conditional[i : i + 1])
    assert (network.conditional(features, sentence.flip(0)) - conditional)[[0, 2]].abs().min() > 1e-6


@pytest.mark.parametrize(("size", "widths"), [(16, [12, 24]), (32, [6, 12, 24]), (64, [3, 6, 12, 24])])
def test_small_discriminators_leave_out_the_first_layers(size: int, widths: list[int]) -> None:
    layers = Discriminator(3, size, 5).img_code_s16
    assert [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)] == widths


# ------------------------------------------------------------------------------------------------- captions' words


def small(dtype: torch.dtype = torch.float64) -> Generator:
    """Three stages of 16, 32 and 64 pixels with every parameter away from its starting value, in eval mode."""
    return fill_(Generator(2, 3, 16, 5, 4, 6, residual_blocks=1)).to(dtype).eval()


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Features]:
    """Noise and three captions of unequal lengths, each with padding."""
    return wave(3, 9, phase=1).to(dtype), random_features(LENGTHS, dtype=dtype, size=7)


def forward(network: Generator, noise: Tensor, text: Features) -> Generated:
    z, augmentation = network.split(noise)
    return network(z, text, augmentation)


def flat(generated: Generated) -> list[Tensor]:
    return [*generated.images, *generated.attention, generated.mu, generated.logvar]


def test_a_caption_draws_in_a_batch_what_it_draws_alone() -> None:
    network, (noise, text) = small(), inputs()
    together = forward(network, noise, text)
    for i, length in enumerate(LENGTHS):
        one = slice(i, i + 1)
        words = Features(text.local[one, :length], text.pooled[one], text.mask[one, :length])
        alone = forward(network, noise[one], words)
        for batch, single in zip(together.images, alone.images, strict=True):
            torch.testing.assert_close(batch[one], single, rtol=0, atol=1e-12)
        for batch, single in zip(together.attention, alone.attention, strict=True):
            torch.testing.assert_close(batch[one, :length], single, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_attention_is_a_distribution_over_the_words_of_the_own_caption(dtype: torch.dtype) -> None:
    network, (noise, text) = small(dtype), inputs(dtype)
    for weights in forward(network, noise, text).attention:
        padding = (~text.mask)[:, :, None, None].expand_as(weights)
        assert (weights[padding] == 0).all()
        assert (weights[~padding] > 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
        assert weights[0, : LENGTHS[0]].std(0).max() > 1e-3  # ... and no uniform one


def test_padding_does_not_matter_however_large() -> None:
    network, (noise, text) = small(), inputs()
    filled = text._replace(local=text.local.masked_fill(~text.mask[..., None], 1e30).requires_grad_())
    ours, theirs = forward(network, noise, filled), forward(network, noise, text)
    assert all(torch.equal(one, other) for one, other in zip(flat(ours), flat(theirs), strict=True))
    sum(image.sum() for image in ours.images).backward()
    assert (filled.local.grad[~text.mask] == 0).all()
    assert filled.local.grad.isfinite().all()


def looped_attention(
    weight: Tensor, h: Tensor, text: Features, whose: Callable[[int, int], int]
) -> tuple[Tensor, Tensor]:
    """Pixel by pixel and word by word; pixel k of sample b is under the mask of caption `whose(b, k)`."""
    samples, _, height, width = h.shape
    contexts, attention = [], []
    for b in range(samples):
        words = [weight @ word for word in text.local[b]]
        for k in range(height * width):
            pixel, mask = h[b, :, k // width, k % width], text.mask[whose(b, k)]
            weights = [dot(pixel, word).exp() * float(seen) for word, seen in zip(words, mask, strict=True)]
            weights = [value / sum(weights) for value in weights]
            contexts.append(sum(value * word for value, word in zip(weights, words, strict=True)))
            attention.append(torch.stack(weights))
    return tuple(
        torch.stack(rows).reshape(samples, height, width, -1).permute(0, 3, 1, 2) for rows in (contexts, attention)
    )


def attention_inputs(lengths: list[int]) -> tuple[nn.Module, Tensor, Features]:
    module = Generator(3, 2, 16, embed_dim=6).double().h_net2.att
    with torch.no_grad():
        module.conv_context.weight.copy_(wave(3, 6, 1, 1, phase=7))
    return module, wave(len(lengths), 3, 3, 5, phase=8).double(), random_features(lengths, size=6, seed=3)


def own(b: int, k: int) -> int:
    return b


def published(samples: int, pixels: int) -> Callable[[int, int], int]:
    """Scores (B * H*W, T) under the masks (B, T) repeated H*W times as a whole."""
    return lambda b, k: (b * pixels + k) % samples


def test_published_tiling_is_the_repeated_mask() -> None:
    """The description of the defect, not our code: `mask.repeat(H*W, 1)` row by row."""
    mask = torch.arange(3)[:, None]
    rows = mask.repeat(15, 1).flatten().tolist()
    assert rows == [published(3, 15)(b, k) for b in range(3) for k in range(15)]


@pytest.mark.parametrize(("lengths", "differ"), [(LENGTHS, True), ([6, 2], True), ([4, 4, 4], False), ([6, 6], False)])
def test_word_attention_equals_the_loops_and_not_the_published_tiling(lengths: list[int], differ: bool) -> None:
    module, h, text = attention_inputs(lengths)
    weight = module.conv_context.weight[:, :, 0, 0]
    context, attention = module(h, text)
    expected_context, expected_attention = looped_attention(weight, h, text, own)
    torch.testing.assert_close(context, expected_context, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(attention, expected_attention, rtol=1e-10, atol=1e-12)

    tiled_context, tiled_attention = looped_attention(weight, h, text, published(len(lengths), 15))
    for ours, theirs in ((context, tiled_context), (attention, tiled_attention)):
        if differ:
            assert (ours - theirs).abs().max() > 0.1
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    # What is wrong with the tiling: pixels look at their own caption's padding.
    assert bool(tiled_attention[~text.mask].any()) == differ


def test_word_attention_has_the_gradients_of_the_loops() -> None:
    found = []
    for looped in (False, True):
        module, h, text = attention_inputs(LENGTHS)
        h, text = h.requires_grad_(), text._replace(local=text.local.clone().requires_grad_())
        if looped:
            context, attention = looped_attention(module.conv_context.weight[:, :, 0, 0], h, text, own)
        else:
            context, attention = module(h, text)
        # Different weights everywhere, so that a permutation would show.
        loss = (context * wave(*context.shape, phase=1)).sum() + (attention * wave(*attention.shape, phase=2)).sum()
        found.append(torch.autograd.grad(loss, (h, text.local, module.conv_context.weight)))
    for gradient, slow in zip(*found, strict=True):
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(gradient, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_scores_of_long_vectors_neither_overflow_nor_reach_padding(dtype: torch.dtype) -> None:
    module, h, text = attention_inputs(LENGTHS)
    h, text = (1e6 * h.to(dtype)).requires_grad_(), text.to(dtype)
    context, attention = module.to(dtype)(h, text)
    assert context.isfinite().all()
    assert not attention.permute(0, 2, 3, 1)[(~text.mask)[:, None, None].expand(-1, 3, 5, -1)].any()
    torch.testing.assert_close(attention.sum(1), torch.ones_like(attention[:, 0]))
    context.sum().backward()
    assert h.grad.isfinite().all()


def test_gradients_are_finite_and_reach_everything_but_padding() -> None:
    network, (noise, text) = small(torch.float32).train(), inputs(torch.float32)
    noise.requires_grad_()
    text = Features(text.local.requires_grad_(), text.pooled.requires_grad_(), text.mask)
    outputs = flat(forward(network, noise, text))
    sum((output * wave(*output.shape, phase=3)).sum() for output in outputs).backward()
    named = {"noise": noise, "words": text.local, "sentence": text.pooled, **dict(network.named_parameters())}
    for name, value in named.items():
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
        assert value.grad.any(), name
    assert (text.local.grad[~text.mask] == 0).all()
    assert (text.local.grad[text.mask].abs().sum(-1) > 0).all()


# ----------------------------------------------------------------------------------------------------------- noise


def test_draw_is_the_last_stage_of_forward() -> None:
    network, (noise, text) = small(), inputs()
    generated = network(noise[:, :5], text, noise[:, 5:])
    image, attention = network.draw(noise, text)
    assert torch.equal(image, generated.images[-1])
    assert len(attention) == 2
    assert all(torch.equal(one, other) for one, other in zip(attention, generated.attention, strict=True))


def test_the_same_noise_draws_the_same_picture_and_every_part_of_it_counts() -> None:
    network, (noise, text) = small(), inputs()
    first = network.draw(noise, text)[0]
    torch.rand(3)
    assert torch.equal(network.draw(noise, text)[0], first)
    for position in (0, 4, 5, 8):
        other = noise.clone()
        other[:, position] += 1
        assert (network.draw(other, text)[0] - first).flatten(1).abs().amax(1).min() > 1e-4, position


def test_augmentation_left_out_comes_from_the_global_randomness() -> None:
    network, (noise, text) = small(), inputs()
    z = noise[:, :5]
    torch.manual_seed(4)
    given = torch.randn(3, 4, dtype=torch.float64)
    torch.manual_seed(4)
    drawn, another = network(z, text), network(z, text)
    assert torch.equal(drawn.images[-1], network(z, text, given).images[-1])
    assert not torch.equal(drawn.images[-1], another.images[-1])
    assert torch.equal(drawn.mu, another.mu)


def test_condition_is_a_gaussian_around_the_sentence() -> None:
    network, (noise, text) = small(), inputs()
    conditions: list[Tensor] = []
    network.ca_net.register_forward_hook(lambda module, args, output: conditions.append(output[0]))
    generated = forward(network, noise, text)
    for b in range(3):
        gated = network.ca_net.fc.weight @ text.pooled[b] + network.ca_net.fc.bias
        both = torch.stack([gated[c] / (1 + (-gated[8 + c]).exp()) for c in range(8)])
        torch.testing.assert_close(generated.mu[b], both[:4])
        torch.testing.assert_close(generated.logvar[b], both[4:])
        torch.testing.assert_close(conditions[0][b], both[:4] + noise[b, 5:] * both[4:].exp().sqrt())


# ------------------------------------------------------------------------------------------------------- precision


def test_bfloat16_autocast_is_close_and_gives_float32() -> None:
    network, (noise, text) = small(torch.float32), inputs(torch.float32)
    exact = forward(network, noise, text)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = forward(network, noise, text)
    for one, other in zip(flat(coarse), flat(exact), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=0.1)
    for weights in coarse.attention:
        torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
        assert not weights.permute(0, 2, 3, 1)[:, 0, 0][~text.mask].any()
    assert not torch.equal(coarse.images[-1], exact.images[-1])
    coarse.images[-1].sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_discriminator_under_bfloat16_autocast_is_close() -> None:
    network, images = fill_(Discriminator(2, 32, 6)).eval(), wave(2, 3, 32, 32, phase=3)
    sentence = wave(2, 6, phase=2)

    def logits() -> tuple[Tensor, Tensor]:
        features = network(images)
        return network.unconditional(features), network.conditional(features, sentence)

    exact = logits()
    with torch.autocast("cpu", torch.bfloat16):
        coarse = logits()
    for one, other in zip(coarse, exact, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0, atol=0.05)


def test_float64_stays_float64() -> None:
    assert {output.dtype for output in flat(forward(small(), *inputs()))} == {torch.float64}


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, d, t: g(torch.zeros(3, 4), t), r"^z: expected \(B, 5\), got \(3, 4\)"),
        (lambda g, d, t: g(torch.zeros(5), t), r"^z: expected \(B, 5\), got \(5,\)"),
        (lambda g, d, t: g(torch.zeros(2, 5), t), r"^text: expected local \(2, T, 6\) and pooled \(2, 6\), got \(3,"),
        (lambda g, d, t: g(torch.zeros(3, 5), random_features(LENGTHS, dim=7)), r"^text: .*6\), got \(3, 5, 7\)"),
        (lambda g, d, t: g(torch.zeros(3, 5), t._replace(local=torch.zeros(3, 7, 8))), r"^text: .*got \(3, 7, 8\)"),
        (lambda g, d, t: g(torch.zeros(3, 5), t._replace(pooled=torch.zeros(3, 8))), r"^text: .*and \(3, 8\)"),
        (lambda g, d, t: g(torch.zeros(3, 5), t, torch.zeros(3, 1)), r"^augmentation: expected \(3, 4\), got \(3, 1\)"),
        (lambda g, d, t: g(torch.zeros(3, 5), t, torch.zeros(1, 4)), r"^augmentation: expected \(3, 4\), got \(1, 4\)"),
        (lambda g, d, t: d(torch.zeros(2, 3, 16, 32)), r"^images: expected \(B, 3, 16, 16\), got \(2, 3, 16, 32\)"),
        (lambda g, d, t: d(torch.zeros(2, 3, 32, 32)), r"^images: expected \(B, 3, 16, 16\), got \(2, 3, 32, 32\)"),
        (lambda g, d, t: d(torch.zeros(2, 1, 16, 16)), r"^images: expected \(B, 3, 16, 16\), got \(2, 1, 16, 16\)"),
    ],
)
def test_wrong_shapes_are_named(call: Callable[..., object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(small(torch.float32), Discriminator(2, 16, 6), inputs(torch.float32)[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Generator(2, stages=0), r"^stages: expected at least 1, got 0"),
        (lambda: Generator(2, base_size=48), r"^base_size: expected a power of two of at least 16, got 48"),
        (lambda: Generator(2, base_size=8), r"^base_size: .*got 8"),
        (lambda: Discriminator(2, 24), r"^image_size: expected a power of two of at least 16, got 24"),
        (lambda: Discriminator(2, 8), r"^image_size: .*got 8"),
    ],
)
def test_wrong_sizes_are_named(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
