"""Settings files: our own, and those that AttnGAN's and DF-GAN's users bring along."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import tiny
import yaml

from vlm_plugin.gans.config import Settings
from vlm_plugin.gans.find import baseline
from vlm_plugin.gans.settings import Original, SettingsFile, read_config, settings_of_run
from vlm_plugin.pretraining.settings import PretrainSettings

BASELINES = tiny.ROOT / "baselines"
FAMILIES = ("attngan", "dfgan")
SETTINGS_TYPES = {family: baseline(family).trainer.settings_type for family in FAMILIES}
# What an original's file may say of the run.
OF_THE_RUN = set(Original.__dataclass_fields__)

# No value as in our bird.yml, so that one that is not taken over shows.
ATTNGAN = """
CONFIG_NAME: mine
DATASET_NAME: moths
DATA_DIR: moths/data
GPU_ID: 1
CUDA: False
WORKERS: 3
RNN_TYPE: LSTM
B_VALIDATION: True
TREE:
    BRANCH_NUM: 2
    BASE_SIZE: 32
TRAIN:
    FLAG: True
    NET_G: ''  # from scratch
    NET_E: moths/text.pth
    B_NET_D: False
    BATCH_SIZE: 7
    MAX_EPOCH: 11
    SNAPSHOT_INTERVAL: 9
    DISCRIMINATOR_LR: 0.0003
    GENERATOR_LR: 0.0005
    ENCODER_LR: 0.002
    RNN_GRAD_CLIP: 0.5
    SMOOTH:
        GAMMA1: 1.5
        GAMMA2: 2.5
        GAMMA3: 3.5
        LAMBDA: 4
    VLM: moths.vlm.pt
    LAMBDA_VVM: 0.3
    LAMBDA_VLM: 0.7
GAN:
    DF_DIM: 8
    GF_DIM: 12
    Z_DIM: 50
    CONDITION_DIM: 40
    R_NUM: 1
    B_ATTENTION: True
    B_DCGAN: False
TEXT:
    EMBEDDING_DIM: 128
    CAPTIONS_PER_IMAGE: 5
    WORDS_NUM: 21
"""
ATTNGAN_SETTINGS = {
    "stages": 2, "base_size": 32, "batch": 7, "workers": 3, "discriminator_lr": 0.0003, "generator_lr": 0.0005,
    "df_dim": 8, "gf_dim": 12, "z_dim": 50, "condition_dim": 40, "residual_blocks": 1,
    "damsm": {"weight": 4, "gamma1": 1.5, "gamma2": 2.5, "gamma3": 3.5}, "vlm": {"lambda_vvm": 0.3, "lambda_vlm": 0.7},
}  # fmt: skip
ATTNGAN_RUN = {
    "data": "moths/data", "text_encoder": "moths/text.pth", "vlm": "moths.vlm.pt",
    "epochs": 11, "max_words": 21, "train": True,
    "discriminators": False,
}  # fmt: skip

# Spaces end the file: editors leave them behind.
DFGAN = """
CONFIG_NAME: mine
dataset_name: moths
data_dir: moths/data
gpu_id: 1
imsize: 128
z_dim: 50
cond_dim: 128
manual_seed: 3
cuda: False
stamp: 'second'
state_epoch: 5
max_epoch: 11
batch_size: 7
nf: 12
ch_size: 3
model: base
gen_interval: 2
test_interval: 3
save_interval: 4
truncation: False
trunc_rate: 1
sample_times: 2
npz_path: moths/statistics.npz
example_captions: moths/captions.txt
samples_save_dir: moths/samples
checkpoint: moths/state_epoch_007.pth
save_image: True
val_save_dir: moths/pictures
vlm: moths.vlm.pt
lambda_vvm: 0.3
lambda_vlm: 0.7
TEXT:
    WORDS_NUM: 21
    EMBEDDING_DIM: 128
    CAPTIONS_PER_IMAGE: 5
    DAMSM_NAME: moths/text.pth
    """
DFGAN_SETTINGS = {
    "image_size": 128, "z_dim": 50, "batch": 7, "nf": 12, "vlm": {"lambda_vvm": 0.3, "lambda_vlm": 0.7},
}  # fmt: skip
DFGAN_RUN = {
    "data": "moths/data", "text_encoder": "moths/text.pth", "vlm": "moths.vlm.pt",
    "sample_from": "moths/state_epoch_007.pth", "epochs": 11,
    "seed": 3, "max_words": 21,
}  # fmt: skip


def load(family: str, name: str) -> Any:
    return yaml.safe_load((BASELINES / family / "cfg" / name).read_text(encoding="utf-8"))


def as_file(family: str, settings: dict[str, Any], **of_the_run: object) -> SettingsFile:
    """What a file with these settings is read as."""
    return SettingsFile(SETTINGS_TYPES[family].of(settings), Original(**of_the_run))


def said(file: SettingsFile) -> dict[str, object]:
    """What a file says of the run, where that is not what its absence would mean."""
    return {name: value for name, value in vars(file.original).items() if value != getattr(Original(), name)}


def read(tmp_path: Path, family: str, text: str) -> SettingsFile:
    file = tmp_path / "cfg" / "mine.yml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return read_config(file, baseline(family))


def refused(tmp_path: Path, family: str, text: str) -> str:
    with pytest.raises(ValueError, match=r"^\S+mine\.yml: ") as stop:
        read(tmp_path, family, text)
    message = str(stop.value)
    assert "\n" not in message
    return message.split("mine.yml: ", 1)[1]


# ---------------------------------------------------------------------------------------------------------------------
# Our own files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_our_files_are_complete_and_come_as_they_are(family: str) -> None:
    files = [file for file in (BASELINES / family / "cfg").glob("*.yml") if file.name != "original.yml"]
    assert {"synthetic.yml", "scratch.yml", "bird.yml", "coco.yml"} <= {file.name for file in files}
    for file in files:
        found = read_config(file, baseline(family))
        assert found == as_file(family, load(family, file.name))
        # Key by key, in the order of the file.
        assert list(found.settings.plain().items()) == list(load(family, file.name).items())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_our_files_has_a_kind(family: str) -> None:
    """And an explanation beside it, in the source."""

    def compare(section: type, content: dict[str, Any]) -> None:
        kinds = get_type_hints(section)
        kinds.pop("order")
        assert set(kinds) == set(content)
        for name, value in content.items():
            if isinstance(value, dict):
                compare(kinds[name], value)
            else:
                (kind, *rest) = get_args(kinds[name]) if isinstance(kinds[name], UnionType) else (kinds[name],)
                assert type(value) in {get_origin(kind) or kind, *rest}, name
        source = inspect.getsource(section)
        for name in section.__annotations__:
            field = source.split(f"\n    {name}: ", 1)[1].split("\n", 2)
            assert field[1].startswith('    """') or isinstance(content.get(name), dict), name

    for file in ("synthetic.yml", "bird.yml"):
        compare(SETTINGS_TYPES[family], load(family, file))
    for shared in (Settings, *(t for t in get_type_hints(SETTINGS_TYPES[family]).values() if hasattr(t, "of"))):
        for name in shared.__annotations__:
            assert f"\n    {name}: " in inspect.getsource(shared)


@pytest.mark.parametrize("family", FAMILIES)
def test_typed_settings_are_the_plain_ones(family: str) -> None:
    content = load(family, "synthetic.yml")
    settings = SETTINGS_TYPES[family].of(content)
    assert settings.plain() == content
    assert settings.vlm.lambda_vlm == content["vlm"]["lambda_vlm"]
    changed = dataclasses.replace(settings, batch=3)
    assert changed.plain() == content | {"batch": 3}
    assert settings != changed
    # Nothing changes them by accident, and the order of a file is none of their values.
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.batch = 3
    assert SETTINGS_TYPES[family].of(dict(reversed(content.items()))) == settings
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'ema'"):
        SETTINGS_TYPES[family].of({name: value for name, value in content.items() if name != "ema"})
    with pytest.raises(TypeError, match="unexpected keyword argument 'nfs'"):
        SETTINGS_TYPES[family].of(content | {"nfs": 3})


def test_the_papers_settings() -> None:
    """Batch and learning rates of VLMGAN*'s text, and what begins from nothing begins gently."""
    paper = load("attngan", "paper.yml")
    assert (paper["batch"], paper["generator_lr"], paper["discriminator_lr"]) == (24, 1e-4, 4e-4)
    assert PretrainSettings().batch == 64
    for family in FAMILIES:
        shipped, scratch = load(family, "synthetic.yml"), load(family, "scratch.yml")
        assert (scratch["vlm"]["lambda_vvm"], scratch["vlm"]["lambda_vlm"]) == (0.1, 0.4)
        different = {name for name, value in shipped.items() if scratch[name] != value}
        assert different <= {"steps", "generator_lr", "discriminator_lr", "vlm"}


@pytest.mark.parametrize("family", FAMILIES)
def test_our_files_are_held_to_what_they_must_say(tmp_path: Path, family: str) -> None:
    settings = load(family, "synthetic.yml")
    vlm = settings["vlm"]

    def changed(**changes: object) -> str:
        return refused(tmp_path, family, yaml.safe_dump(settings | changes))

    assert changed(btach=3) == "unknown setting btach; did you mean batch?"
    assert changed(vlm=vlm | {"lamda_vlm": 1.0}) == "unknown setting vlm.lamda_vlm; did you mean vlm.lambda_vlm?"
    assert changed(vlm=3) == "expected a mapping under vlm, got 3"
    assert changed(steps="many").endswith(", got 'many'")
    assert changed(batch=True).endswith(", got True")
    assert changed(ema=True).endswith(", got True (in YAML 1.0e-4 is a number, 1e-4 is not)")
    assert changed(adam_betas=[0.5]).endswith(", got [0.5]")
    for value in (float("nan"), float("inf"), float("-inf")):
        assert changed(ema=value).endswith(f"ema: expected a value like {settings['ema']}, got {value}")
        assert changed(adam_betas=[0.5, value]).endswith(f", got [0.5, {value}]")
    assert changed(ema="1e-4").endswith(", got '1e-4' (in YAML 1.0e-4 is a number, 1e-4 is not)")
    assert changed(vlm=vlm | {"augment": 1}).startswith("vlm.augment: expected a value like True")
    assert changed(vlm={key: value for key, value in vlm.items() if key != "vlm_start"}) == (
        "missing setting vlm.vlm_start"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_files_that_are_no_settings(tmp_path: Path, family: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"--cfg .*nowhere\.yml: no such file"):
        read_config(tmp_path / "nowhere.yml", baseline(family))
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_config(tmp_path, baseline(family))
    assert refused(tmp_path, family, "{}").startswith("missing setting ")
    assert (
        refused(tmp_path, family, "just words") == "expected a mapping of settings, got a text that begins 'just words'"
    )
    assert refused(tmp_path, family, "") == "expected a mapping of settings, got an empty file"
    assert refused(tmp_path, family, "TRAIN: [1").startswith("not readable as YAML: ")
    (tmp_path / "mine.yml").write_bytes(b"batch: \xff")
    with pytest.raises(ValueError, match=r"mine\.yml: not readable as YAML: "):
        read_config(tmp_path / "mine.yml", baseline(family))


def test_a_run_goes_on_with_rates_that_json_writes_as_yaml_does_not(tmp_path: Path) -> None:
    """JSON writes 0.00001 as 1e-05, which is a word in YAML."""
    content = {"baseline": "dfgan", "settings": load("dfgan", "synthetic.yml") | {"generator_lr": 1.0e-5}}
    (tmp_path / "options.json").write_text(json.dumps(content), encoding="utf-8")
    assert settings_of_run(tmp_path, baseline("dfgan")).generator_lr == 1.0e-5
    (tmp_path / "options.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"options\.json: damaged, or written by another release \(JSONDecodeError"):
        settings_of_run(tmp_path, baseline("dfgan"))


# ---------------------------------------------------------------------------------------------------------------------
# The originals' files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_name_what_there_is(family: str) -> None:
    settings, targets = load(family, "bird.yml"), []
    for name, (target, default) in load(family, "original.yml").items():
        if target is None:
            continue
        if target == "=":
            assert default is not None, name
        elif target.startswith("--"):
            assert target[2:].replace("-", "_") in OF_THE_RUN, name
            # It decides the kind, which is checked for an argument as for a setting.
            assert default is not None, name
            targets.append(target)
        else:
            found = settings
            for key in target.split("."):
                assert key in found, name
                found = found[key]
            assert default is None or found is None or type(default) is type(found), name
            targets.append(target)
    assert len(targets) == len(set(targets))


@pytest.mark.parametrize(
    ("family", "text", "settings", "of_the_run"),
    [
        ("attngan", ATTNGAN, ATTNGAN_SETTINGS, ATTNGAN_RUN),
        ("dfgan", DFGAN, DFGAN_SETTINGS, DFGAN_RUN),
    ],
    ids=FAMILIES,
)
def test_every_key_arrives(tmp_path: Path, family: str, text: str, settings: dict, of_the_run: dict) -> None:
    # The text gives every key of the table, so nothing of it goes untested.
    for name in load(family, "original.yml"):
        assert f"{name.rpartition('.')[2]}: " in text
    bird = load(family, "bird.yml")
    assert all(value != bird[name] for name, value in settings.items())
    config = read(tmp_path, family, text)
    sections = {name: bird[name] | value for name, value in settings.items() if isinstance(value, dict)}
    assert config.settings.plain() == bird | settings | sections
    assert config.original == Original(**of_the_run)
    # As deep as ours: what was nested is read by attribute.
    assert config.settings.vlm.augment is bird["vlm"]["augment"]


def test_what_attngan_leaves_out_is_its_own_default(tmp_path: Path) -> None:
    config = read(tmp_path, "attngan", "CONFIG_NAME: mine\n")
    defaults = {
        "stages": 3, "base_size": 64, "batch": 64, "workers": 6, "discriminator_lr": 0.0002, "generator_lr": 0.0002,
        "df_dim": 64, "gf_dim": 128, "z_dim": 100, "condition_dim": 100, "residual_blocks": 2,
        "damsm": {"weight": 1.0, "gamma1": 5.0, "gamma2": 5.0, "gamma3": 10.0},
    }  # fmt: skip
    assert config == as_file("attngan", load("attngan", "bird.yml") | defaults)


def test_what_dfgan_leaves_out_is_ours(tmp_path: Path) -> None:
    assert read(tmp_path, "dfgan", "CONFIG_NAME: mine\n") == as_file("dfgan", load("dfgan", "bird.yml"))


def test_a_file_for_drawing(tmp_path: Path) -> None:
    text = """
        CONFIG_NAME: attn2
        B_VALIDATION: False
        TRAIN: {FLAG: False, NET_G: models/moths.pth, B_NET_D: False, BATCH_SIZE: 50, NET_E: models/text.pth}
        GAN: {DF_DIM: 64, GF_DIM: 32, Z_DIM: 100, R_NUM: 2}
        TEXT: {WORDS_NUM: 25}
    """
    assert said(read(tmp_path, "attngan", text)) == {
        "train": False, "generator": "models/moths.pth", "text_encoder": "models/text.pth", "max_words": 25,
        "discriminators": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("attngan", "{CONFIG_NAME: mine, DATA_DIR: '', TRAIN: {NET_E: '', NET_G: }}"),
        ("dfgan", "{CONFIG_NAME: mine, data_dir: '', checkpoint: '', manual_seed: , TEXT: {DAMSM_NAME: }}"),
    ],
)
def test_an_empty_argument_is_not_given(tmp_path: Path, family: str, text: str) -> None:
    assert read(tmp_path, family, text).original == Original()


def test_zero_is_given(tmp_path: Path) -> None:
    assert read(tmp_path, "dfgan", "{CONFIG_NAME: mine, manual_seed: 0}").original == Original(seed=0)


@pytest.mark.parametrize(
    ("family", "text", "unknown", "near"),
    [
        ("attngan", "{TRAIN: {SMOOTH: {GAMA1: 4.0}}}", "TRAIN.SMOOTH.GAMA1", "TRAIN.SMOOTH.GAMMA1"),
        ("attngan", "{TRAIN: {BATCHSIZE: 4}}", "TRAIN.BATCHSIZE", "TRAIN.BATCH_SIZE"),
        ("attngan", "{CONFIG_NAME: x, TRIAN: {BATCH_SIZE: 4}}", "TRIAN.BATCH_SIZE", "TRAIN.BATCH_SIZE"),
        ("attngan", "{CONFIG_NAME: x, DATADIR: x}", "DATADIR", "DATA_DIR"),
        ("dfgan", "{CONFIG_NAME: x, imsiz: 64}", "imsiz", "imsize"),
        # What both families have decides nothing.
        ("dfgan", "{batch_size: 4, btch: 4, nf: 8, z_dim: 8}", "btch", "batch_size"),
        ("dfgan", "{cuda: true, TEXT: {WORD_NUM: 4}}", "TEXT.WORD_NUM", "TEXT.WORDS_NUM"),
    ],
)
def test_unknown_keys_name_the_nearest(tmp_path: Path, family: str, text: str, unknown: str, near: str) -> None:
    assert refused(tmp_path, family, text) == f"unknown setting {unknown}; did you mean {near}?"


@pytest.mark.parametrize(
    ("family", "text", "message"),
    [
        ("attngan", "{GAN: {B_DCGAN: true}}", "GAN.B_DCGAN: only False is supported here, got True"),
        ("attngan", "{GAN: {B_ATTENTION: false}}", "GAN.B_ATTENTION: only True is supported here, got False"),
        ("attngan", "{RNN_TYPE: GRU}", "RNN_TYPE: only 'LSTM' is supported here, got 'GRU'"),
        ("dfgan", "{CONFIG_NAME: x, ch_size: 1}", "ch_size: only 3 is supported here, got 1"),
        ("dfgan", "{CONFIG_NAME: x, model: large}", "model: only 'base' is supported here, got 'large'"),
        # An empty one is no word for the supported one.
        ("attngan", "{GAN: {B_DCGAN: }}", "GAN.B_DCGAN: expected a value like False, got None"),
        ("attngan", "{TRAIN: 3}", "expected a mapping under TRAIN, got 3"),
        ("attngan", "{TRAIN: {SMOOTH: }}", "expected a mapping under TRAIN.SMOOTH, got None"),
        ("attngan", "{TRAIN: {BATCH_SIZE: 2.5}}", "TRAIN.BATCH_SIZE: expected a value like 64, got 2.5"),
        ("attngan", "{TRAIN: {BATCH_SIZE: }}", "TRAIN.BATCH_SIZE: expected a value like 64, got None"),
        ("attngan", "{TRAIN: {FLAG: 1}}", "TRAIN.FLAG: expected a value like True, got 1"),
        ("attngan", "{TRAIN: {NET_G: 3}}", "TRAIN.NET_G: expected a value like '', got 3"),
        ("attngan", "{TRAIN: {MAX_EPOCH: -1}}", "TRAIN.MAX_EPOCH: expected a number from 0 up, got -1"),
        (
            "attngan",
            "{TRAIN: {GENERATOR_LR: 1e-4}}",
            "TRAIN.GENERATOR_LR: expected a value like 0.0002, got '1e-4' (in YAML 1.0e-4 is a number, 1e-4 is not)",
        ),
        # Where the left-out value is ours, so is the kind.
        ("dfgan", "{CONFIG_NAME: x, imsize: big}", "imsize: expected a value like 256, got 'big'"),
        ("dfgan", "{CONFIG_NAME: x, batch_size: }", "batch_size: expected a value like 24, got None"),
        ("dfgan", "{CONFIG_NAME: x, cuda: 1}", "cuda: expected a value like True, got 1"),
        ("attngan", "{TRAIN: {GENERATOR_LR: .nan}}", "TRAIN.GENERATOR_LR: expected a value like 0.0002, got nan"),
    ],
)
def test_values_that_cannot_be(tmp_path: Path, family: str, text: str, message: str) -> None:
    assert refused(tmp_path, family, text) == message


PATH_KEYS = [
    ("attngan", "DATA_DIR: {}", "data"),
    ("attngan", "TRAIN: {{NET_E: {}}}", "text_encoder"),
    ("attngan", "TRAIN: {{NET_G: {}}}", "generator"),
    ("dfgan", "data_dir: {}", "data"),
    ("dfgan", "TEXT: {{DAMSM_NAME: {}}}", "text_encoder"),
    ("dfgan", "checkpoint: {}", "sample_from"),
]


@pytest.mark.parametrize(("family", "key", "argument"), PATH_KEYS)
def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, key: str, argument: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there" / "code"
    here.mkdir()
    there.mkdir(parents=True)
    monkeypatch.chdir(here)

    def found(value: object) -> object:
        (given,) = said(read(there, family, "CONFIG_NAME: x\n" + key.format(value))).values()
        return given

    def argument_alone(value: object) -> list[str]:
        return list(said(read(there, family, "CONFIG_NAME: x\n" + key.format(value))))

    assert argument_alone("../moths") == [argument]
    # Neither here nor there: as the user wrote it.
    assert found("../moths") == "../moths"
    # Beside the folder that the originals run in, which holds the one of the settings.
    (tmp_path / "there" / "moths").mkdir()
    assert Path(found("../moths")) == tmp_path / "there" / "moths"
    # What is here comes first.
    (tmp_path / "moths").write_bytes(b"")
    assert found("../moths") == "../moths"
    assert found(tmp_path / "moths") == str(tmp_path / "moths")


def test_a_file_named_from_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "moths").mkdir()
    read(tmp_path, "dfgan", "{CONFIG_NAME: x, data_dir: moths}")
    monkeypatch.chdir(tmp_path / "cfg")
    data = read_config(Path("mine.yml"), baseline("dfgan")).original.data
    assert Path(data) == tmp_path / "moths"
