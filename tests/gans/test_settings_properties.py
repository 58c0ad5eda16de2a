"""Settings of any value: either of the right type, or a ValueError that names the setting."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from properties import FEW

from vlm_plugin.gans.find import baseline
from vlm_plugin.gans.settings import read_config
from vlm_plugin.pretraining.settings import PretrainSettings, filled_in

FAMILIES = ("attngan", "dfgan")
SHIPPED = {f: yaml.safe_load((baseline(f).folder / "cfg" / "synthetic.yml").read_text("utf-8")) for f in FAMILIES}
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text("abz 019:#-'\"\u00e9", max_size=6),
    st.lists(st.one_of(st.integers(-3, 3), st.floats(), st.text("ab", max_size=2)), max_size=3),
    st.dictionaries(st.text("ab", min_size=1, max_size=2), st.integers(0, 3), max_size=2),
)  # fmt: skip


def read(family: str, content: object) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.yml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return read_config(path, baseline(family)).settings


def changed(family: str, number: int, value: object) -> tuple[str, dict]:
    """The shipped settings with one of them, counted through the sections, of another value; and its name."""
    content = json.loads(json.dumps(SHIPPED[family]))
    places = [(content, key, key) for key in content if not isinstance(content[key], dict)]
    for section in (key for key in content if isinstance(content[key], dict)):
        places += [(content[section], key, f"{section}.{key}") for key in content[section]]
    holder, key, name = places[number % len(places)]
    holder[key] = value
    return name, content


@pytest.mark.parametrize("family", FAMILIES)
@FEW
@given(number=st.integers(0, 60), value=VALUES)
def test_a_setting_of_any_value_is_taken_as_it_is_or_refused_by_name(family: str, number: int, value: object) -> None:
    name, content = changed(family, number, value)
    kinds = kinds_of(read(family, SHIPPED[family]))
    try:
        found = kinds_of(read(family, content))
    except ValueError as error:
        told = str(error).partition("mine.yml: ")[2] or str(error)
    else:
        assert found.keys() == kinds.keys()
        own, before = found[name], kinds[name]
        assert own == value
        assert (
            before is None
            or own is None
            or isinstance(own, type(before) if not isinstance(before, float) else (int, float))
        )
        return
    assert name.split(".")[-1] in told
    assert "\n" not in told


def kinds_of(settings: object) -> dict[str, object]:
    """Every setting by its name, the section's before it."""
    found: dict[str, object] = {}
    for key, value in dataclasses.asdict(settings).items():
        found |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return found


@pytest.mark.parametrize("family", FAMILIES)
@FEW
@given(batch=st.integers(2, 999), rate=st.floats(1e-9, 1.0), workers=st.one_of(st.none(), st.integers(0, 9)))
def test_settings_come_out_of_a_file_as_they_went_in(family: str, batch: int, rate: float, workers: int | None) -> None:
    content = SHIPPED[family] | {"batch": batch, "generator_lr": rate, "workers": workers}
    settings = read(family, content)
    assert (settings.batch, settings.generator_lr, settings.workers) == (batch, rate, workers)
    written = json.loads(json.dumps(dataclasses.asdict(settings)))
    assert read(family, like(SHIPPED[family], written)) == settings


def like(shipped: dict, written: dict) -> dict:
    """The part of what was written that a settings file may say."""
    return {
        key: like(value, written[key]) if isinstance(value, dict) else written[key] for key, value in shipped.items()
    }


@FEW
@given(
    name=st.sampled_from(["encoder", "epochs", "batch", "embed_dim", "image_size", "learning_rate", "seed"]),
    value=VALUES,
)
def test_an_option_of_pretraining_is_whole_or_refused_by_name(name: str, value: object) -> None:
    told = ""
    try:
        settings = filled_in(PretrainSettings(**{name: value}))
    except (TypeError, ValueError) as error:
        told = str(error)
    if told:
        assert told.startswith(f"{name}: expected")
    else:
        assert getattr(settings, name) == value or value is None
