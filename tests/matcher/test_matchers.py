"""A matcher by name: the packaged one, a file of either kind under any name, and DAMSM files with parts missing."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from tiny import Bomb

from vlm_plugin import VLM, InceptionEncoder, LSTMTextEncoder, Vocabulary
from vlm_plugin.files import ASSETS
from vlm_plugin.matcher.choose import PACKAGED, damsm_pair, is_packaged, load_matcher, unknown_words

WORDS = 12


def write_vocabulary(path: Path, words: int = WORDS, name: str = "word") -> None:
    path.parent.mkdir(exist_ok=True)
    by_id = dict(enumerate(["<end>", *(f"{name}{i}" for i in range(1, words))]))
    path.write_bytes(pickle.dumps([[[1]], [[2]], by_id, {word: i for i, word in by_id.items()}], protocol=2))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pair in the published format: only the text encoder can be made small."""
    folder = tmp_path_factory.mktemp("damsm")
    torch.manual_seed(3)
    torch.save(InceptionEncoder(8, "Mixed_7c").state_dict(), folder / "image_encoder7.pth")
    torch.save(LSTMTextEncoder(WORDS, 8, 5).state_dict(), folder / "text_encoder7.pth")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """The pair in a folder of its own, whose name is a trap."""
    copy = tmp_path / "text_encoders"
    copy.mkdir()
    for file in published.iterdir():
        (copy / file.name).symlink_to(file)
    return copy


# ------------------------------------------------------------------------------------------------- VLM checkpoints


def test_the_packaged_matcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the working folder passes for it; a bare name means the working folder first."""
    assets = tmp_path / "assets"
    assets.mkdir()
    tiny.build_matcher(1).save(assets / "birds.vlm.pt")
    for module in ("vlm_plugin.files", "vlm_plugin.matcher.choose"):
        monkeypatch.setattr(f"{module}.ASSETS", assets)
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny.matcher(), PACKAGED)
    packaged = VLM.load(assets / "birds.vlm.pt").fingerprint
    assert load_matcher(PACKAGED).fingerprint == packaged
    assert load_matcher("birds.vlm.pt").fingerprint == packaged
    shutil.copy(tiny.matcher(), "birds.vlm.pt")
    assert load_matcher(PACKAGED).fingerprint == packaged
    assert load_matcher("birds.vlm.pt").fingerprint == VLM.load(tiny.matcher()).fingerprint


@pytest.mark.parametrize("name", ["mine.vlm.pt", "text_encoder7.pth", "noextension"])
def test_a_checkpoint_under_any_name(tmp_path: Path, name: str) -> None:
    shutil.copy(tiny.matcher(), tmp_path / name)
    vlm = load_matcher(str(tmp_path / name))
    assert vlm.fingerprint == VLM.load(tiny.matcher()).fingerprint
    assert not any(part.training for part in vlm.modules())
    assert vlm.scorer is not None
    assert load_matcher(str(tmp_path / name), device="meta").device.type == "meta"


# ------------------------------------------------------------------------------------------------------ DAMSM files


def test_a_published_pair(folder: Path, tmp_path: Path) -> None:
    text = folder / "text_encoder7.pth"
    write_vocabulary(tmp_path / "data" / "captions.pickle")
    vlm = load_matcher(str(text), tmp_path / "data")
    expected = VLM.from_damsm(text, folder / "image_encoder7.pth", tmp_path / "data" / "captions.pickle")
    assert vlm.fingerprint == expected.fingerprint
    assert vlm.vocabulary == expected.vocabulary
    assert vlm.scorer is None
    assert not any(part.training for part in vlm.modules())
    assert load_matcher(str(text), tmp_path / "data", "meta").device.type == "meta"


def test_where_files_are_looked_for(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary in four places, the first of equal ones; the image encoder by the name of its file alone."""
    asked = []
    monkeypatch.setattr(VLM, "from_damsm", lambda *paths: (asked.append(paths), tiny.build_matcher(scorer=False))[1])
    text, data = folder / "text_encoder7.pth", tmp_path / "data"
    places = [parent / name for parent in (data, folder) for name in ("captions.pickle", "captions_DAMSM.pickle")]
    for place in reversed(places):
        write_vocabulary(place)
        load_matcher(str(text), data)
        assert asked.pop() == (text, folder / "image_encoder7.pth", place)
    load_matcher(str(text))
    assert asked.pop()[2] == folder / "captions.pickle"
    # A folder that is called like the file is none.
    places[0].unlink()
    places[0].mkdir()
    load_matcher(str(text), data)
    assert asked.pop()[2] == data / "captions_DAMSM.pickle"


def test_missing_parts_are_named(folder: Path, tmp_path: Path) -> None:
    text, image, data = folder / "text_encoder7.pth", folder / "image_encoder7.pth", tmp_path / "data"
    with pytest.raises(FileNotFoundError) as refused:
        load_matcher(str(text), data)
    assert str(refused.value) == (
        f"{text}: expected its vocabulary, captions.pickle or captions_DAMSM.pickle, "
        f"in {data} or {folder}, found neither"
    )
    with pytest.raises(FileNotFoundError, match=rf"in {folder}, found neither"):
        load_matcher(str(text))
    write_vocabulary(data / "captions.pickle", WORDS + 1)
    message = rf"{text} was trained with 12 words, the vocabulary has 13 \({data / 'captions.pickle'}\)"
    with pytest.raises(ValueError, match=message):
        load_matcher(str(text), data)
    write_vocabulary(data / "captions.pickle")
    image.unlink()
    with pytest.raises(FileNotFoundError, match=rf"^{image}: expected the image encoder of {text}, found no such file"):
        load_matcher(str(text), data)
    text.rename(folder / "words.pth")
    with pytest.raises(ValueError, match=r"words.pth: expected 'text_encoder' in the file's name, by which its image"):
        load_matcher(str(folder / "words.pth"), data)
    with pytest.raises(FileNotFoundError, match=rf"^{text}: expected a DAMSM text encoder, found no such file"):
        damsm_pair(text, data)


def test_of_two_vocabularies_the_one_of_the_encoders_size(folder: Path, tmp_path: Path) -> None:
    text, data = folder / "text_encoder7.pth", tmp_path / "data"
    first, second = data / "captions.pickle", data / "captions_DAMSM.pickle"
    write_vocabulary(first, WORDS + 5, "other")
    write_vocabulary(second)
    assert load_matcher(str(text), data).vocabulary == Vocabulary.from_damsm(second)
    write_vocabulary(folder / "captions.pickle", WORDS - 1)
    assert load_matcher(str(text), data).vocabulary == Vocabulary.from_damsm(second)
    second.unlink()
    write_vocabulary(folder / "captions.pickle")
    assert load_matcher(str(text), data).vocabulary == Vocabulary.from_damsm(folder / "captions.pickle")
    write_vocabulary(folder / "captions.pickle", WORDS - 1)
    with pytest.raises(ValueError, match=r"text_encoder7.pth: ") as refused:
        load_matcher(str(text), data)
    assert str(refused.value) == (
        f"{text}: expected a vocabulary of 12 words, as it was trained with, got {first} with 17, "
        f"{folder / 'captions.pickle'} with 11: use the captions.pickle that came with this text encoder, "
        "or pretrain a matcher on this data (vlm-plugin pretrain)"
    )
    # The data beside the encoder are one folder, under any name.
    write_vocabulary(folder / "captions_DAMSM.pickle", WORDS - 2)
    (tmp_path / "link").symlink_to(folder)
    listed = f"got {folder / 'captions.pickle'} with 11, {folder / 'captions_DAMSM.pickle'} with 10:"
    with pytest.raises(ValueError, match=listed):
        load_matcher(str(text), tmp_path / "link")


def test_vocabularies_of_the_right_size_that_differ_are_refused(folder: Path, tmp_path: Path) -> None:
    text, data = folder / "text_encoder7.pth", tmp_path / "data"
    for place in (data / "captions.pickle", folder / "captions.pickle"):
        write_vocabulary(place)
    write_vocabulary(data / "captions_DAMSM.pickle", WORDS + 1, "other")
    write_vocabulary(folder / "captions_DAMSM.pickle", WORDS, "other")
    with pytest.raises(ValueError, match=r"text_encoder7.pth: ") as refused:
        load_matcher(str(text), data)
    assert str(refused.value) == (
        f"{text}: expected one vocabulary of 12 words, got two that differ, {data / 'captions.pickle'} and "
        f"{folder / 'captions_DAMSM.pickle'} (12 words against 12; first differing ids 1: 'word1' / 'other1', "
        "2: 'word2' / 'other2', 3: 'word3' / 'other3'): "
        "keep the one that came with this text encoder and move the other away"
    )
    (folder / "captions_DAMSM.pickle").unlink()
    assert load_matcher(str(text), data).vocabulary == Vocabulary.from_damsm(data / "captions.pickle")


def test_a_second_vocabulary_that_runs_code(folder: Path, tmp_path: Path) -> None:
    """Nothing says that it is not the encoder's, so it is not passed over."""
    write_vocabulary(folder / "captions.pickle")
    bomb = folder / "captions_DAMSM.pickle"
    bomb.write_bytes(pickle.dumps([[], [], Bomb(tmp_path / "it ran"), {}], protocol=2))
    with pytest.raises(ValueError, match=rf"^{bomb}: refused to load posix.mkdir"):
        load_matcher(str(folder / "text_encoder7.pth"))
    assert not (tmp_path / "it ran").exists()


def test_a_text_encoder_in_the_image_encoders_place(folder: Path, tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "captions.pickle")
    (folder / "image_encoder7.pth").unlink()
    shutil.copy(folder / "text_encoder7.pth", folder / "image_encoder7.pth")
    with pytest.raises(ValueError, match=r"image_encoder7.pth: expected the state dict of a DAMSM image encoder"):
        load_matcher(str(folder / "text_encoder7.pth"), tmp_path)


# ------------------------------------------------------------------------------------------------------- other files


def test_other_files(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "text_encoder1.pth"
    neither = r"text_encoder1.pth: expected a VLM checkpoint or state dict of a DAMSM text encoder, got something else"
    for content in ({"netG": {}}, [1, 2], torch.zeros(2)):
        torch.save(content, file)
        with pytest.raises(ValueError, match=neither):
            load_matcher(str(file), tmp_path)
    with pytest.raises(ValueError, match=r"image_encoder7.pth: expected a VLM checkpoint or state dict of a DAMSM"):
        load_matcher(str(folder / "image_encoder7.pth"), tmp_path)
    with pytest.raises(ValueError, match=r"tiny.judge.pt: expected a vlm_plugin.VLM file, got vlm_plugin.Judge"):
        load_matcher(str(tiny.judge()), tmp_path)
    for content in (b"", b"nothing", tiny.matcher().read_bytes()[:1000]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"text_encoder1.pth: not a readable VLM checkpoint or state dict"):
            load_matcher(str(file), tmp_path)
    torch.save({"encoder.weight": Bomb(tmp_path / "it ran")}, file)
    with pytest.raises(ValueError, match=r"text_encoder1.pth: not a readable"):
        load_matcher(str(file), tmp_path)
    assert not (tmp_path / "it ran").exists()
    with pytest.raises(FileNotFoundError, match=r"missing.pth: no such file \(packaged matchers: .*birds.vlm.pt\)"):
        load_matcher(str(tmp_path / "missing.pth"), tmp_path)


def test_which_matchers_are_packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (PACKAGED, "birds.vlm.pt", ASSETS / "birds.vlm.pt"):
        assert is_packaged(name)
    assert not is_packaged(tiny.matcher())
    (tmp_path / "birds.vlm.pt").write_bytes(b"mine")
    assert not is_packaged("birds.vlm.pt")
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt: no such file"):
        is_packaged("nothing.pt")


def test_unknown_words_are_counted_and_the_most_frequent_named() -> None:
    vocabulary = Vocabulary.build(["a red bird"])
    captions = ["A purple bird", "an Elephant, purple"]
    assert unknown_words(captions, vocabulary, "runs/m.vlm.pt") == (
        "4 of 6 words in 2 captions are unknown to m.vlm.pt: purple, an, elephant"
    )
    assert unknown_words(["a blue bird"], vocabulary, PACKAGED, 0.3) == (
        "1 of 3 words in 1 caption is unknown to the packaged matcher: blue"
    )
    assert unknown_words(["a blue bird"], vocabulary, "m.vlm.pt", 0.34) is None
    for known in ([], [""], ["red bird", "?!"]):
        assert unknown_words(known, vocabulary, "m.vlm.pt") is None
    many = unknown_words([" ".join(f"word{n} " * (9 - n) for n in range(9)) + "x" * 99 + " xx" * 20], vocabulary, "m")
    assert many.endswith("unknown to m: xx, word0, word1, word2, word3, ...")
    assert unknown_words(["x" * 99], vocabulary, "m").endswith(f": {'x' * 27}...")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_encoders_that_were_saved_in_a_wrapper(folder: Path, tmp_path: Path, prefix: str) -> None:
    (tmp_path / "wrapped").mkdir()
    for name in ("text_encoder7.pth", "image_encoder7.pth"):
        state = torch.load(folder / name, weights_only=True)
        torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "wrapped" / name)
    write_vocabulary(tmp_path / "captions.pickle")
    plain, wrapped = (load_matcher(str(f / "text_encoder7.pth"), tmp_path) for f in (folder, tmp_path / "wrapped"))
    assert wrapped.fingerprint == plain.fingerprint
