"""DF-GAN's networks against the published shapes and outputs, and against slow twins of their blocks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_, wave
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_plugin import Features
from vlm_plugin.baselines.dfgan.networks import ConditionalHead, Discriminator, Generator, generator_of

STATE_DICTS = json.loads((Path(__file__).parents[1] / "golden" / "dfgan_state_dicts.json").read_text())
SIZES = [64, 256]


def build(published_name: str) -> nn.Module:
    match = re.fullmatch(r"(\w+)\(nf=(\d+),imsize=(\d+)\)", published_name)
    assert match
    kind, nf, size = match[1], int(match[2]), int(match[3])
    if kind == "NetG":
        return Generator(nf, image_size=size)
    return Discriminator(nf, size) if kind == "NetD" else ConditionalHead(nf)


def filled(size: int) -> tuple[Generator, Discriminator, ConditionalHead]:
    return fill_(Generator(4, image_size=size)), fill_(Discriminator(4, size)), fill_(ConditionalHead(4))


def small(size: int = 16) -> tuple[Generator, Discriminator, ConditionalHead]:
    """Tiny networks with every parameter away from its starting value."""
    networks = Generator(2, 5, 6, size), Discriminator(2, size), ConditionalHead(2, 6)
    for network in networks:
        fill_(network)
    return networks


@pytest.mark.parametrize("name", STATE_DICTS)
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    ours = [(key, list(value.shape)) for key, value in build(name).state_dict().items()]
    assert ours == [(key, shape) for key, shape in STATE_DICTS[name].items()]


def check_golden(golden: Path, size: int, device: str, memory_format: torch.memory_format) -> None:
    arrays = np.load(golden / "dfgan.npz")
    generator, discriminator, head = (m.to(device).to(memory_format=memory_format) for m in filled(size))
    sentence = wave(2, 256, phase=2).to(device)
    images = wave(2, 3, size, size, phase=3).to(device).contiguous(memory_format=memory_format)
    with torch.no_grad():
        drawn = generator(wave(2, 100, phase=1).to(device), sentence)
        features = discriminator(images)
        logits = head(features, sentence)
    assert drawn.shape == (2, 3, size, size)
    assert logits.shape == (2,)
    step = size // 64
    for name, value in {"image": drawn[:, :, ::step, ::step], "features": features, "logit": logits}.items():
        expected = arrays[f"nf4_{size}/{name}"]
        np.testing.assert_allclose(value.cpu().numpy().reshape(expected.shape), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_are_the_published_ones(golden: Path, size: int, memory_format: torch.memory_format) -> None:
    check_golden(golden, size, "cpu", memory_format)


@pytest.mark.cuda
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_are_the_published_ones_on_cuda(
    golden: Path, size: int, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    check_golden(golden, size, "cuda", memory_format)


@pytest.mark.parametrize("nf", [1, 3])
@pytest.mark.parametrize("size", [16, 32, 128])
def test_other_sizes_fit_together(nf: int, size: int) -> None:
    generator, discriminator, head = Generator(nf, 7, 9, size), Discriminator(nf, size), ConditionalHead(nf, 9)
    images = generator(torch.randn(2, 7), torch.randn(2, 9))
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    features = discriminator(images)
    assert features.shape == (2, 8 * nf, 4, 4)
    assert head(features, torch.randn(2, 9)).shape == (2,)
    assert head(features[:1], torch.randn(1, 9)).shape == (1,)


@pytest.mark.parametrize(("nf", "z_dim", "cond_dim", "size"), [(1, 7, 9, 16), (3, 9, 2, 32), (2, 4, 4, 128)])
def test_the_shapes_tell_the_sizes(nf: int, z_dim: int, cond_dim: int, size: int) -> None:
    network = fill_(Generator(nf, z_dim, cond_dim, size))
    again = generator_of(network.state_dict())
    again.load_state_dict(network.state_dict(), strict=True)
    assert (again.nf, again.noise_dim, again.embed_dim, again.image_size) == (nf, z_dim, cond_dim, size)
    noise, sentence = wave(2, z_dim, phase=1), wave(2, cond_dim, phase=2)
    assert torch.equal(again(noise, sentence), network(noise, sentence))


def test_sizes_of_another_network_are_refused() -> None:
    with pytest.raises(KeyError):
        generator_of(Discriminator(2, 16).state_dict())


def test_words_have_no_say() -> None:
    network, noise, sentence = small()[0], wave(2, 5, phase=1), wave(2, 6, phase=2)
    text = Features(torch.full((2, 3, 6), float("nan")), sentence, torch.ones(2, 3, dtype=torch.bool))
    images, attention = network.draw(noise, text)
    assert torch.equal(images, network(noise, sentence))
    assert attention == []


def test_128_pixels_are_the_256_pixel_networks_without_one_full_width_block() -> None:
    """The widths between the two known sizes: a block of 8 nf channels is all that separates neighbours."""
    for published, ours in (("NetG", Generator(4, image_size=128)), ("NetD", Discriminator(4, 128))):
        known = STATE_DICTS[f"{published}(nf=4,imsize=256)"]
        full = 1 if published == "NetG" else 5  # index of a block with equal widths on both sides
        expected = {}
        for name, shape in known.items():
            match = re.fullmatch(r"([GD]Blocks)\.(\d+)\.(.*)", name)
            if match and int(match[2]) == full:
                continue
            if match and int(match[2]) > full:
                name = f"{match[1]}.{int(match[2]) - 1}.{match[3]}"
            expected[name] = shape
        assert {name: list(value.shape) for name, value in ours.state_dict().items()} == expected


def twin_generator(network: Generator, noise: Tensor, sentence: Tensor) -> Tensor:
    """The paper's order of operations: every block up-samples first. One sample at a time."""
    drawn = []
    for z, e in zip(noise, sentence, strict=True):
        condition = torch.cat([z, e])

        def fuse(fusion: nn.Module, x: Tensor, condition: Tensor = condition) -> Tensor:
            for affine in (fusion.affine0, fusion.affine1):
                rows = []
                for mlp in (affine.fc_gamma, affine.fc_beta):
                    hidden = (mlp.linear1.weight @ condition + mlp.linear1.bias).clamp(min=0)
                    rows.append(mlp.linear2.weight @ hidden + mlp.linear2.bias)
                x = torch.stack([rows[0][c] * x[c] + rows[1][c] for c in range(len(x))])
                x = torch.where(x > 0, x, 0.2 * x)
            return x

        x = (network.fc.weight @ z + network.fc.bias).reshape(-1, 4, 4)
        for block in network.GBlocks:
            x = x.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
            shortcut = x if block.c_sc is None else F.conv2d(x[None], block.c_sc.weight, block.c_sc.bias)[0]
            h = F.conv2d(fuse(block.fuse1, x)[None], block.c1.weight, block.c1.bias, padding=1)[0]
            h = F.conv2d(fuse(block.fuse2, h)[None], block.c2.weight, block.c2.bias, padding=1)[0]
            x = shortcut + h
        rgb = network.to_rgb[1]
        drawn.append(F.conv2d(torch.where(x > 0, x, 0.2 * x)[None], rgb.weight, rgb.bias, padding=1)[0].tanh())
    return torch.stack(drawn)


@pytest.mark.parametrize("size", [16, 64])
def test_generator_equals_its_slow_twin(size: int) -> None:
    network = small(size)[0].double()
    noise, sentence = wave(3, 5, phase=1).double(), wave(3, 6, phase=2).double()
    torch.testing.assert_close(network(noise, sentence), twin_generator(network, noise, sentence))


def test_down_block_equals_its_slow_twin() -> None:
    """The shortcut convolves before pooling here, the other way round there."""
    network = small(64)[1].double()
    x = network.conv_img(wave(2, 3, 64, 64, phase=3).double())
    for block in network.DBlocks:
        wide = block.conv_s(x) if block.learned_shortcut else x
        shortcut = (wide[..., ::2, ::2] + wide[..., 1::2, ::2] + wide[..., ::2, 1::2] + wide[..., 1::2, 1::2]) / 4
        expected = shortcut + block.gamma * block.conv_r(x)
        x = block(x)
        torch.testing.assert_close(x, expected)


def test_fresh_networks_start_at_identity_modulation_and_shortcuts() -> None:
    torch.manual_seed(0)
    generator, discriminator = Generator(2, 5, 6, 32), Discriminator(2, 32)
    assert all(block.gamma.item() == 0 for block in discriminator.DBlocks)
    noise = torch.randn(2, 5)
    images = generator(noise, torch.randn(2, 6))
    torch.testing.assert_close(images, generator(noise, torch.randn(2, 6)), rtol=0, atol=0)
    # ... but the text is one step away from having a say.
    images.square().sum().backward()
    for block in generator.GBlocks:
        assert block.fuse2.affine0.fc_gamma.linear2.weight.grad.abs().max() > 0


def test_every_parameter_that_asks_for_a_gradient_gets_one() -> None:
    generator, discriminator, head = small(64)
    sentence = wave(2, 6, phase=2)
    images = generator(wave(2, 5, phase=1), sentence)
    head(discriminator(images), sentence).sum().backward()
    for network in (generator, discriminator, head):
        for name, parameter in network.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
    # The idle shortcut of the 8 nf -> 8 nf block, and nothing else, is frozen.
    frozen = [name for name, parameter in discriminator.named_parameters() if not parameter.requires_grad]
    assert frozen == ["DBlocks.3.conv_s.weight", "DBlocks.3.conv_s.bias"]
    assert all(parameter.requires_grad for network in (generator, head) for parameter in network.parameters())


def check_bfloat16(device: str, furthest: float) -> None:
    generator, discriminator, head = (m.to(device, memory_format=torch.channels_last) for m in small(64))
    noise, sentence = wave(4, 5, phase=1).to(device), wave(4, 6, phase=2).to(device)
    exact = generator(noise, sentence)
    exact_logits = head(discriminator(exact), sentence)
    with torch.autocast(device, torch.bfloat16):
        images = generator(noise, sentence)
        features = discriminator(images)
        logits = head(features, sentence)
    assert images.dtype == torch.float32
    assert features.dtype == logits.dtype == torch.bfloat16
    torch.testing.assert_close(images, exact, rtol=0, atol=furthest)
    assert (images - exact).abs().mean() < 0.003
    torch.testing.assert_close(logits.float(), exact_logits, rtol=0, atol=0.02)
    logits.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters())


def test_bfloat16_autocast_is_close_and_draws_float32_images() -> None:
    check_bfloat16("cpu", 0.02)


@pytest.mark.cuda
def test_bfloat16_autocast_is_close_and_draws_float32_images_on_cuda() -> None:
    # Seen: 0.026 on an H200, whose exact images are of TF32.
    check_bfloat16("cuda", 0.04)


def test_channels_last_holds_from_the_first_block_to_the_last() -> None:
    generator, discriminator, _ = (m.to(memory_format=torch.channels_last) for m in small(64))
    outputs: list[Tensor] = []
    for block in (*generator.GBlocks, *discriminator.DBlocks):
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    discriminator(generator(wave(2, 5), wave(2, 6)))
    assert len(outputs) == 8
    assert all(output.is_contiguous(memory_format=torch.channels_last) for output in outputs)


def test_float64_stays_float64() -> None:
    generator, discriminator, head = (m.double() for m in small())
    sentence = wave(2, 6).double()
    images = generator(wave(2, 5).double(), sentence)
    assert images.dtype == head(discriminator(images), sentence).dtype == torch.float64


@pytest.mark.parametrize("size", [8, 0, -64, 48, 65, 64.0])
@pytest.mark.parametrize("make", [lambda size: Generator(2, image_size=size), lambda size: Discriminator(2, size)])
def test_image_size_must_be_a_power_of_two(make: Callable[[int], nn.Module], size: int) -> None:
    with pytest.raises(ValueError, match=rf"image_size.*{size}"):
        make(size)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Generator(0), "nf"),
        (lambda: Generator(2, z_dim=0), "z_dim"),
        (lambda: Generator(2, cond_dim=-1), "cond_dim"),
        (lambda: Discriminator(True), "nf"),
        (lambda: ConditionalHead(0), "nf"),
        (lambda: ConditionalHead(2, 0), "cond_dim"),
    ],
)
def test_sizes_must_be_positive(make: Callable[[], nn.Module], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected a positive integer"):
        make()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, d, c: g(torch.zeros(2, 4), torch.zeros(2, 6)), r"^noise: expected shape \(B, 5\), got \(2, 4\)"),
        (lambda g, d, c: g(torch.zeros(2, 5), torch.zeros(6)), r"^sentence: expected shape \(B, 6\), got \(6,\)"),
        (lambda g, d, c: g(torch.zeros(2, 5), torch.zeros(3, 6)), "same batch size, got 2 and 3"),
        (lambda g, d, c: d(torch.zeros(2, 3, 16, 32)), r"^images: expected shape \(B, 3, 16, 16\)"),
        (lambda g, d, c: c(torch.zeros(2, 8, 4, 4), torch.zeros(2, 6)), r"^features: expected shape \(B, 16, 4, 4\)"),
        (lambda g, d, c: c(torch.zeros(2, 16, 4, 4), torch.zeros(2, 7)), r"^sentence: expected shape \(B, 6\)"),
        (lambda g, d, c: c(torch.zeros(2, 16, 4, 4), torch.zeros(1, 6)), "same batch size, got 2 and 1"),
    ],
)
def test_wrong_shapes_are_named(call: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*small())
