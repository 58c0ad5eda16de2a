"""Pictures of captions without training: from every kind of file, what is written, and what is refused."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from fill import fill_, wave
from PIL import Image
from torch import Tensor

from vlm_plugin import VLM, ConvEncoder, LSTMTextEncoder, Vocabulary
from vlm_plugin.baselines.attngan.trainer import AttnGAN
from vlm_plugin.baselines.dfgan.trainer import DFGAN
from vlm_plugin.cli.main import main
from vlm_plugin.data.images import to_image
from vlm_plugin.evaluation.judge import Judge
from vlm_plugin.gans import run as run_module
from vlm_plugin.gans.export import export
from vlm_plugin.gans.find import Baseline, find_source
from vlm_plugin.gans.sampling import read_captions
from vlm_plugin.gans.trainer import Trainer, scaled
from vlm_plugin.matcher.identity import fingerprint
from vlm_plugin.training.run_folder import versions

CPU = torch.device("cpu")
KINDS: dict[str, type[Trainer]] = {"attngan": AttnGAN, "dfgan": DFGAN}
CAPTIONS = ["a small red bird with black wings", "a bird"]
both = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def encoder_file() -> Path:
    """The tiny matcher with a text encoder to which captions differ: a fresh one hardly tells them apart."""
    vlm = tiny.build_matcher()
    with torch.no_grad():
        for parameter in vlm.text_encoder.parameters():
            parameter *= 4
    path = tiny.matcher().with_name("words.vlm.pt")
    vlm.save(path)
    return path


def run(kind: str, *words: object, build: Callable | None = None, folder: Path | None = None) -> Path:
    folder = folder or tiny.ROOT / "baselines" / kind
    return run_module.run(kind, folder, build or KINDS[kind], ["--device", "cpu", *(str(word) for word in words)])


class Source(SimpleNamespace):
    """A finished run of a baseline.

    Attributes:
        folder: the run's.
        trainer: as it was at the end.
    """


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """A run of each baseline, in which the averaged generator is far from the present one."""
    root, found = tmp_path_factory.mktemp("sources"), {}
    judge = Judge.load(tiny.judge())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judge, "load", classmethod(lambda cls: judge))
        for name in ("sample_sheet", "loss_curves", "attention_sheet"):
            patch.setattr(f"vlm_plugin.gans.show.{name}", lambda *_: None)
        for kind, trainer in KINDS.items():
            kept: list[Trainer] = []

            def build(*arguments: object, trainer: type[Trainer] = trainer, kept: list[Trainer] = kept) -> Trainer:
                kept.append(trainer(*arguments))
                # Fresh ones hardly listen to the text.
                kept[0].average.load_state_dict(fill_(kept[0].generator).state_dict())
                return kept[0]

            changes = {"steps": 2, "evaluated": 4, "generator_lr": 0.02, "ema": 0.5, "sample_every": 9}
            cfg = tiny.config(root / f"{kind}.yml", kind, **changes)
            rest = ("--data", tiny.birds(), "--out", root / kind, "--cfg", cfg, "--text-encoder", encoder_file())
            found[kind] = Source(folder=run(kind, *rest, build=build), trainer=kept[0])
    return found


@pytest.fixture(scope="module")
def matcher() -> VLM:
    return VLM.load(encoder_file())


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packaged matcher is the tiny one."""
    (tmp_path / "assets").mkdir()
    shutil.copy(encoder_file(), tmp_path / "assets" / "birds.vlm.pt")
    for module in ("files", "matcher.choose", "gans.config"):
        monkeypatch.setattr(f"vlm_plugin.{module}.ASSETS", tmp_path / "assets")


def draw(kind: str, out: Path, *words: object, captions: list[str] = CAPTIONS) -> Path:
    return run(kind, "--out", out, *words, "--sample", *captions)


def pixels(folder: Path) -> Tensor:
    """`(captions, noises, S, S, 3)`, as drawn."""
    files = sorted((folder / "pictures").iterdir())
    values = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files]).int()
    return values.unflatten(0, (-1, 4))


def expected_pixels(draw: Callable[[Tensor, list[str]], Tensor], noise: Tensor, captions: list[str]) -> Tensor:
    """What a function draws of each caption at the same noise."""
    images = [draw(noise, [caption] * len(noise)) for caption in captions]
    return torch.stack([torch.stack([torch.from_numpy(np.array(to_image(i))) for i in row]) for row in images]).int()


def off(one: Tensor, other: Tensor) -> int:
    """The largest difference in grey levels."""
    assert one.shape == other.shape
    return int((one - other).abs().max())


def write_published(kind: str, trainer: Trainer, folder: Path) -> Path:
    """A generator as the originals' trainings leave it."""
    state = {f"module.{name}": value.clone() for name, value in trainer.average.state_dict().items()}
    file = folder / {"attngan": "netG_epoch_3.pth", "dfgan": "state_epoch_003.pth"}[kind]
    torch.save(state if kind == "attngan" else {"model": {"netG": state}, "epoch": 3}, file)
    return file


# ------------------------------------------------------------------------------------------------------ what is drawn


@both
def test_pictures_are_those_of_the_run(
    sources: dict[str, Source], matcher: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The averaged generator, in eval mode, with the text at the scale of the training."""
    folder, trainer = vars(sources[kind]).values()
    noise = wave(4, trainer.noise_dim, scale=2)
    monkeypatch.setattr("vlm_plugin.gans.sampling.noise", lambda shape, *_: noise if shape == noise.shape else None)
    found = pixels(draw(kind, tmp_path, "--generator", folder))

    def text(captions: list[str]) -> object:
        return matcher.encode_text(captions).detach()

    assert off(found, expected_pixels(lambda z, c: trainer.sample(z, text(c)), noise, CAPTIONS)) <= 1
    # ... which is none of these:
    with torch.no_grad():
        present = expected_pixels(lambda z, c: trainer.generator.draw(z, scaled(text(c)))[0], noise, CAPTIONS)
        short = expected_pixels(lambda z, c: trainer.average.draw(z, text(c))[0], noise, CAPTIONS)
    assert off(found, present) > 2
    assert off(found, short) > 2
    assert off(found[0], found[1]) > 2
    assert off(found[:, 0], found[:, 1]) > 2


@both
def test_an_exported_start_draws_as_its_run(
    sources: dict[str, Source], tmp_path: Path, packaged: None, kind: str
) -> None:
    """With the packaged matcher unless another is named; and without --generator, the packaged start."""
    expected = pixels(draw(kind, tmp_path, "--generator", sources[kind].folder))
    start = tmp_path / "baseline" / "assets" / "birds.pt"
    start.parent.mkdir(parents=True)
    export(sources[kind].folder, start)
    by_name = draw(kind, tmp_path, "--generator", start)
    named = draw(kind, tmp_path, "--generator", start, "--text-encoder", encoder_file())
    alone = run(kind, "--out", tmp_path, "--sample", *CAPTIONS, folder=tmp_path / "baseline")
    assert off(pixels(by_name), expected) <= 3  # half precision
    assert off(pixels(by_name), pixels(named)) == off(pixels(by_name), pixels(alone)) == 0


@both
def test_a_published_generator(
    sources: dict[str, Source], matcher: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    trainer = sources[kind].trainer
    noise = wave(4, trainer.noise_dim, scale=2)
    monkeypatch.setattr("vlm_plugin.gans.sampling.noise", lambda *_: noise)
    file = write_published(kind, trainer, tmp_path)
    # Drawing needs no discriminator: what is wrong with one beside the generator is no matter.
    (tmp_path / "netD0.pth").write_bytes(b"no checkpoint")
    found = pixels(draw(kind, tmp_path, "--generator", file, "--text-encoder", encoder_file()))
    with torch.no_grad():
        expected = expected_pixels(lambda z, c: trainer.average.draw(z, matcher.encode_text(c))[0], noise, CAPTIONS)
    assert off(found, expected) <= 1


@both
def test_the_seed_decides(sources: dict[str, Source], tmp_path: Path, kind: str) -> None:
    generator = ("--generator", sources[kind].folder)
    first, again, other = (
        pixels(draw(kind, tmp_path, *generator, *seed)) for seed in ((), ("--seed", 0), ("--seed", 1))
    )
    assert torch.equal(first, again)
    assert off(first, other) > 2


def sampled(out: Path, *words: object) -> Path:
    """What `vlm-plugin sample` draws."""
    before = set(out.iterdir()) if out.is_dir() else set()
    assert main(["sample", *map(str, words), "--out", str(out), "--device", "cpu"]) == 0
    (folder,) = set(out.iterdir()) - before
    return folder


@both
def test_the_command_draws_what_the_script_draws(
    sources: dict[str, Source], tmp_path: Path, packaged: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """From a run's folder, a published generator, and a baseline's name, which stands for its packaged start."""
    source = sources[kind].folder
    found = sampled(tmp_path / "runs", source, *CAPTIONS, "--seed", 3)
    assert found.name == f"00000-{kind}-sample"
    assert torch.equal(pixels(found), pixels(draw(kind, tmp_path, "--generator", source, "--seed", 3)))
    published, encoder = write_published(kind, sources[kind].trainer, tmp_path), ("--text-encoder", encoder_file())
    found = pixels(sampled(tmp_path / "runs", published, *CAPTIONS, *encoder))
    assert torch.equal(found, pixels(draw(kind, tmp_path, "--generator", published, *encoder)))
    start = tmp_path / "baseline" / "assets" / "birds.pt"
    start.parent.mkdir(parents=True)
    export(source, start)
    monkeypatch.setattr(Baseline, "start", property(lambda self: {kind: start}[self.name]))
    found = pixels(sampled(tmp_path / "runs", kind, *CAPTIONS))
    assert torch.equal(found, pixels(draw(kind, tmp_path, "--generator", start)))


def test_a_baselines_name_is_its_packaged_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = tiny.ROOT / "baselines" / "dfgan" / "assets" / "birds.pt"
    assert find_source("dfgan") == find_source(Path("dfgan")) == start
    assert find_source("dcgan") == Path("dcgan")
    assert find_source("runs/dfgan") == Path("runs/dfgan")
    # A folder of that name is the baseline's own, say; a run in it is meant.
    Path("dfgan").mkdir()
    assert find_source("dfgan") == start
    Path("dfgan/options.json").touch()
    assert find_source("dfgan") == Path("dfgan")


@both
def test_what_the_command_refuses(
    sources: dict[str, Source], tmp_path: Path, packaged: None, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Each in one line, and without a folder left behind."""
    run_of_it, published = sources[kind].folder, write_published(kind, sources[kind].trainer, tmp_path)
    absent, out = tmp_path / "absent.pth", tmp_path / "out"
    for words, message in (
        ((absent, "a bird"), f"{absent}: expected a run's folder or a checkpoint, found nothing there"),
        ((run_of_it, "birds.txt"), "captions birds.txt: no such file"),
        ((run_of_it, tmp_path), f"captions {tmp_path}: expected a caption or a file of captions, got a folder"),
        ((run_of_it, " "), "captions: expected captions, got none in ' '"),
        ((run_of_it, "a bird", "--seed", 2**32), f"seed: expected a number from 0 to {2**32 - 1}, got {2**32}"),
        ((run_of_it, "a bird", "--device", "gpu"), "--device gpu: expected cpu, cuda or cuda:NUMBER"),
        ((published, "a bird"), f"--text-encoder: {published} does not say which text encoder it was trained with"),
        (
            (run_of_it, "a bird", "--data", tmp_path),
            f"--out {out}: expected a folder outside of the data folder {tmp_path}, got one inside",
        ),
        (
            (encoder_file(), "a bird"),
            f"{encoder_file()}: expected a run's folder or a checkpoint of a baseline (attngan: ",
        ),
    ):
        assert main(["sample", *map(str, words), "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"vlm-plugin sample: {message}"), said
        assert said.count("\n") == 1
    assert not out.exists()


@both
def test_a_caption_draws_the_same_in_any_company(sources: dict[str, Source], tmp_path: Path, kind: str) -> None:
    generator = ("--generator", sources[kind].folder)
    together = pixels(draw(kind, tmp_path, *generator, captions=[*CAPTIONS, "a blue bird and a yellow beak"]))
    alone = pixels(draw(kind, tmp_path, *generator, captions=CAPTIONS[1:]))
    assert off(together[1:2], alone) == 0


# -------------------------------------------------------------------------------------------------- what is written


@both
def test_everything_is_written_and_opens(
    sources: dict[str, Source], matcher: VLM, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str
) -> None:
    folder, trainer = vars(sources[kind]).values()
    captions = ["a small bird", "ein Vögel with red wings", "a red"]
    found = draw(kind, tmp_path / "not" / "there", "--generator", folder, "--seed", 7, captions=captions)
    assert found == tmp_path / "not" / "there" / f"00000-{kind}-sample"
    attention = ["attention.png"] if kind == "attngan" else []
    assert sorted(p.name for p in found.iterdir()) == [*attention, "pictures", "samples.json", "samples.png"]
    names = sorted(p.name for p in (found / "pictures").iterdir())
    assert names == [f"{row}-{column}.png" for row in range(3) for column in range(4)]
    for name in names:
        with Image.open(found / "pictures" / name) as image:
            image.load()
            assert (image.size, image.mode) == ((trainer.image_size, trainer.image_size), "RGB")
    with Image.open(found / "samples.png") as image:
        assert image.size == (250 + 4 * 100 + 12, 26 + 3 * 100)
    if attention:  # a row a caption, since this generator attends to words in one stage
        with Image.open(found / "attention.png") as image:
            assert image.size == ((1 + 5) * 100, 3 * 136)
    content = json.loads((found / "samples.json").read_text(encoding="utf-8"))
    assert content == {
        "captions": captions, "generator": str(folder), "matcher": matcher.fingerprint, "seed": 7,
        "versions": versions(),
    }  # fmt: skip
    told, written = capsys.readouterr().out.splitlines()
    assert told == "2 of 10 words in 3 captions are unknown to words.vlm.pt: ein, vögel"
    assert written.startswith(f"written to {found}: samples.png, pictures/, samples.json")
    assert draw(kind, tmp_path / "not" / "there", "--generator", folder).name == f"00001-{kind}-sample"


@both
def test_a_caption_with_a_lone_surrogate(sources: dict[str, Source], tmp_path: Path, kind: str) -> None:
    """An argument that is no valid UTF-8 arrives so: what it is drawn to opens, and holds it."""
    captions = ["a red bird \udcff", "a bird"]
    found = draw(kind, tmp_path, "--generator", sources[kind].folder, captions=captions)
    assert json.loads((found / "samples.json").read_text(encoding="utf-8"))["captions"] == captions
    assert (found / "samples.png").is_file()


def test_many_captions(sources: dict[str, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture is written, under names that sort; the sheets end where nobody would look any more."""
    monkeypatch.setattr("vlm_plugin.gans.sampling._SHEET_ROWS", 4)
    monkeypatch.setattr("vlm_plugin.gans.sampling._ATTENTION_ROWS", 2)
    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"a bird {'red ' * n}\n" for n in range(11)), encoding="utf-8")
    found = draw("attngan", tmp_path, "--generator", sources["attngan"].folder, captions=[str(captions)])
    names = sorted(p.name for p in (found / "pictures").iterdir())
    assert names == [f"{row:02d}-{column}.png" for row in range(11) for column in range(4)]
    with Image.open(found / "samples.png") as image:
        assert image.height == 26 + 4 * 100
    with Image.open(found / "attention.png") as image:
        assert image.size == ((1 + 3) * 100, 2 * 136)
    assert len(json.loads((found / "samples.json").read_text(encoding="utf-8"))["captions"]) == 11


def test_the_sheet_shows_each_caption_with_its_pictures(
    sources: dict[str, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("vlm_plugin.gans.sampling.sample_sheet", lambda path, *rest: seen.append(rest))
    monkeypatch.setattr("vlm_plugin.gans.sampling._SHEET_ROWS", 2)
    monkeypatch.chdir(sources["dfgan"].folder)
    found = pixels(draw("dfgan", tmp_path, "--generator", ".", captions=[*CAPTIONS, "a blue bird"]))
    [(captions, columns)] = seen
    assert captions == CAPTIONS
    [(name, rows)] = columns.items()
    assert name == sources["dfgan"].folder.name
    shown = torch.stack([torch.stack([torch.from_numpy(np.array(to_image(i))) for i in row]) for row in rows]).int()
    assert torch.equal(shown, found[:2])


def test_attention_is_that_of_the_first_picture_on_its_own_words(
    sources: dict[str, Source], matcher: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, seen = sources["attngan"].trainer, []
    noise = wave(4, trainer.noise_dim, scale=2)
    monkeypatch.setattr("vlm_plugin.gans.sampling.noise", lambda *_: noise)
    monkeypatch.setattr("vlm_plugin.gans.sampling.heat_sheet", lambda path, rows: seen.extend(rows))
    captions = ["a small red bird with black wings", "bird", "a " + "red " * 30]
    draw("attngan", tmp_path, "--generator", sources["attngan"].folder, captions=captions)
    assert [row.title for row in seen] == [f"{' '.join(c.split())} (stage 2)" for c in captions]
    for caption, row in zip(captions, seen, strict=True):
        text = trainer.condition(matcher.encode_text([caption]))
        with torch.no_grad():
            images, [weights] = trainer.average.draw(noise[:1], text)
        torch.testing.assert_close(row.picture, images[0], rtol=0, atol=1e-4)
        assert [word for word, _ in row.words] == matcher.words(caption)
        heats = torch.stack([heat for _, heat in row.words])
        assert heats.shape == (len(text.mask[0]), 16, 16)
        torch.testing.assert_close(heats.sum(0), torch.ones(16, 16))
        torch.testing.assert_close(heats, weights[0], rtol=0, atol=1e-4)
    assert [len(row.words) for row in seen] == [7, 1, matcher.max_words]


# ---------------------------------------------------------------------------------------------------------- captions


def test_captions_are_words_and_lines_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("birds.txt").write_bytes("\ufeffa red bird\r\n\n  ein  Vögelchen \n\t\nthe last".encode())
    Path("no extension").write_text("a bird of another file\n", encoding="utf-8")
    long = "птица " * 100
    words = ["a blue bird", "birds.txt", " one\n bird ", "no extension", "bird", long, "a black/white bird", "?"]
    assert read_captions(words) == [
        "a blue bird", "a red bird", "ein Vögelchen", "the last", "one bird", "a bird of another file", "bird",
        long.strip(), "a black/white bird", "?",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", 'file_name,caption,vlms\n2.png," a bird, red",0.5\n1.png,a bird,\n'),
        ("c.TSV", "text\tfile_name\na bird, red\t1.png\na bird\t2.png\n"),
        ("c.jsonl", '{"file_name": "1.png", "text": "a bird, red"}\n\n{"file_name": "1.png", "caption": "a bird"}\n'),
        ("c.json", '{"2.png": "a bird, red", "1.png": "a bird"}'),
    ],
)
def test_captions_of_tables_are_those_of_their_rows(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8-sig")
    assert read_captions(["a blue bird", str(path)]) == ["a blue bird", "a bird, red", "a bird"]
    path.write_text(content.replace("a bird, red", " "), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{path}, .*: expected a caption, got an empty one$"):
        read_captions([str(path)])
    path.write_text("a bird\na red bird\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{path}.*: expected (a header with file_name|JSON)"):
        read_captions([str(path)])


@pytest.mark.parametrize(
    "word", ["birds.txt", "birds.TXT", "birds.csv", "a b.tsv", "c.jsonl", "c.json", "no/birds", "/b"]
)
def test_a_file_that_is_not_there_is_no_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"^--sample {word}: no such file$"):
        read_captions(["a bird", word])


@pytest.mark.parametrize("word", ["captions", "captions/", "."])
def test_a_folder_is_no_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("captions").mkdir()
    with pytest.raises(ValueError, match=rf"^--sample {word}: expected a caption or a file of captions, got a folder$"):
        read_captions(["a bird", word])


def test_captions_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("birds.txt").write_text("\n  \n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^--sample: expected captions, got none in 'birds.txt', ' '$"):
        read_captions(["birds.txt", " "])
    Path("birds.txt").write_bytes("ein Vögelchen".encode("latin1"))
    with pytest.raises(ValueError, match=r"^--sample birds.txt: expected UTF-8 text \(.*position 5"):
        read_captions(["birds.txt"])


@both
def test_captions_of_a_file_are_drawn(sources: dict[str, Source], tmp_path: Path, kind: str) -> None:
    generator = ("--generator", sources[kind].folder)
    (tmp_path / "birds.txt").write_text("\n".join(CAPTIONS), encoding="utf-8-sig")
    by_file = draw(kind, tmp_path, *generator, captions=[str(tmp_path / "birds.txt")])
    assert torch.equal(pixels(by_file), pixels(draw(kind, tmp_path, *generator)))


def test_a_very_long_caption(sources: dict[str, Source], tmp_path: Path) -> None:
    """More than a word's file name, a row of the sheet or a row of words can hold."""
    caption = "a small red bird with black wings " * 60
    folder = sources["attngan"].folder
    found = draw("attngan", tmp_path, "--generator", folder, captions=[caption])
    assert pixels(found).shape == (1, 4, 32, 32, 3)
    assert json.loads((found / "samples.json").read_text(encoding="utf-8"))["captions"] == [caption.strip()]


@both
def test_a_caption_without_a_known_word(
    sources: dict[str, Source], tmp_path: Path, capsys: pytest.CaptureFixture, kind: str
) -> None:
    """One message with the caption, before anything is drawn."""
    with pytest.raises(SystemExit) as stopped:
        draw(kind, tmp_path / "out", "--generator", sources[kind].folder, captions=["a bird", "qux quux"])
    assert str(stopped.value).startswith(f"{kind}: caption: expected at least one word of the vocabulary (")
    assert str(stopped.value).endswith("none of its 2 words is in the vocabulary: 'qux quux'")
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------------------------------------------ text encoder


class Damsm(SimpleNamespace):
    """Files of a DAMSM pair; they lead to the tiny matcher.

    Attributes:
        text: the text encoder's file.
        asked: paths for each matcher that was built.
        made: the matchers.
    """


@pytest.fixture
def damsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Damsm:
    """Only an Inception network makes an image encoder; so what is built of the files is the tiny matcher instead."""
    found = Damsm(text=tmp_path / "code" / "DAMSMencoders" / "text_encoder7.pth", asked=[], made=[])
    found.text.parent.mkdir(parents=True)
    torch.save({"encoder.weight": torch.zeros(1)}, found.text)
    found.text.with_name("image_encoder7.pth").write_bytes(b"")

    def build(*paths: Path) -> VLM:
        found.asked.append(paths)
        found.made.append(VLM.load(encoder_file()))
        return found.made[-1]

    monkeypatch.setattr(VLM, "from_damsm", build)
    return found


def write_vocabulary(folder: Path) -> Path:
    folder.mkdir(parents=True)
    by_id = {0: "<end>", 1: "bird"}
    (folder / "captions.pickle").write_bytes(pickle.dumps([[[1]], [[1]], by_id, {w: i for i, w in by_id.items()}]))
    return folder / "captions.pickle"


ORIGINALS = {
    "attngan": "CONFIG_NAME: attn2\nDATA_DIR: ../data/birds\nB_VALIDATION: True\n"
    "TRAIN:\n  FLAG: False\n  NET_G: ../models/netG_epoch_3.pth\n  NET_E: ../DAMSMencoders/text_encoder7.pth\n"
    "TEXT:\n  WORDS_NUM: 3\n",
    "dfgan": "CONFIG_NAME: bird\nmanual_seed: 5\ncheckpoint: ../models/state_epoch_003.pth\ndata_dir: ../data/birds\n"
    "TEXT:\n  WORDS_NUM: 3\n  DAMSM_NAME: ../DAMSMencoders/text_encoder7.pth\n",
}


@both
def test_an_originals_settings_file_names_everything(
    sources: dict[str, Source], damsm: Damsm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Its paths are those of the folder in which the original is run."""
    code = tmp_path / "code"
    vocabulary = write_vocabulary(code / "data" / "birds")
    for folder in ("models", "code/cfg"):
        (code / folder).mkdir(parents=True)
    (code / "code" / "cfg" / "eval.yml").write_text(ORIGINALS[kind], encoding="utf-8")
    generator = write_published(kind, sources[kind].trainer, code / "models")
    found = draw(kind, tmp_path, "--cfg", code / "code" / "cfg" / "eval.yml", captions=["a small red bird"])
    assert damsm.asked == [(damsm.text, damsm.text.with_name("image_encoder7.pth"), vocabulary)]
    assert damsm.made[0].max_words == 3
    shortening = VLM.load(encoder_file())
    shortening.max_words = 3
    three_words = " ".join(shortening.words("a small red bird"))
    by_hand = ("--generator", generator, "--text-encoder", encoder_file(), "--seed", 5 if kind == "dfgan" else 0)
    whole, kept = (draw(kind, tmp_path, *by_hand, captions=[caption]) for caption in ("a small red bird", three_words))
    assert off(pixels(found), pixels(whole)) > 2
    assert off(pixels(found), pixels(kept)) == 0
    # The command line comes first.
    other = draw(kind, tmp_path, "--cfg", code / "code" / "cfg" / "eval.yml", "--generator", sources[kind].folder,
                 "--text-encoder", encoder_file(), "--seed", 6, "--data", code)  # fmt: skip
    content = json.loads((other / "samples.json").read_text(encoding="utf-8"))
    assert (content["generator"], content["seed"]) == (str(sources[kind].folder), 6)
    assert len(damsm.asked) == 1


@both
def test_a_published_text_encoder_by_hand(sources: dict[str, Source], damsm: Damsm, tmp_path: Path, kind: str) -> None:
    generator = write_published(kind, sources[kind].trainer, tmp_path)
    files = ("--generator", generator, "--text-encoder", damsm.text)
    with pytest.raises(SystemExit, match=r"text_encoder7.pth: expected its vocabulary, captions.pickle or"):
        draw(kind, tmp_path, *files)
    vocabulary = write_vocabulary(tmp_path / "data")
    found = draw(kind, tmp_path, *files, "--data", tmp_path / "data")
    assert [paths[2] for paths in damsm.asked] == [vocabulary]
    expected = draw(kind, tmp_path, "--generator", generator, "--text-encoder", encoder_file())
    assert torch.equal(pixels(found), pixels(expected))


@both
def test_a_run_remembers_words_and_vocabulary(
    sources: dict[str, Source], damsm: Damsm, tmp_path: Path, kind: str
) -> None:
    folder = shutil.copytree(sources[kind].folder, tmp_path / "run")
    options = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    vocabulary = write_vocabulary(tmp_path / "data")
    changes = {"text_encoder": str(damsm.text), "data": str(vocabulary.parent), "max_words": 2}
    (folder / "options.json").write_text(json.dumps({**options, **changes}), encoding="utf-8")
    draw(kind, tmp_path, "--generator", folder)
    assert damsm.asked[0][2] == vocabulary
    assert damsm.made[0].max_words == 2
    other = write_vocabulary(tmp_path / "other")
    draw(kind, tmp_path, "--generator", folder, "--data", other.parent)
    assert damsm.asked[1][2] == other
    vocabulary.unlink()
    vocabulary.parent.rmdir()
    message = rf"found neither; {folder}/options.json names {vocabulary.parent}: say where it lies now with --data DIR$"
    with pytest.raises(SystemExit, match=message):
        draw(kind, tmp_path, "--generator", folder)


@both
def test_a_run_says_how_to_name_a_matcher_that_has_moved(
    sources: dict[str, Source], tmp_path: Path, packaged: None, kind: str
) -> None:
    folder = shutil.copytree(sources[kind].folder, tmp_path / "run")
    options = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    gone = tmp_path / "gone.vlm.pt"
    (folder / "options.json").write_text(json.dumps({**options, "text_encoder": str(gone)}), encoding="utf-8")
    message = (
        rf"^{kind}: {gone}: no such file \(packaged matchers: birds.vlm.pt\); {folder}/options.json names {gone}: "
    )
    with pytest.raises(SystemExit, match=message + "say where it lies now with --text-encoder FILE$"):
        draw(kind, tmp_path, "--generator", folder)
    draw(kind, tmp_path, "--generator", folder, "--text-encoder", encoder_file())


@both
def test_a_run_with_the_dual_loss_remembers_its_matcher(sources: dict[str, Source], tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(sources[kind].folder, tmp_path / "run")
    options = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    changes = {"vlm": options["text_encoder"], "text_encoder": None}
    (folder / "options.json").write_text(json.dumps({**options, **changes}), encoding="utf-8")
    expected = draw(kind, tmp_path, "--generator", sources[kind].folder)
    assert torch.equal(pixels(draw(kind, tmp_path, "--generator", folder)), pixels(expected))


def other_matcher(path: Path, width: int) -> Path:
    vocabulary = Vocabulary(["<end>", "<unk>", "a", "bird"])
    VLM(ConvEncoder(width, width=2), LSTMTextEncoder(4, width, word_dim=3), vocabulary).save(path)
    return path


@both
def test_text_encoders_that_are_refused(sources: dict[str, Source], tmp_path: Path, packaged: None, kind: str) -> None:
    published = write_published(kind, sources[kind].trainer, tmp_path)
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=rf"^{kind}: --text-encoder: {published} does not say which text encoder"):
        draw(kind, out, "--generator", published)
    narrow, wide = (other_matcher(tmp_path / f"{width}.pt", width) for width in (6, tiny.DIM))
    message = rf"^{kind}: --text-encoder {narrow}: gives vectors of width 6, {published} reads {tiny.DIM}$"
    with pytest.raises(SystemExit, match=message):
        draw(kind, out, "--generator", published, "--text-encoder", narrow)
    draw(kind, tmp_path, "--generator", published, "--text-encoder", wide, captions=["a bird"])
    start = tmp_path / "start.pt"
    export(sources[kind].folder, start)
    shutil.copy(wide, tmp_path / "assets" / "birds.vlm.pt")
    names = [fingerprint(VLM.load(path).text_encoder) for path in (encoder_file(), wide)]
    for source, rest in ((sources[kind].folder, ["--text-encoder", wide]), (start, [])):
        with pytest.raises(SystemExit) as stopped:
            draw(kind, out, "--generator", source, *rest)
        message = f"{kind}: {source}: trained with the text encoder {names[0]}, got {names[1]}; name the file of"
        assert str(stopped.value).startswith(message)
    assert not out.exists()


# --------------------------------------------------------------------------------------------------- other arguments


@pytest.mark.parametrize(
    "words",
    [("--vlm",), ("--vlm", "a.pt"), ("--resume", "run"), ("--steps", "0"), ("--epochs", "2"), ("--batch", "0"),
     ("--from-scratch",)],
)  # fmt: skip
@both
def test_arguments_of_training_are_refused(tmp_path: Path, kind: str, words: tuple[str, ...]) -> None:
    message = rf"^{kind}: --sample does not train: leave out {words[0]} \(--generator takes a run's folder\)$"
    with pytest.raises(SystemExit, match=message):
        draw(kind, tmp_path, *words)
    assert list(tmp_path.iterdir()) == []


@both
def test_sources_that_are_refused(sources: dict[str, Source], tmp_path: Path, packaged: None, kind: str) -> None:
    """Each in one line, and without a folder left behind."""
    other = next(name for name in KINDS if name != kind)
    out = tmp_path / "out"
    for source, message in (
        (sources[other].folder, rf"expected a run of {kind}, got one of {other}$"),
        (tmp_path, "expected a run's folder with options.json$"),
        (
            sources[kind].folder / "checkpoint.pt",
            f"this is a run's checkpoint: name its folder, {sources[kind].folder}$",
        ),
        (tmp_path / "absent.pth", "no such file$"),
        (encoder_file(), rf"expected a vlm_plugin.{KINDS[kind].name} file, got vlm_plugin.VLM$"),
    ):
        with pytest.raises(SystemExit, match=rf"^{kind}: {source}: {message}"):
            draw(kind, out, "--generator", source)
    empty = tmp_path / "baseline"
    empty.mkdir()
    with pytest.raises(SystemExit, match=rf"^{kind}: {empty}/assets/birds.pt: no such file$"):
        run(kind, "--out", out, "--sample", "a bird", folder=empty)
    assert not out.exists()
    out.write_bytes(b"a file")
    with pytest.raises(SystemExit, match=rf"^{kind}: .*{out}"):
        draw(kind, out, "--generator", sources[kind].folder)
