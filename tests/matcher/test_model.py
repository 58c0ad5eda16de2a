"""The matcher's file: a round trip, files that are something else, and DAMSM's published files."""

from __future__ import annotations

import json
import math
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import pictures, sharpen
from tiny import Bomb
from torch import nn

from vlm_plugin import VLM, ConvEncoder, DualVLMLoss, LSTMTextEncoder, MatchingScoreBlock, Vocabulary
from vlm_plugin.matcher.identity import fingerprint

WORDS = ["<end>", "<unk>", "a", "small", "red", "blue", "bird", "with", "black", "wings"]
CAPTIONS = ["a small red bird", "a bird with black wings and a purple tail", "blue"]


def make_vlm(seed=0, scorer=True):
    torch.manual_seed(seed)
    vlm = VLM(
        ConvEncoder(16, 4),
        LSTMTextEncoder(len(WORDS), 16, 8),
        Vocabulary(WORDS),
        sharpen(MatchingScoreBlock(16, 1, 2)) if scorer else None,
        max_words=5,
        notes={"data": "birds", "steps": 3, "r1": [0.5, 0.25]},
    )
    # Statistics unlike those of a fresh network, so that a file without buffers would show.
    vlm.image_encoder(pictures(4, 1, torch.float32, 32))
    return vlm.eval()


def outputs(vlm):
    with torch.no_grad():
        image, text = vlm.encode_image(pictures(3, 2, torch.float32, 32)), vlm.encode_text(CAPTIONS)
        logits = [vlm.scorer(image, text, "caption")] if vlm.scorer is not None else []
    return [*image, *text, *logits]


def contents(path):
    content = torch.load(path, weights_only=True)
    del content["vlm_plugin.checksum"]  # as a file of an earlier release, whose content is looked at all the same
    return content


@pytest.mark.parametrize("scorer", [True, False])
def test_save_and_load(tmp_path, scorer):
    vlm = make_vlm(scorer=scorer)
    path = tmp_path / "some.vlm.pt"
    vlm.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["some.vlm.pt"], "something was left beside the file"
    again = VLM.load(path)
    assert not again.training
    assert not any(m.training for m in again.modules())
    assert again.vocabulary == vlm.vocabulary
    assert (again.max_words, again.notes, again.embed_dim) == (5, vlm.notes, 16)
    assert (again.scorer is not None) == scorer
    assert again.fingerprint == vlm.fingerprint
    assert all(torch.equal(a, b) for a, b in zip(outputs(again), outputs(vlm), strict=True))
    assert VLM.load(str(path)).fingerprint == vlm.fingerprint
    assert VLM.load(path, "meta").device.type == "meta"
    # what was loaded is a matcher the loss takes, and saves the same file again
    DualVLMLoss(again, lambda_vvm=1, lambda_vlm=1, terms=["vlm_local"])
    again.save(path)
    assert VLM.load(path).fingerprint == vlm.fingerprint


def test_half_size(tmp_path):
    """float16 weights, float32 again after loading; the scorer belongs to the rounded encoders in its file."""
    vlm = make_vlm()
    vlm.stamp()
    full, half = tmp_path / "full.vlm.pt", tmp_path / "half.vlm.pt"
    vlm.save(full)
    vlm.save(half, half=True)
    stored = [v for part in contents(half)["weights"].values() for v in part.values() if v.is_floating_point()]
    assert {v.dtype for v in stored} == {torch.float16}
    again = VLM.load(half)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert again.fingerprint != vlm.fingerprint
    assert VLM.load(half).fingerprint == again.fingerprint
    for a, b in zip(outputs(again), outputs(vlm), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
    for path in (full, half):
        DualVLMLoss(VLM.load(path), lambda_vvm=1, lambda_vlm=1)


def test_scorer_belongs_to_the_encoders_it_was_saved_with(tmp_path):
    """Never stamped: the file's own encoders. Stamped, and then the encoders changed: the file keeps the mismatch."""
    path = tmp_path / "x.vlm.pt"
    vlm = make_vlm()
    vlm.save(path)
    loaded = VLM.load(path)
    assert loaded.scorer.encoder_fingerprints == {
        "image_encoder": fingerprint(vlm.image_encoder),
        "text_encoder": fingerprint(vlm.text_encoder),
    }
    for half in (False, True):
        stale = make_vlm()
        stale.stamp()
        with torch.no_grad():
            stale.image_encoder.stem.weight.mul_(1.5)
        stale.save(path, half=half)
        with pytest.raises(ValueError, match="scorer: it was trained on another image_encoder"):
            DualVLMLoss(VLM.load(path), lambda_vvm=1, lambda_vlm=1)


def test_fingerprint():
    vlm = make_vlm()
    name = vlm.fingerprint
    assert len(name) == 16
    assert int(name, 16) >= 0
    assert make_vlm().fingerprint == name
    assert make_vlm(seed=1).fingerprint != name
    assert fingerprint(vlm.image_encoder) == fingerprint(vlm.image_encoder.state_dict())
    # counters of batches are no weights; everything else is
    vlm.image_encoder.stem_norm.num_batches_tracked += 1
    assert vlm.fingerprint == name
    for tensor in (vlm.image_encoder.stem_norm.running_mean, vlm.text_encoder.encoder.weight, vlm.scorer.to_score.bias):
        with torch.no_grad():
            tensor.view(-1)[-1] += 1e-3
        changed = vlm.fingerprint
        assert changed != name
        name = changed
    # a transposed memory layout of the same numbers is the same network
    vlm.image_encoder.to(memory_format=torch.channels_last)
    assert vlm.fingerprint == name


def test_caption_fingerprint(tmp_path):
    """What the weights' fingerprint says nothing of."""
    vlm, other = make_vlm(), make_vlm()
    assert vlm.caption_fingerprint == other.caption_fingerprint
    vlm.save(tmp_path / "a.vlm.pt")
    assert VLM.load(tmp_path / "a.vlm.pt").caption_fingerprint == vlm.caption_fingerprint
    other.max_words -= 1
    words = list(vlm.vocabulary.words)
    swapped = Vocabulary([*words[:2], words[3], words[2], *words[4:]], unknown=vlm.vocabulary.unknown)
    third = VLM(vlm.image_encoder, vlm.text_encoder, swapped, vlm.scorer, max_words=vlm.max_words)
    assert vlm.fingerprint == other.fingerprint == third.fingerprint
    assert len({v.caption_fingerprint for v in (vlm, other, third)}) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("stamped", [True, False])
def test_a_file_of_a_matcher_of_another_type_is_float32(dtype, stamped, tmp_path):
    """And its scorer belongs to the encoders that are read from it."""
    vlm = make_vlm().to(dtype)
    if stamped:
        vlm.stamp()
    vlm.save(tmp_path / "a.vlm.pt")
    again = VLM.load(tmp_path / "a.vlm.pt")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    for name, value in vlm.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, check_dtype=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DualVLMLoss(again, lambda_vvm=0.1, lambda_vlm=0.4)


def test_what_could_not_be_read_is_not_written(tmp_path):
    path, vlm = tmp_path / "a.vlm.pt", make_vlm()
    vlm.save(path)
    before = path.read_bytes()
    weight = vlm.image_encoder.stem.weight
    for value, half, reason in (
        (1e6, True, "too large for half precision: leave half"),
        (math.nan, False, "no num"),
    ):
        with torch.no_grad():
            weight[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match=rf"a.vlm.pt: expected finite .* in image_encoder.stem.weight: {reason}"):
            vlm.save(path, half=half)
    with torch.no_grad():
        weight[0, 0, 0, 0] = 1e6
    for note, where, kind in (
        (np.float64(3), r"notes\['r'\]", "float64"), ([1, tmp_path], r"notes\['r'\]\[1\]", "PosixPath"),
        ({"a": {np.int64(1): 2}}, r"notes\['r'\]\['a'\]\[1\]|notes\['r'\]\['a'\]\[np.int64\(1\)\]", "int64"),
    ):  # fmt: skip
        vlm.notes["r"] = note
        with pytest.raises(ValueError, match=rf"^({where}): expected plain values .*, got {kind}: float"):
            vlm.save(path)
    assert path.read_bytes() == before
    vlm.notes["r"] = {"a": [1, 2.5, "x", None, True, (1,)]}
    vlm.save(path)
    assert VLM.load(path).notes["r"] == vlm.notes["r"]


def test_parts_that_no_file_can_name_are_refused_before_they_are_saved(tmp_path):
    vlm = make_vlm()

    class Other(type(vlm.image_encoder)):
        """Of the same name and settings, but another class."""

    vlm.image_encoder = Other(**vlm.image_encoder.settings)
    with pytest.raises(
        ValueError, match=r"^image_encoder: expected one of vlm_plugin\.matcher\.image_encoders, .* got Other: save its"
    ):
        vlm.save(tmp_path / "a.vlm.pt")
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match=r"^text_encoder: expected an LSTMTextEncoder, got Linear: give modules of"):
        VLM(vlm.image_encoder, nn.Linear(2, 2), vlm.vocabulary)


def test_wrapped_parts(tmp_path):
    """A wrapper changes neither fingerprints nor what is saved."""
    vlm = make_vlm()
    vlm.stamp()
    wrapped = make_vlm()
    wrapped = VLM(
        torch.compile(wrapped.image_encoder), nn.DataParallel(wrapped.text_encoder), wrapped.vocabulary,
        nn.DataParallel(wrapped.scorer), max_words=wrapped.max_words,
    )  # fmt: skip
    wrapped.stamp()
    assert wrapped.fingerprint == fingerprint(vlm) == vlm.fingerprint
    assert wrapped.embed_dim == vlm.embed_dim
    wrapped.save(tmp_path / "wrapped.pt")
    loaded = VLM.load(tmp_path / "wrapped.pt")
    assert loaded.fingerprint == vlm.fingerprint
    assert loaded.scorer.encoder_fingerprints == vlm.scorer.encoder_fingerprints


def test_encode_text_uses_its_own_vocabulary():
    vlm = make_vlm()
    text = vlm.encode_text(CAPTIONS)
    assert text.mask.sum(1).tolist() == [4, 5, 1]  # nine words, of which max_words are kept
    tokens, lengths = vlm.vocabulary.encode_batch(CAPTIONS, 5)
    assert torch.equal(vlm.encode_tokens(tokens, lengths).local, text.local)
    drawn = {
        tuple(vlm.encode_text(CAPTIONS[1:2], torch.Generator().manual_seed(i)).pooled[0].tolist()) for i in range(5)
    }
    assert len(drawn) > 1
    with pytest.raises(TypeError, match="captions: expected a list of strings, got one string"):
        vlm.encode_text("a small red bird")
    with pytest.raises(ValueError, match=r"captions\[1\]: expected at least one word"):
        vlm.encode_text(["a bird", "..."])
    with pytest.raises(ValueError, match=r"tokens: .* vocabulary has 10 words, got id 10"):
        vlm.encode_tokens(torch.tensor([[10]]), torch.tensor([1]))


def by_id(words):
    return dict(enumerate(words))


def test_ids_of_another_vocabulary_are_refused(tmp_path):
    """By a vocabulary, a dict or a file; the matcher and the loss around it."""
    vlm = make_vlm()
    loss = DualVLMLoss(vlm, lambda_vvm=1, lambda_vlm=1)
    same, other = tmp_path / "same" / "captions.pickle", tmp_path / "other" / "captions.pickle"
    changed = [*WORDS[:4], "green", *WORDS[5:], "tail"]
    for path, words in ((same, WORDS), (other, changed)):
        path.parent.mkdir()
        content = [[[1, 2]], [[3]], by_id(words), {word: i for i, word in enumerate(words)}]
        path.write_bytes(pickle.dumps(content, protocol=2))
    tokens, lengths = vlm.vocabulary.encode_batch(CAPTIONS, 5)
    expected = vlm.encode_tokens(tokens, lengths).local
    what = "the vocabulary of the matcher, got another (10 words against 11; first differing ids 4: 'red' / 'green')"
    advice = "use the captions.pickle that came with this text encoder, or pretrain a matcher on this data"
    for encode in (vlm.encode_tokens, loss.encode_tokens):
        for fits in (vlm.vocabulary, Vocabulary(WORDS, unknown=None, ascii_only=True), by_id(WORDS), same, str(same)):
            for _ in range(2):
                assert torch.equal(encode(tokens, lengths, fits).local, expected)
        for differs in (Vocabulary(changed), by_id(changed), other, str(other)):
            source = differs if differs in (other, str(other)) else "vocabulary"
            for _ in range(2):
                with pytest.raises(ValueError, match=re.escape(f"{source}: expected {what}: {advice}")):
                    encode(tokens, lengths, differs)
        with pytest.raises(TypeError, match="vocabulary: expected a dict ixtoword of id to word, got int"):
            encode(tokens, lengths, 3)
        with pytest.raises(ValueError, match="vocabulary: expected a dict ixtoword whose keys are ids"):
            encode(tokens, lengths, {word: i for i, word in enumerate(WORDS)})
        with pytest.raises(FileNotFoundError):
            encode(tokens, lengths, tmp_path / "missing.pickle")
    parts = DualVLMLoss(
        image_encoder=vlm.image_encoder, text_encoder=vlm.text_encoder, scorer=vlm.scorer, lambda_vvm=1, lambda_vlm=1
    )
    with pytest.raises(ValueError, match=r"vocabulary: expected none, as this loss was built from modules.*got Vocab"):
        parts.encode_tokens(tokens, lengths, vlm.vocabulary)


def test_a_vocabulary_is_compared_once(tmp_path, monkeypatch):
    """At every step the same: no file is read and nothing compared again, until either side is another."""
    vlm, path = make_vlm(), tmp_path / "captions.pickle"
    path.write_bytes(pickle.dumps(by_id(WORDS)))
    vlm.check_vocabulary(str(path))
    path.unlink()
    vlm.check_vocabulary("".join(str(path)))
    with pytest.raises(FileNotFoundError):
        vlm.check_vocabulary(tmp_path / "missing.pickle")
    words = by_id(WORDS)
    vlm.check_vocabulary(words)
    with monkeypatch.context() as patch:
        patch.setattr(Vocabulary, "check_same", lambda *_: pytest.fail("compared again"))
        vlm.check_vocabulary(words)
    vlm.vocabulary = Vocabulary([*WORDS[:-1], "tail"])
    with pytest.raises(ValueError, match=r"10 words against 10; first differing ids 9: 'tail' / 'wings'"):
        vlm.check_vocabulary(words)


def test_vocabulary_of_another_size():
    with pytest.raises(ValueError, match="vocabulary: the text encoder knows 9 words, the vocabulary has 10"):
        VLM(ConvEncoder(16, 4), LSTMTextEncoder(9, 16, 8), Vocabulary(WORDS))


def test_parts_of_other_widths():
    text, vocabulary = LSTMTextEncoder(10, 16, 8), Vocabulary(WORDS)
    with pytest.raises(ValueError, match=r"image_encoder: expected features of width 16 .* got 8"):
        VLM(ConvEncoder(8, 4), text, vocabulary)
    with pytest.raises(ValueError, match=r"scorer: expected features of width 16 .* got 8"):
        VLM(ConvEncoder(16, 4), text, vocabulary, MatchingScoreBlock(8))


# -------------------------------------------------------------------------------------------- names and files


def test_a_bare_name_is_looked_up_among_the_packaged_files(tmp_path, monkeypatch):
    """A path is taken as it is; a bare name may be a packaged file; a miss lists what is packaged."""
    assets, here = tmp_path / "assets", tmp_path / "here"
    assets.mkdir()
    here.mkdir()
    monkeypatch.setattr("vlm_plugin.files.ASSETS", assets)
    monkeypatch.chdir(here)
    with pytest.raises(FileNotFoundError, match=r"birds.vlm.pt: no such file \(packaged matchers: none\)"):
        VLM.load("birds.vlm.pt")
    vlm, other = make_vlm(), make_vlm(1)
    vlm.save(assets / "birds.vlm.pt")
    other.save(assets / "another.vlm.pt")
    (assets / "birds.judge.pt").write_bytes(b"no matcher")
    assert VLM.load("birds.vlm.pt").fingerprint == vlm.fingerprint
    message = r"fish.vlm.pt: no such file \(packaged matchers: another.vlm.pt, birds.vlm.pt\)"
    with pytest.raises(FileNotFoundError, match=message):
        VLM.load("fish.vlm.pt")
    with pytest.raises(FileNotFoundError, match=r"runs.birds.vlm.pt: no such file"):
        VLM.load("runs/birds.vlm.pt")
    other.save("birds.vlm.pt")
    assert VLM.load("birds.vlm.pt").fingerprint == other.fingerprint, "the working directory comes first"


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "x.vlm.pt"
    make_vlm().save(path)
    return path


def test_corrupt_files(saved):
    whole = saved.read_bytes()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        saved.write_bytes(content)
        with pytest.raises(ValueError, match=r"x.vlm.pt: not a readable vlm_plugin.VLM file"):
            VLM.load(saved)


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"format": "other"}, [1, 2], torch.zeros(2)])
def test_foreign_files(saved, content):
    torch.save(content, saved)
    with pytest.raises(ValueError, match=r"x.vlm.pt: expected a vlm_plugin.VLM file, got (other|something else)"):
        VLM.load(saved)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers(saved, value):
    content = contents(saved)
    part, weights = next(reversed(content["weights"].items()))
    name, weight = next(reversed(weights.items()))
    weight.view(-1)[-1] = value
    torch.save(content, saved)
    message = rf"x.vlm.pt: expected finite weights, got NaN or infinity in {part}.{name}: the training that wrote it"
    with pytest.raises(ValueError, match=message):
        VLM.load(saved)


def test_newer_version(saved):
    torch.save({**contents(saved), "version": 99}, saved)
    with pytest.raises(ValueError, match=r"x.vlm.pt: written as version 99, this release reads up to 1: upgrade"):
        VLM.load(saved)


@pytest.mark.parametrize(
    "part", ["version", "settings", "weights", "vocabulary", "max_words", "notes", "scorer_trained_on"]
)
def test_incomplete_files(saved, part):
    content = contents(saved)
    del content[part]
    torch.save(content, saved)
    with pytest.raises(ValueError, match=f"x.vlm.pt: .*{part}"):
        VLM.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["settings"]["image_encoder"].update(name="vit"),
        lambda c: c["settings"]["image_encoder"].update(depth=3),
        lambda c: c["settings"]["text_encoder"].update(embed_dim=32),
        lambda c: c["weights"]["scorer"].pop("to_score.bias"),
        lambda c: c["weights"].pop("scorer"),
        lambda c: c["vocabulary"]["words"].append("fish"),
    ],
)
def test_files_whose_parts_do_not_fit(saved, change):
    content = contents(saved)
    change(content)
    torch.save(content, saved)
    with pytest.raises(ValueError, match=r"x.vlm.pt: "):
        VLM.load(saved)


@pytest.mark.parametrize("writer", ["torch.save", "legacy torch.save", "pickle"])
def test_code_in_a_file_is_refused_and_does_not_run(saved, tmp_path, writer):
    trace = tmp_path / "it ran"
    content = {**contents(saved), "notes": Bomb(trace)}
    if writer == "pickle":
        saved.write_bytes(pickle.dumps(content["notes"], protocol=2))
    else:
        torch.save(content, saved, _use_new_zipfile_serialization=writer == "torch.save")
    with pytest.raises(ValueError, match=r"x.vlm.pt: not a readable"):
        VLM.load(saved)
    for paths in ((saved, saved), (saved, tmp_path / "missing")):
        with pytest.raises(ValueError, match=r"x.vlm.pt: not a readable state dict"):
            VLM.from_damsm(*paths, Vocabulary(WORDS))
    assert not trace.exists()


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr(torch, "save", lambda content, file: (file.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        make_vlm(1).save(saved)
    assert saved.read_bytes() == before


def test_a_save_that_cannot_be_written_names_the_file(saved):
    path = saved.parent / "nowhere" / "x.vlm.pt"
    with pytest.raises(OSError, match=rf"^{re.escape(str(path))}: expected a file that can be written, .*nowhere"):
        make_vlm().save(path)


@pytest.mark.full_disk
def test_a_full_disk_names_the_file_and_leaves_the_old_one(saved, monkeypatch):
    before = saved.read_bytes()
    with monkeypatch.context() as full:
        full.setattr(Path, "open", lambda self, mode: open("/dev/full", "wb"))  # noqa: SIM115
        with pytest.raises(OSError, match=rf"^{re.escape(str(saved))}: expected .* on a disk with room, got \S"):
            make_vlm(1).save(saved)
    assert saved.read_bytes() == before


# ------------------------------------------------------------------------------------------------------ DAMSM


def random_state(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif name.endswith("running_var"):
            state[name] = torch.ones(shape)
        else:
            state[name] = torch.empty(shape).uniform_(-0.05, 0.05, generator=generator)
    return state


@pytest.fixture(scope="module")
def damsm(golden, tmp_path_factory):
    """A text encoder, an image encoder and a vocabulary of 50 words, in the published format."""
    folder = tmp_path_factory.mktemp("damsm")
    shapes = json.loads((golden / "attngan_state_dicts.json").read_text())
    text = random_state(shapes["RNN_ENCODER(ntoken=50,nhidden=256)"], 0)
    image = random_state(shapes["CNN_ENCODER(nef=256)"], 1)
    torch.save(text, folder / "text_encoder200.pth")
    torch.save(image, folder / "image_encoder200.pth")
    words = dict(enumerate(["<end>", *(f"word{i}" for i in range(1, 50))]))
    with open(folder / "captions.pickle", "wb") as file:
        pickle.dump([[[1, 2]], [[3]], words, {w: i for i, w in words.items()}], file, protocol=2)
    yield folder, text, image
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def damsm_vlm(damsm):
    folder = damsm[0]
    return VLM.from_damsm(*(folder / n for n in ("text_encoder200.pth", "image_encoder200.pth", "captions.pickle")))


def test_from_damsm(damsm, damsm_vlm):
    """Published files make a matcher: all weights, Mixed_7c by itself, the vocabulary that drops unknown words."""
    _, text, image = damsm
    vlm = damsm_vlm
    assert vlm.scorer is None
    assert not vlm.training
    assert vlm.image_encoder.global_layer == "Mixed_7c"
    assert vlm.embed_dim == 256
    assert len(vlm.vocabulary) == 50
    assert "text_encoder200.pth" in vlm.notes["source"]
    for network, state in ((vlm.image_encoder, image), (vlm.text_encoder, text)):
        assert network.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    features = vlm.encode_text(["word3 unknown Word7", "word1"])
    assert features.mask.sum(1).tolist() == [2, 1]
    assert features.local.shape == (2, 2, 256)


def test_general_terms_without_scorer_are_refused_by_name(damsm_vlm):
    message = "terms: vlm_general, vvm_general need a trained scorer"
    with pytest.raises(ValueError, match=message):
        DualVLMLoss(damsm_vlm, lambda_vvm=1, lambda_vlm=1)
    with pytest.raises(ValueError, match="terms: vvm_general need"):
        DualVLMLoss(damsm_vlm, lambda_vvm=1, lambda_vlm=1, terms=["vlm_local", "vvm_general"])
    loss = DualVLMLoss(damsm_vlm, lambda_vvm=1, lambda_vlm=1, terms=["vlm_local", "vlm_global"])
    fake = pictures(1, dtype=torch.float32, size=16).requires_grad_()
    loss(fake, loss.encode_text(["word1"])).total.backward()
    assert fake.grad.isfinite().all()


def test_from_damsm_vocabulary_of_another_size_names_both(damsm, tmp_path):
    folder = damsm[0]
    files = folder / "text_encoder200.pth", folder / "image_encoder200.pth"
    message = "vocabulary: .*text_encoder200.pth was trained with 50 words, the vocabulary has 10: use the captions"
    with pytest.raises(ValueError, match=message):
        VLM.from_damsm(*files, Vocabulary(WORDS))
    path = tmp_path / "captions.pickle"
    words = {0: "<end>", 1: "bird"}
    path.write_bytes(pickle.dumps([[], [], words, {}]))
    with pytest.raises(ValueError, match=r"with 50 words, the vocabulary has 2 \(.*captions.pickle\): use"):
        VLM.from_damsm(*files, path)


def test_from_damsm_with_other_files(damsm, tmp_path):
    folder, text, _ = damsm
    text_path, image_path = folder / "text_encoder200.pth", folder / "image_encoder200.pth"
    vocabulary = folder / "captions.pickle"
    with pytest.raises(ValueError, match=r"image_encoder200.pth: expected the state dict of a DAMSM text encoder"):
        VLM.from_damsm(image_path, text_path, vocabulary)
    with pytest.raises(ValueError, match=r"text_encoder200.pth: expected the state dict of a DAMSM image encoder"):
        VLM.from_damsm(text_path, text_path, vocabulary)
    with pytest.raises(FileNotFoundError, match=r"missing.pth: no such file"):
        VLM.from_damsm(tmp_path / "missing.pth", image_path, vocabulary)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken.pth: not a readable state dict"):
        VLM.from_damsm(broken, image_path, vocabulary)
    for missing in ("rnn.weight_hh_l0", "rnn.bias_ih_l0_reverse"):
        torch.save({name: value for name, value in text.items() if name != missing}, broken)
        with pytest.raises(ValueError, match=f"broken.pth: .*{missing}"):
            VLM.from_damsm(broken, image_path, vocabulary)
