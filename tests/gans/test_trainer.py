"""Networks in files and folders: every format that a generator may come in, and every wrong one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import tiny
import torch
from easydict import EasyDict
from fill import wave
from tiny import Bomb
from torch import Tensor, nn

from vlm_plugin import VLM, Features
from vlm_plugin.baselines.attngan.trainer import AttnGAN
from vlm_plugin.baselines.dfgan.trainer import DFGAN
from vlm_plugin.gans.saved import Saved, bare, load_weights
from vlm_plugin.gans.trainer import Trainer, scaled
from vlm_plugin.matcher.choose import PACKAGED
from vlm_plugin.matcher.identity import fingerprint

CPU = torch.device("cpu")
KINDS: dict[str, type[Trainer]] = {"attngan": AttnGAN, "dfgan": DFGAN}
SIZES = {
    "attngan": {"gf_dim": 2, "df_dim": 1, "stages": 2, "base_size": 16, "z_dim": 4, "condition_dim": 3},
    "dfgan": {"nf": 2, "image_size": 16, "z_dim": 4},
}
JUDGES = {"attngan": ["discriminator16", "discriminator32"], "dfgan": ["discriminator", "head"]}
PUBLISHED = {"generator": "netG", "discriminator": "netD", "head": "netC"}
FORMS = {
    "attngan": ["run", "start", "published", "published module."],
    "dfgan": ["run", "start", "published", "published module.", "parts", "parts module."],
}
both = pytest.mark.parametrize("kind", KINDS)
every_form = pytest.mark.parametrize(("kind", "form"), [(k, form) for k, forms in FORMS.items() for form in forms])


@pytest.fixture(scope="module")
def matcher() -> VLM:
    return VLM.load(tiny.matcher())


def settings_of(kind: str, **changes: object) -> EasyDict:
    return EasyDict(tiny.settings(kind, **(SIZES[kind] | changes)))


def build(kind: str, matcher: VLM, seed: int, **changes: object) -> Trainer:
    """A tiny trainer in which no two numbers agree, so that one network or weight in another's place shows."""
    torch.manual_seed(seed)
    trainer = KINDS[kind](settings_of(kind, **changes), matcher, CPU, torch.float32)
    for network in (trainer.generator, trainer.average, *trainer.discriminators.values()):
        for name, value in network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value.fill_(7)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            else:
                value.normal_(0, 0.3)
    return trainer


def states(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    networks = {"generator": trainer.generator, "average": trainer.average, **trainer.discriminators}
    return {name: {k: v.clone() for k, v in network.state_dict().items()} for name, network in networks.items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def notes_of(kind: str, matcher: VLM, **changes: object) -> dict[str, object]:
    """What a start's notes must have; a run's options have it too."""
    settings = json.loads(json.dumps(settings_of(kind, **changes)))
    return {"settings": settings, "text_fingerprint": fingerprint(matcher.text_encoder)}


def write_run(kind: str, trainer: Trainer, matcher: VLM, folder: Path, /, **options: object) -> Path:
    """As a run leaves its folder, the files that are read here."""
    folder.mkdir()
    changes = {"normalise_text": trainer.normalise_text}
    rest = {"baseline": kind, "vlm": None, "text_encoder": "words.pt", "max_words": None, "data": None}
    content = {**notes_of(kind, matcher, **changes), **rest, **options}
    (folder / "options.json").write_text(json.dumps(content), encoding="utf-8")
    torch.save({"step": 3, "trainer": trainer.state()}, folder / "checkpoint.pt")
    return folder


def write(kind: str, form: str, trainer: Trainer, matcher: VLM, folder: Path) -> Path:
    """Networks in one of the formats; the averaged generator in the generator's place."""
    if form == "run":
        return write_run(kind, trainer, matcher, folder / "00003-run")
    if form == "start":
        trainer.save_start(folder / "start.pt", notes_of(kind, matcher, normalise_text=trainer.normalise_text))
        return folder / "start.pt"
    prefix = "module." if form.endswith("module.") else ""
    parts = {"generator": trainer.average, **trainer.discriminators}
    found = {n: {prefix + k: v.clone() for k, v in m.state_dict().items()} for n, m in parts.items()}
    if kind == "attngan":
        for number, name in enumerate(JUDGES[kind]):
            torch.save(found[name], folder / f"netD{number}.pth")
        torch.save(found["generator"], folder / "netG_epoch_3.pth")
        return folder / "netG_epoch_3.pth"
    content = {PUBLISHED[name]: state for name, state in found.items()}
    if form.startswith("published"):
        optimizers = {"optimizer_G": torch.optim.Adam(trainer.generator.parameters()).state_dict()}
        content = {"model": content, "optimizers": optimizers, "epoch": 3}
    torch.save(content, folder / "state_epoch_003.pth")
    return folder / "state_epoch_003.pth"


def refused(trainer: Trainer, matcher: VLM, path: Path, error: type[Exception], message: str) -> str:
    """`load_start` says so and loads nothing."""
    before = states(trainer)
    with pytest.raises(error, match=message) as info:
        trainer.load_start(path, matcher)
    assert type(info.value) is error
    after = states(trainer)
    assert all(same(before[name], after[name]) for name in before)
    return str(info.value)


# --------------------------------------------------------------------------------------------------------- beginning


@pytest.mark.parametrize("discriminators", [True, False], ids=["all", "generator"])
@every_form
def test_beginning_from_every_format(tmp_path: Path, matcher: VLM, kind: str, form: str, discriminators: bool) -> None:
    changes = {"normalise_text": form in ("run", "start")}
    source, target = (build(kind, matcher, seed, **changes) for seed in (1, 2))
    path = write(kind, form, source, matcher, tmp_path)
    before, expected = states(target), states(source)
    if form == "start":
        expected = {n: {k: _halved(v) for k, v in state.items()} for n, state in expected.items()}
    taken = target.load_start(path, matcher, discriminators=discriminators)
    after = states(target)
    assert taken == (["generator", *JUDGES[kind]] if discriminators else ["generator"])
    assert same(after["generator"], expected["average"])
    assert same(after["average"], expected["average"])
    for name in JUDGES[kind]:
        assert same(after[name], (expected if discriminators else before)[name]), name
    state = target.state()
    assert state["generator_adam"]["state"] == state["discriminator_adam"]["state"] == {}


def _halved(value: Tensor) -> Tensor:
    return value.half().float() if value.is_floating_point() else value


@both
def test_discriminators_that_are_not_there_are_not_taken(tmp_path: Path, matcher: VLM, kind: str) -> None:
    source, target = (build(kind, matcher, seed, normalise_text=False) for seed in (1, 2))
    path = write(kind, "published", source, matcher, tmp_path)
    if kind == "attngan":
        (tmp_path / "netD0.pth").unlink()
        (tmp_path / "netD2.pth").write_bytes(b"of a third stage, which this generator does not have")
    else:
        content = tiny.contents(path)
        del content["model"]["netD"]
        torch.save(content, path)
    before = states(target)
    assert target.load_start(path, matcher) == ["generator", JUDGES[kind][1]]
    after = states(target)
    assert same(after["generator"], states(source)["average"])
    assert same(after[JUDGES[kind][0]], before[JUDGES[kind][0]])
    assert same(after[JUDGES[kind][1]], states(source)[JUDGES[kind][1]])


@pytest.mark.parametrize("prefix", ["", "module."])
@both
def test_a_bare_generator(tmp_path: Path, matcher: VLM, kind: str, prefix: str) -> None:
    source, target = (build(kind, matcher, seed, normalise_text=False) for seed in (1, 2))
    state = source.average.state_dict()
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "netG.pth")
    assert target.start_is_checked
    assert target.load_start(tmp_path / "netG.pth", matcher) == ["generator"]
    assert same(target.generator.state_dict(), state)
    # Nothing in it says whose captions it has learned to read.
    assert not target.start_is_checked


@both
def test_what_a_file_tells_beside_weights(tmp_path: Path, matcher: VLM, kind: str) -> None:
    trainer, name = build(kind, matcher, 1), fingerprint(matcher.text_encoder)
    taught = frozenset({"0123"})
    plain = taught if kind == "attngan" else frozenset()  # AttnGAN's DAMSM loss comes from the matcher
    run = write_run(kind, trainer, matcher, tmp_path / "run", data="birds", max_words=9, matcher="0123", skip_bad=True)
    assert KINDS[kind].read(run)[1:] == (True, "words.pt", name, 9, Path("birds"), plain, True)
    run = write_run(kind, trainer, matcher, tmp_path / "dual", vlm="dual.vlm.pt", text_encoder=None, matcher="0123")
    assert KINDS[kind].read(run)[1:] == (True, "dual.vlm.pt", name, None, None, taught, False)
    run = write_run(kind, trainer, matcher, tmp_path / "later", matcher="0123", trained_with=["45", "67"])
    assert KINDS[kind].read(run).trained_with == {"45", "67"}
    for with_vlm, expected in ((True, taught), (False, plain)):
        notes = {**notes_of(kind, matcher, normalise_text=True), "matcher": "0123", "with_vlm": with_vlm}
        trainer.save_start(tmp_path / "start.pt", notes)
        assert KINDS[kind].read(tmp_path / "start.pt")[1:] == (True, PACKAGED, name, None, None, expected, False)
    trainer.normalise_text = False
    run = write_run(kind, trainer, matcher, tmp_path / "unscaled")
    assert not KINDS[kind].read(run).normalise_text
    assert not KINDS[kind].read(write(kind, "start", trainer, matcher, tmp_path)).normalise_text
    published = write(kind, "published", trainer, matcher, tmp_path)
    assert KINDS[kind].read(published)[1:] == (False, None, None, None, None, frozenset(), False)


@both
def test_a_run_holds_the_averaged_generator_and_the_trained_one(tmp_path: Path, matcher: VLM, kind: str) -> None:
    trainer = build(kind, matcher, 1)
    with torch.no_grad():
        next(trainer.average.parameters()).add_(1)
    run = write_run(kind, trainer, matcher, tmp_path / "run")
    networks = states(trainer)
    assert same(KINDS[kind].read(run).weights["generator"], networks["average"])
    assert same(KINDS[kind].read(run, averaged=False).weights["generator"], networks["generator"])
    assert not same(networks["generator"], networks["average"])


@both
def test_a_start_is_a_small_file(tmp_path: Path, matcher: VLM, kind: str) -> None:
    trainer = build(kind, matcher, 1)
    trainer.save_start(tmp_path / "start.pt", {"steps": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["start.pt"]
    content = torch.load(tmp_path / "start.pt", weights_only=True)
    assert (content["format"], content["version"]) == (f"vlm_plugin.{KINDS[kind].name}", 1)
    assert content["notes"] == {"steps": 3}
    assert list(content["weights"]) == ["generator", *JUDGES[kind]]
    for name, state in content["weights"].items():
        expected = states(trainer)["average" if name == "generator" else name]
        assert state.keys() == expected.keys()
        for key, value in state.items():
            assert value.dtype == (torch.int64 if key.endswith("num_batches_tracked") else torch.float16), key
            assert torch.equal(value, expected[key].to(value.dtype)), key


# -------------------------------------------------------------------------------------------------- generator alone


@every_form
def test_the_generator_alone(tmp_path: Path, matcher: VLM, kind: str, form: str) -> None:
    trainer = build(kind, matcher, 1, normalise_text=form in ("run", "start"))
    saved = KINDS[kind].read(write(kind, form, trainer, matcher, tmp_path))
    generator = KINDS[kind].load_generator(saved, "here").eval()
    expected = states(trainer)["average"]
    if form == "start":
        trainer.average.load_state_dict({k: _halved(v) for k, v in expected.items()})
    assert same(generator.state_dict(), trainer.average.state_dict())
    assert (generator.noise_dim, generator.embed_dim) == (trainer.noise_dim, tiny.DIM)
    text = matcher.encode_text(["a small red bird", "a bird"]).detach()
    read = scaled(text) if saved.normalise_text else text
    noise = wave(2, trainer.noise_dim)
    with torch.no_grad():
        drawn = generator.draw(noise, read)[0]
    assert drawn.shape == (2, 3, trainer.image_size, trainer.image_size)
    torch.testing.assert_close(drawn, trainer.sample(noise, text))


def golden(kind: str) -> dict[str, dict[str, list[int]]]:
    content = (tiny.ROOT / "tests" / "golden" / f"{kind}_state_dicts.json").read_text(encoding="utf-8")
    return {name: shapes for name, shapes in json.loads(content).items() if name.startswith(("G_NET", "NetG"))}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in golden(kind)])
def test_published_shapes_tell_the_sizes(tmp_path: Path, kind: str, name: str) -> None:
    shapes = golden(kind)[name]
    with torch.device("meta"):
        state = {k: torch.empty(shape) for k, shape in shapes.items()}
        weights = KINDS[kind].published(state, tmp_path / "netG.pth", discriminators=True)
        generator = KINDS[kind].load_generator(Saved(weights, False, None, None), name)
    assert {key: list(value.shape) for key, value in generator.state_dict().items()} == shapes
    assert generator.embed_dim == 256
    width, size = map(int, re.fullmatch(r"\w+\(\w+=(\d+),\w+=(\d+)\)", name).groups())
    if kind == "attngan":
        sizes = (generator.noise_dim, generator.image_sizes, shapes["img_net1.img.0.weight"][1])
        assert sizes == (200, [64, 128, 256], width)
        assert size == 3
    else:
        assert (generator.noise_dim, generator.image_size, generator.nf) == (100, size, width)


def test_the_golden_files_have_both_kinds_of_generators() -> None:
    assert {kind: len(golden(kind)) for kind in KINDS} == {"attngan": 2, "dfgan": 3}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("attngan", {"img_net1.img.0.weight": None}),
        ("attngan", {"ca_net.fc.weight": torch.zeros(12)}),
        ("attngan", {"h_net1.fc.0.weight": torch.zeros(3)}),
        ("dfgan", {"to_rgb.1.weight": None}),
        ("dfgan", {"fc.weight": torch.zeros(3)}),
        ("dfgan", {"GBlocks.0.fuse1.affine0.fc_gamma.linear1.weight": torch.zeros(3, 4)}),
    ],
)
def test_a_generator_without_sizes(tmp_path: Path, matcher: VLM, kind: str, change: dict[str, Tensor | None]) -> None:
    trainer = build(kind, matcher, 1, normalise_text=False)
    state = {k: v for k, v in (trainer.average.state_dict() | change).items() if v is not None}
    torch.save(state, tmp_path / "netG.pth")
    with pytest.raises(ValueError, match=rf"^{tmp_path / 'netG.pth'}: no generator of {KINDS[kind].name} \(\w+: "):
        KINDS[kind].load_generator(KINDS[kind].read(tmp_path / "netG.pth"), str(tmp_path / "netG.pth"))


@both
def test_a_generator_with_another_weight_than_its_sizes_say(matcher: VLM, kind: str) -> None:
    state = build(kind, matcher, 1).average.state_dict()
    name = {"attngan": "img_net2.img.0.weight", "dfgan": "GBlocks.1.c2.bias"}[kind]
    state[name] = torch.zeros(5)
    with pytest.raises(ValueError, match=rf"^here: does not fit .*: {re.escape(name)} has shape \(5,\) instead of"):
        KINDS[kind].load_generator(Saved({"generator": state}, False, None, None), "here")


# --------------------------------------------------------------------------------------------------- what is refused


FAULTS: dict[str, Callable[[dict[str, Tensor], str], None]] = {
    r"{name} is missing": lambda state, name: state.pop(name),
    r"extra\.weight is unknown": lambda state, name: state.update({"extra.weight": torch.zeros(2)}),
    r"{name} has shape \(9, 9\) instead of \({shape}\)": lambda state, name: state.update({name: torch.zeros(9, 9)}),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["generator", "first judge", "last judge"])
@both
def test_weights_of_another_network(tmp_path: Path, matcher: VLM, kind: str, place: int, fault: str) -> None:
    """The message names file, network and weight, and the networks that fit are not loaded either."""
    source, target = (build(kind, matcher, seed) for seed in (1, 2))
    path = write(kind, "start", source, matcher, tmp_path)
    content = tiny.contents(path)
    network = list(content["weights"])[place]
    state = content["weights"][network]
    name = [key for key in state if key.endswith("weight") and state[key].dim() == 4][-1]
    shape = ", ".join(map(str, state[name].shape))
    FAULTS[fault](state, name)
    torch.save(content, path)
    message = fault.format(name=re.escape(name), shape=re.escape(shape))
    refused(target, matcher, path, ValueError, rf"^{path}, {network}: does not fit the settings' network: {message}$")


def test_a_discriminator_of_another_size_beside_a_published_generator(tmp_path: Path, matcher: VLM) -> None:
    source, target = (build("attngan", matcher, seed, normalise_text=False) for seed in (1, 2))
    path = write("attngan", "published", source, matcher, tmp_path)
    torch.save(
        build("attngan", matcher, 1, df_dim=3).discriminators["discriminator32"].state_dict(), tmp_path / "netD1.pth"
    )
    refused(
        target, matcher, path, ValueError, rf"^{path}, discriminator32: does not fit .* instead of .*; and \d+ more$"
    )
    assert target.load_start(path, matcher, discriminators=False) == ["generator"]


@both
def test_another_size_lists_a_few_differences(tmp_path: Path, matcher: VLM, kind: str) -> None:
    bigger = {"attngan": {"stages": 3}, "dfgan": {"image_size": 32}}[kind]
    path = write(kind, "run", build(kind, matcher, 1, **bigger), matcher, tmp_path)
    message = refused(
        build(kind, matcher, 2), matcher, path, ValueError, rf"^{path}, generator: does not fit .*; and \d+ more$"
    )
    assert len(message) < 400 + len(str(path))
    assert message.count(";") == 3


def test_loading_takes_all_or_nothing() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    state = {k: torch.ones_like(v, dtype=torch.float16) for k, v in before.items()}
    with pytest.raises(ValueError, match=r"^here: does not .*: 1.bias has shape \(4,\) instead of \(1,\)$"):
        load_weights(network, {**state, "1.bias": torch.zeros(4)}, "here")
    assert same(network.state_dict(), before)
    load_weights(network, state, "here")
    assert all(torch.equal(v, torch.ones_like(v)) and v.dtype == torch.float32 for v in network.state_dict().values())


@pytest.mark.parametrize("form", ["run", "start", "published"])
@both
def test_networks_of_the_other_baseline(tmp_path: Path, matcher: VLM, kind: str, form: str) -> None:
    other = next(name for name in KINDS if name != kind)
    path = write(other, form, build(other, matcher, 1), matcher, tmp_path)
    message = {
        "run": rf"^{path}: expected a run of {kind}, got one of {other}$",
        "start": rf"^{path}: expected a vlm_plugin.{KINDS[kind].name} file, got vlm_plugin.{KINDS[other].name}$",
        "published": {
            "attngan": rf"^{path}: expected a state dict of tensors$",
            "dfgan": rf"^{path}: expected a DF-GAN training state or generator, without GBlocks.0.c1.weight$",
        }[kind],
    }[form]
    refused(build(kind, matcher, 2), matcher, path, ValueError, message)


def test_a_bare_generator_of_the_other_baseline(tmp_path: Path, matcher: VLM) -> None:
    torch.save(build("dfgan", matcher, 1).average.state_dict(), tmp_path / "netG.pth")
    message = r"netG.pth: expected the state dict of AttnGAN's generator \(G_NET\), without ca_net.fc.weight$"
    refused(build("attngan", matcher, 2), matcher, tmp_path / "netG.pth", ValueError, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a checkpoint of {name}, got a list"),
        (torch.zeros(2), "expected a checkpoint of {name}, got a Tensor"),
        ({}, "expected a state dict of tensors"),
        ({"epoch": 3}, "expected a state dict of tensors"),
        ({"model": {}}, "expected a state dict of tensors"),
        ({"model": {"netD": {"a": torch.zeros(1)}}}, "expected a state dict of tensors"),
        ({"netG": {"fc.weight": 3}}, "expected a state dict of tensors"),
        ({"model": [1]}, "expected a state dict of tensors"),
        ({"format": "vlm_plugin.VLM"}, "expected a vlm_plugin.{name} file, got vlm_plugin.VLM"),
    ],
)
@both
def test_files_that_are_something_else(tmp_path: Path, matcher: VLM, kind: str, content: object, message: str) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    message = message.format(name=KINDS[kind].name)
    refused(build(kind, matcher, 2), matcher, path, ValueError, rf"^{path}(, netG)?: {message}$")


@both
def test_files_that_are_no_checkpoint(tmp_path: Path, matcher: VLM, kind: str) -> None:
    trainer, path = build(kind, matcher, 2), tmp_path / "other.pth"
    whole = write(kind, "start", trainer, matcher, tmp_path).read_bytes()
    for content in (b"", b"a small red bird\n", whole[: len(whole) // 2]):
        path.write_bytes(content)
        what = "(an empty file|a text that begins|a file that is cut)"
        message = rf"^{path}: not a readable checkpoint of {KINDS[kind].name}, but {what}"
        refused(trainer, matcher, path, ValueError, message)
    absent = tmp_path / "absent.pth"
    refused(trainer, matcher, absent, FileNotFoundError, rf"^{absent}: no such file$")


@both
def test_the_checkpoint_of_a_run_is_read_by_its_folder(tmp_path: Path, matcher: VLM, kind: str) -> None:
    trainer = build(kind, matcher, 2)
    run = write_run(kind, trainer, matcher, tmp_path / "run")
    message = rf"^{run}/checkpoint.pt: this is a run's checkpoint: name its folder, {run}$"
    refused(trainer, matcher, run / "checkpoint.pt", ValueError, message)


@both
def test_folders_that_are_no_run(tmp_path: Path, matcher: VLM, kind: str) -> None:
    trainer = build(kind, matcher, 2)
    message = rf"^{tmp_path}: expected a run's folder with options.json$"
    refused(trainer, matcher, tmp_path, FileNotFoundError, message)
    run = write_run(kind, trainer, matcher, tmp_path / "run")
    (run / "checkpoint.pt").unlink()
    refused(trainer, matcher, run, FileNotFoundError, rf"^{run}: expected a run's folder with checkpoint.pt$")


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("options.json", "{", "JSONDecodeError"),
        ("options.json", "é".encode("latin1"), "UnicodeDecodeError"),
        ("options.json", "[]", "TypeError"),
        ("options.json", "{}", "KeyError: 'baseline'"),
        ("options.json", '{"baseline": "attngan", "vlm": "a.pt"}', "KeyError: 'settings'"),
        ("checkpoint.pt", [1], "TypeError"),
        ("checkpoint.pt", {"step": 3}, "KeyError: 'trainer'"),
        ("checkpoint.pt", {"trainer": {"generator": {}}}, "KeyError: 'average'"),
        ("checkpoint.pt", {"trainer": [1]}, "AttributeError"),
        ("start.pt", {}, "KeyError: 'notes'"),
        ("start.pt", {"notes": {"settings": {}}, "weights": {"generator": {"a": torch.ones(1)}}}, "KeyError: 'normal"),
        ("start.pt", {"notes": {"settings": {"normalise_text": True}}, "weights": {}}, "KeyError: 'generator'"),
        ("start.pt", {"notes": {}, "weights": [1]}, "TypeError"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, matcher: VLM, file: str, content: object, error: str) -> None:
    trainer = build("attngan", matcher, 2)
    path = write("attngan", "run", trainer, matcher, tmp_path) / file
    if file == "options.json":
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    elif file == "checkpoint.pt":
        torch.save(content, path)
    else:
        torch.save({"format": "vlm_plugin.AttnGAN", "version": 1, **content}, path)
    source = path if file == "start.pt" else path.parent
    message = rf"^{path}: damaged, or written by another release \({error}"
    refused(trainer, matcher, source, ValueError, message)


@both
def test_weights_that_are_none(tmp_path: Path, matcher: VLM, kind: str) -> None:
    trainer = build(kind, matcher, 2)
    path = write(kind, "start", trainer, matcher, tmp_path)
    content = tiny.contents(path)
    content["weights"][JUDGES[kind][0]] = {"weight": [1.0]}
    torch.save(content, path)
    message = rf"^{path}, {JUDGES[kind][0]}: expected a state dict of tensors$"
    refused(trainer, matcher, path, ValueError, message)


def test_a_newer_version(tmp_path: Path, matcher: VLM) -> None:
    torch.save({"format": "vlm_plugin.DFGAN", "version": 2}, tmp_path / "start.pt")
    message = r"start.pt: written as version 2, this release reads up to 1: upgrade$"
    refused(build("dfgan", matcher, 2), matcher, tmp_path / "start.pt", ValueError, message)


@pytest.mark.parametrize("place", ["file", "inside", "beside", "run"])
@both
def test_nothing_is_executed(tmp_path: Path, matcher: VLM, kind: str, place: str) -> None:
    trainer, bomb = build(kind, matcher, 2, normalise_text=False), Bomb(tmp_path / "it ran")
    path = write(kind, "run" if place == "run" else "published", trainer, matcher, tmp_path)
    if place == "run":
        torch.save({"trainer": bomb}, path / "checkpoint.pt")
    elif place == "file":
        torch.save(bomb, path)
    elif place == "inside":
        torch.save({**torch.load(path, weights_only=True), "more": bomb}, path)
    elif kind == "attngan":
        torch.save(bomb, path.with_name("netD0.pth"))
    else:
        content = tiny.contents(path)
        content["model"]["netD"] = bomb
        torch.save(content, path)
    refused(
        trainer, matcher, path, ValueError, r"(netD0|netG_epoch_3|state_epoch_003|checkpoint)\.p\w+: not a readable"
    )
    assert not (tmp_path / "it ran").exists()


# ------------------------------------------------------------------------------------------------------ text encoder


@pytest.mark.parametrize("form", ["run", "start"])
@both
def test_another_text_encoder(tmp_path: Path, matcher: VLM, kind: str, form: str) -> None:
    path = write(kind, form, build(kind, matcher, 1), matcher, tmp_path)
    target, other = build(kind, matcher, 2), tiny.build_matcher(seed=1)
    names = [fingerprint(vlm.text_encoder) for vlm in (matcher, other)]
    message = rf"^{path}: trained with the text encoder {names[0]}, got {names[1]}; name the file of the former"
    refused(target, other, path, ValueError, message)
    # What else a matcher has is nothing to the generator.
    other.text_encoder.load_state_dict(matcher.text_encoder.state_dict())
    assert other.fingerprint != matcher.fingerprint
    assert target.load_start(path, other)[0] == "generator"


@both
def test_a_published_generator_fits_any_text_encoder(tmp_path: Path, matcher: VLM, kind: str) -> None:
    source, target = (build(kind, matcher, seed, normalise_text=False) for seed in (1, 2))
    path = write(kind, "published", source, matcher, tmp_path)
    assert target.load_start(path, tiny.build_matcher(seed=1))[0] == "generator"


@pytest.mark.parametrize("form", ["run", "start", "published"])
@both
def test_text_at_another_scale(tmp_path: Path, matcher: VLM, kind: str, form: str) -> None:
    """A generator that goes on with vectors of other lengths than it was trained with would draw nonsense."""
    was = form == "start"
    source, target = build(kind, matcher, 1, normalise_text=was), build(kind, matcher, 2, normalise_text=not was)
    path = write(kind, form, source, matcher, tmp_path)
    message = rf"^{path}: trained with normalise_text {was}, the settings say {not was}: --cfg takes others"
    refused(target, matcher, path, ValueError, message)


def test_scaled_text() -> None:
    local, pooled = wave(3, 4, 9).requires_grad_(), wave(3, 9, phase=1).requires_grad_()
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    with torch.no_grad():
        local[1, 2:] = 0
        pooled[2] = 0
    found = scaled(Features(local, pooled, mask))
    lengths = torch.full((3, 4), 3.0)
    lengths[1, 2:] = 0
    torch.testing.assert_close(found.local.norm(dim=-1), lengths)
    torch.testing.assert_close(found.pooled.norm(dim=-1), torch.tensor([3.0, 3.0, 0.0]))
    assert (found.local[1, 2:] == 0).all()
    torch.testing.assert_close(found.local[0] * local[0].norm(dim=-1, keepdim=True), local[0] * 3)  # the same direction
    assert found.mask is mask
    assert not found.local.requires_grad
    assert not found.pooled.requires_grad


@both
def test_the_settings_decide_the_scale(matcher: VLM, kind: str) -> None:
    text = Features(wave(2, 3, tiny.DIM).requires_grad_(), wave(2, tiny.DIM).requires_grad_(), torch.ones(2, 3) > 0)
    for normalise, expected in ((True, scaled(text)), (False, text)):
        found = build(kind, matcher, 1, normalise_text=normalise).condition(text)
        assert torch.equal(found.local, expected.local)
        assert torch.equal(found.pooled, expected.pooled)
        assert not found.local.requires_grad
        assert not found.pooled.requires_grad


# -------------------------------------------------------------------------------------------------------- state dicts


def test_prefixes_go_and_nothing_else() -> None:
    one, two = torch.zeros(1), torch.ones(2)
    expected = {"a.module.weight": one, "module_b": two}
    for prefix in ("", "module."):
        found = bare({prefix + name: value for name, value in expected.items()}, "here")
        assert found.keys() == expected.keys()
        assert found["a.module.weight"] is one


@pytest.mark.parametrize("content", [None, [1], {}, {"a": 1}, {"a": torch.zeros(1), "b": {}}, torch.zeros(2)])
def test_no_state_dicts(content: object) -> None:
    with pytest.raises(ValueError, match=r"^file.pth, netG: expected a state dict of tensors$"):
        bare(content, "file.pth, netG")
