"""The encoders: published names, shapes and values; masks, gradients, errors."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_, wave
from PIL import Image
from tiny import Bomb
from torch import nn
from torchvision.models import inception_v3, shufflenet_v2_x1_0

from vlm_plugin.features import Features
from vlm_plugin.matcher.image_encoders import ConvEncoder, InceptionEncoder, ShuffleNetEncoder, build_image_encoder
from vlm_plugin.matcher.text_encoder import LSTMTextEncoder

GOLDEN = Path(__file__).parents[1] / "golden"
NETWORKS = json.loads((GOLDEN / "attngan_state_dicts.json").read_text())
RNN = NETWORKS["RNN_ENCODER(ntoken=50,nhidden=256)"]
CNN = NETWORKS["CNN_ENCODER(nef=256)"]


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "attngan.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def inception() -> InceptionEncoder:
    return fill_(InceptionEncoder(global_layer="Mixed_7c")).eval()


@pytest.fixture(scope="module")
def text_encoder() -> LSTMTextEncoder:
    return fill_(LSTMTextEncoder(50)).eval()


def shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def test_published_names_and_shapes(inception, text_encoder):
    assert shapes(text_encoder) == RNN
    assert shapes(inception) == CNN
    default = InceptionEncoder()
    assert default.global_layer == "Mixed_7b"
    assert shapes(default) == {name: shape for name, shape in CNN.items() if not name.startswith("Mixed_7c.")}
    inception.load_state_dict(inception.state_dict(), strict=True)


def test_published_text_features(golden, text_encoder):
    tokens, lengths = golden["RNN_ENCODER/captions"], golden["RNN_ENCODER/lengths"]
    features = text_encoder(tokens, lengths)
    torch.testing.assert_close(features.local.transpose(1, 2), golden["RNN_ENCODER/words"], atol=1e-4, rtol=0)
    torch.testing.assert_close(features.pooled, golden["RNN_ENCODER/sentence"], atol=1e-4, rtol=0)
    assert features.mask.sum(dim=1).tolist() == lengths.tolist()


def test_published_image_features(golden, inception):
    images = wave(1, 3, 256, 256, phase=9).requires_grad_()
    features = inception(images)
    assert features.local.shape == (1, 289, 256)
    assert features.mask.shape == (1, 289)
    assert features.mask.all()
    regions = features.local.transpose(1, 2).reshape(1, 256, *inception.grid)
    # Golden parameters and image amplify float32 rounding: a float64 run is up to 2.5e-3 from the golden regions (of
    # standard deviation 0.73), so another machine's float32 may be that far too.
    torch.testing.assert_close(regions, golden["CNN_ENCODER/regions"], atol=5e-3, rtol=0)
    assert (regions - golden["CNN_ENCODER/regions"]).square().mean().sqrt() < 1e-3
    torch.testing.assert_close(features.pooled, golden["CNN_ENCODER/code"], atol=1e-4, rtol=0)
    # both outputs reach the image
    for part in (features.local, features.pooled):
        (gradient,) = torch.autograd.grad(part.square().sum(), images, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient != 0).any()


def test_old_files_without_counters_load_and_nothing_else_may_be_missing(inception):
    old = {name: value for name, value in inception.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(CNN)
    network = InceptionEncoder(global_layer="Mixed_7c")
    names = list(old)
    network.load_state_dict(old)
    assert list(old) == names, "the caller's dict was changed"
    nn.ModuleDict({"image": network}).load_state_dict({f"image.{name}": value for name, value in old.items()})
    # with the version mark of a new file too
    versioned = inception.state_dict()
    for name in [name for name in versioned if name.endswith("num_batches_tracked")]:
        del versioned[name]
    network.load_state_dict(versioned)
    torch.testing.assert_close(network.Mixed_7c.branch1x1.bn.running_var, inception.Mixed_7c.branch1x1.bn.running_var)
    for missing in ("emb_features.weight", "Mixed_6e.branch1x1.bn.running_mean", "Conv2d_1a_3x3.conv.weight"):
        with pytest.raises(RuntimeError, match=missing):
            network.load_state_dict({name: value for name, value in old.items() if name != missing})
    with pytest.raises(RuntimeError, match="extra"):
        network.load_state_dict({**old, "extra": torch.zeros(1)})


def test_inception_weights_from_a_damsm_file(tmp_path, inception):
    path = tmp_path / "image_encoder100.pth"
    torch.save(inception.state_dict(), path)
    loaded = InceptionEncoder(weights=path)
    assert loaded.global_layer == "Mixed_7c"  # the file decides
    assert loaded.state_dict().keys() == inception.state_dict().keys()
    assert all(torch.equal(value, inception.state_dict()[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(ValueError, match="global_layer: expected 'Mixed_7c'"):
        InceptionEncoder(weights=path, global_layer="Mixed_7b")
    with pytest.raises(ValueError, match=r"image_encoder100.pth: expected the weights .* embed_dim=128"):
        InceptionEncoder(weights=path, embed_dim=128)


@pytest.mark.parametrize("layer", ["Mixed_7b", "Mixed_7c"])
def test_inception_weights_of_imagenet(tmp_path, monkeypatch, layer):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        InceptionEncoder(weights="imagenet")
    path = tmp_path / "checkpoints" / "inception_v3_google-0cc3c7bd.pth"
    assert str(path) in str(error.value)
    assert "https://" in str(error.value)

    classifier = fill_(inception_v3(weights=None, init_weights=False, aux_logits=True))
    path.parent.mkdir()
    torch.save(classifier.state_dict(), path)
    for source in ("imagenet", str(path)):
        encoder = InceptionEncoder(global_layer=layer, weights=source)
        assert encoder.global_layer == layer
        theirs = classifier.state_dict()
        assert all(
            torch.equal(value, theirs[name]) for name, value in encoder.state_dict().items() if "emb_" not in name
        )


def test_inception_weights_of_something_else(tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"file.pth: expected a file of network weights"):
        InceptionEncoder(weights=path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"file.pth: expected a state dict .* got list"):
        InceptionEncoder(weights=path)
    torch.save({"fc.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"file.pth: expected the weights"):
        InceptionEncoder(weights=path)
    with pytest.raises(FileNotFoundError, match=r"nothing.pth"):
        InceptionEncoder(weights=tmp_path / "nothing.pth")
    with pytest.raises(TypeError, match="weights"):
        InceptionEncoder(weights=3)
    with pytest.raises(ValueError, match="global_layer"):
        InceptionEncoder(global_layer="Mixed_6e")


@pytest.mark.parametrize("writer", ["torch.save", "legacy torch.save", "pickle"])
def test_code_in_a_file_of_weights_is_refused_and_does_not_run(tmp_path, writer):
    path, content = tmp_path / "file.pth", {"fc.weight": Bomb(tmp_path / "it ran")}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch.save")
    with pytest.raises(ValueError, match=r"file.pth: expected a file of network weights"):
        InceptionEncoder(weights=path)
    assert not (tmp_path / "it ran").exists()


def test_conv_encoder():
    torch.manual_seed(0)
    encoder = ConvEncoder()
    assert 600_000 <= sum(p.numel() for p in encoder.parameters()) <= 800_000
    encoder.eval()
    images = wave(2, 3, 64, 64).requires_grad_()
    features = encoder(images)
    assert isinstance(features, Features)
    assert features.local.shape == (2, 64, 128)
    assert features.pooled.shape == (2, 128)
    assert features.mask.shape == (2, 64)
    assert features.mask.dtype == torch.bool
    assert features.mask.all()
    (gradient,) = torch.autograd.grad(features.pooled.square().sum(), images, retain_graph=True)
    assert gradient.isfinite().all()
    assert (gradient != 0).all(dim=1).float().mean() > 0.9

    # one region of the first image sees a part of that image only, and the right part
    row, column = 2, 5
    (gradient,) = torch.autograd.grad(features.local[0, row * 8 + column].square().sum(), images)
    assert not gradient[1].any()
    rows, columns = (gradient[0].abs().sum(0) > 0).nonzero(as_tuple=True)
    for places, index in ((rows, row), (columns, column)):
        assert places.max() - places.min() < 32
        assert places.min() <= index * 8
        assert index * 8 + 7 <= places.max()

    # other sizes and memory layouts
    assert encoder(torch.zeros(1, 3, 32, 100)).local.shape == (1, 64, 128)
    again = encoder.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(again.local, features.local, atol=1e-4, rtol=1e-4)
    encoder.train()
    assert encoder(images[:1]).pooled.isfinite().all()
    assert ConvEncoder(embed_dim=16, width=4).double()(wave(2, 3, 16, 16).double()).local.dtype == torch.float64


def test_shufflenet_encoder():
    torch.manual_seed(0)
    encoder = ShuffleNetEncoder(24)
    # Every trained block of torchvision's network but its classifier, once.
    published = shufflenet_v2_x1_0(weights=None)
    count = sum(p.numel() for p in published.parameters()) - sum(p.numel() for p in published.fc.parameters())
    heads = [*encoder.to_regions.parameters(), *encoder.to_pooled.parameters()]
    assert sum(p.numel() for p in encoder.parameters()) - sum(p.numel() for p in heads) == count
    encoder(torch.randn(32, 3, 64, 64))  # statistics
    encoder.eval()
    images = wave(2, 3, 64, 64).requires_grad_()
    features = encoder(images)
    assert (features.local.shape, features.pooled.shape) == ((2, 64, 24), (2, 24))
    assert features.mask.all()
    # Row-major order: a region answers most to its own place.
    (gradient,) = torch.autograd.grad(features.local[0, 2 * 8 + 6].square().sum(), images, retain_graph=True)
    assert not gradient[1].any()
    cells = torch.nn.functional.avg_pool2d(gradient[0].abs().sum(0)[None, None], 8)[0, 0]
    row, column = divmod(int(cells.argmax()), 8)
    assert abs(row - 2) <= 1
    assert abs(column - 6) <= 1
    (gradient,) = torch.autograd.grad(features.pooled.square().sum(), images)
    assert gradient.isfinite().all()
    torch.testing.assert_close(encoder(torch.zeros(1, 3, 128, 128)), encoder(torch.zeros(1, 3, 64, 64)))


class Seen(Exception):
    """Ends a forward pass with what a layer was given."""


def first_seen(layer, encoder, images):
    """What the encoder's first layer is given."""

    def end(_, inputs):
        raise Seen(inputs[0])

    with layer.register_forward_pre_hook(end), pytest.raises(Seen) as seen:
        encoder(images)
    return seen.value.args[0]


@pytest.mark.parametrize("height", [256, 200])
@pytest.mark.parametrize(
    ("make", "first"),
    [(lambda: ConvEncoder(8, 2), "stem"), (lambda: ShuffleNetEncoder(8), "to_stage3")],
    ids=["conv", "shufflenet"],
)
def test_larger_pictures_are_filtered_as_pil_does_it(make, first, height):
    """Stripes of three pixels, and noise: without a filter every fourth pixel of them would be another pattern."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, 256, 3), dtype=np.uint8)
    pixels[..., 0] = np.where(np.arange(256) % 6 < 3, 0, 255)
    theirs = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR), np.float32)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    encoder = make()
    ours = first_seen(getattr(encoder, first), encoder, images)
    # PIL rounds after each axis.
    np.testing.assert_allclose((ours[0].permute(1, 2, 0).numpy() + 1) * 127.5, theirs, rtol=0, atol=1.01)


def test_inception_takes_single_pixels_of_larger_pictures(inception):
    """As DAMSM's published encoders do: of 897 pixels every third, without a filter before."""
    images = wave(1, 3, 897, 897, phase=9)
    seen = first_seen(inception.Conv2d_1a_3x3, inception, images)
    torch.testing.assert_close(seen, images[..., 1::3, 1::3], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["conv", "inception", "shufflenet"])
def test_settings_rebuild(name):
    settings = {
        "conv": {"embed_dim": 16, "width": 4},
        "inception": {"embed_dim": 16, "global_layer": "Mixed_7c"},
        "shufflenet": {"embed_dim": 16},
    }[name]
    encoder = build_image_encoder(name, **settings)
    assert encoder.settings == settings
    assert encoder.embed_dim == 16
    assert encoder.input_range == (-1, 1)
    again = build_image_encoder(encoder.name, **encoder.settings)
    again.load_state_dict(encoder.state_dict())
    text = LSTMTextEncoder(7, embed_dim=8, word_dim=5, dropout=0.1)
    LSTMTextEncoder(**text.settings).load_state_dict(text.state_dict())


def test_build_image_encoder_errors():
    with pytest.raises(ValueError, match=r"name: expected one of \['conv', 'inception', 'shufflenet'\], got 'vit'"):
        build_image_encoder("vit")
    with pytest.raises(ValueError, match="width: expected a positive integer, got 0"):
        build_image_encoder("conv", width=0)
    with pytest.raises(TypeError, match="depth"):
        build_image_encoder("conv", depth=3)


@pytest.mark.parametrize(
    "make", [lambda: ConvEncoder(16, 4), lambda: InceptionEncoder(16), lambda: ShuffleNetEncoder(16)]
)
def test_image_errors(make):
    encoder = make()
    with pytest.raises(TypeError, match="images: expected a Tensor"):
        encoder(np.zeros((1, 3, 64, 64)))
    for shape in ((3, 64, 64), (1, 1, 64, 64), (1, 64, 64, 3), (0, 3, 64, 64), (1, 3, 0, 64)):
        with pytest.raises(ValueError, match="images: expected shape"):
            encoder(torch.zeros(shape))
    with pytest.raises(TypeError, match="images: expected floating-point"):
        encoder(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"images: expected the encoder's dtype torch.float32, got torch.float64"):
        encoder(torch.zeros(1, 3, 64, 64, dtype=torch.float64))
    with pytest.raises(ValueError, match="images: expected them on the encoder's device cpu, got meta"):
        encoder(torch.zeros(1, 3, 64, 64, device="meta"))


def test_autocast():
    encoder = ConvEncoder(16, 4).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(wave(2, 3, 64, 64).bfloat16())
    assert features.local.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_resizes_too(dtype):
    torch.manual_seed(0)
    encoder = ConvEncoder(16, 2).eval()
    images = (torch.rand(2, 3, 48, 48) * 2 - 1).to(dtype)
    expected = encoder.to(torch.float32)(images.float()).pooled
    found = encoder.to(dtype)(images).pooled
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


def test_unsorted_batches_equal_single_captions(text_encoder):
    lengths = torch.tensor([2, 7, 1, 5])
    tokens = (torch.arange(36).reshape(4, 9) * 7) % 50  # ids past each length, and columns that no caption fills
    batch = text_encoder(tokens, lengths)
    assert batch.local.shape == (4, 9, 256)
    assert batch.pooled.shape == (4, 256)
    assert torch.equal(batch.mask, torch.arange(9) < lengths[:, None])
    assert not batch.local[~batch.mask].any()
    for i, n in enumerate(lengths.tolist()):
        one = text_encoder(tokens[i : i + 1, :n], torch.tensor([n]))
        torch.testing.assert_close(batch.local[i, :n], one.local[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(batch.pooled[i], one.pooled[0], atol=1e-6, rtol=1e-5)
        # forward half: the last word's state; backward half: the first word's
        torch.testing.assert_close(batch.pooled[i, :128], batch.local[i, n - 1, :128])
        torch.testing.assert_close(batch.pooled[i, 128:], batch.local[i, 0, 128:])
    other = text_encoder(tokens.int(), [2, 7, 1, 5])
    assert torch.equal(other.local, batch.local)


def test_text_errors(text_encoder):
    tokens, lengths = torch.ones(2, 4, dtype=torch.int64), torch.tensor([2, 4])
    for bad, value in ((50, 50), (-3, -3)):
        wrong = tokens.clone()
        wrong[1, 2] = bad
        with pytest.raises(ValueError, match=f"tokens: .*50 words, got id {value}"):
            text_encoder(wrong, lengths)
    with pytest.raises(ValueError, match="lengths: expected at least one word"):
        text_encoder(tokens, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"lengths: expected at most 4, .* got 5"):
        text_encoder(tokens, torch.tensor([2, 5]))
    with pytest.raises(ValueError, match=r"lengths: expected shape \(2,\)"):
        text_encoder(tokens, torch.tensor([2]))
    with pytest.raises(TypeError, match="lengths: expected integers"):
        text_encoder(tokens, torch.tensor([2.0, 4.0]))
    with pytest.raises(TypeError, match="lengths"):
        text_encoder(tokens, None)
    with pytest.raises(TypeError, match=r"tokens: expected integer word ids, got torch.float32"):
        text_encoder(tokens.float(), lengths)
    with pytest.raises(TypeError, match="tokens: expected an integer Tensor"):
        text_encoder(["a bird"], lengths)
    for shape in ((4,), (0, 4), (2, 0), (2, 4, 1)):
        with pytest.raises(ValueError, match="tokens: expected shape"):
            text_encoder(torch.ones(shape, dtype=torch.int64), lengths)
    with pytest.raises(ValueError, match="tokens: expected them on the encoder's device"):
        text_encoder(tokens.to("meta"), lengths)
    with pytest.raises(ValueError, match="embed_dim: expected an even number"):
        LSTMTextEncoder(50, embed_dim=7)
    with pytest.raises(ValueError, match="vocabulary_size"):
        LSTMTextEncoder(0)
    with pytest.raises(ValueError, match="dropout"):
        LSTMTextEncoder(50, dropout=1.0)
