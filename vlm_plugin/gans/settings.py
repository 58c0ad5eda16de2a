"""Settings files: our own YAML, and those that AttnGAN's and DF-GAN's users already have.

Our files are complete and look like the baseline's `cfg/synthetic.yml`; what a key means is said in `config.py`, and in
the baseline's `settings.py`. An original's file is translated with the table `cfg/original.yml`: dotted key -> [what it
is here, value when left out]. What it is here may be

* a setting of ours, dotted where it is nested (`damsm.gamma1`);
* an argument of main.py or of the run, with dashes (`--data`);
* `=`: only the value beside it is supported;
* null: read, and without effect here.

Where the value when left out is null, that of our `cfg/bird.yml` stays; so do settings that the table does not name.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vlm_plugin.files import whole
from vlm_plugin.foreign import foreign
from vlm_plugin.gans.config import Settings
from vlm_plugin.gans.find import Baseline

_PATHS = ("data", "text_encoder", "vlm", "generator", "sample_from")


@dataclasses.dataclass(frozen=True)
class Original:
    """What an original's settings file says of the run itself; None for what it leaves out. Our files say nothing."""

    data: str | None = None
    """Folder of captioned pictures."""
    text_encoder: str | None = None
    """DAMSM's text encoder."""
    vlm: str | None = None
    """The matcher of the patch's lines, which switches the dual loss on there as well."""
    generator: str | None = None
    """Where to begin."""
    sample_from: str | None = None
    """What to draw with, without training."""
    epochs: int | None = None
    """Passes over the train split."""
    seed: int | None = None
    """Decides initial weights, order and noise."""
    max_words: int | None = None
    """Words kept of a caption."""
    train: bool = True
    """False evaluates what there is."""
    discriminators: bool = True
    """Take those from where it begins, too."""


class SettingsFile(NamedTuple):
    """What a settings file decides."""

    settings: Settings
    """Complete settings, of the baseline's kind."""
    original: Original
    """What an original's file says of the run."""


class Origin(NamedTuple):
    """What a generator was trained with."""

    data: str | None = None
    """Folder of captioned pictures; None for the synthetic birds, and where nothing says so."""
    matcher: str | None = None
    """The matcher or text encoder that conditioned it; None where nothing says so."""


def read_config(path: Path, baseline: Baseline) -> SettingsFile:
    """Read a settings file, ours or an original's.

    Args:
        path: the file.
        baseline: whose; in its folder lie `cfg/synthetic.yml`, `cfg/bird.yml` and `cfg/original.yml`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML mapping, an unknown key (the nearest known one is named), a missing one, a value of another
            kind than the known one, NaN or infinity, or one that is not supported here.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--cfg {path}: no such file")
    cfg, settings_type = baseline.folder / "cfg", baseline.trainer.settings_type
    content, known, table = _load(path), _load(cfg / "synthetic.yml"), _load(cfg / "original.yml")
    if _is_original(content, known, table):
        settings, original = _translate(content, table, path, _load(cfg / "bird.yml"))
        return SettingsFile(settings_type.of(settings), original)
    _check_keys(content, known, path, "")
    return SettingsFile(settings_type.of(content), Original())


def settings_of_run(run: Path, baseline: Baseline) -> Settings:
    """The settings of an earlier run, for one that goes on from its generator: that draws already, so the loss begins
    at once.

    Args:
        run: the run's folder, with `options.json`.
        baseline: whose.

    Raises:
        ValueError: the run's settings are not this baseline's, or of another release: the message names the key.
    """
    path = run / "options.json"
    content = _read_options(path)
    settings = content.get("settings") if isinstance(content, dict) else None
    _check_keys(settings, _load(baseline.folder / "cfg" / "synthetic.yml"), path, "")
    found = baseline.trainer.settings_type.of(settings)
    return dataclasses.replace(found, vlm=dataclasses.replace(found.vlm, vlm_start=0, vvm_start=0))


def origin_of_run(run: Path | None) -> Origin:
    """What an earlier run's generator was trained with; nothing of what is no run's folder."""
    if run is None or not (run / "options.json").is_file():
        return Origin()
    content = _read_options(run / "options.json")
    content = content if isinstance(content, dict) else {}
    return Origin(content.get("data"), content.get("vlm") or content.get("text_encoder"))


def _load(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML: {foreign(path) or ' '.join(str(error).split())}") from None


def _read_options(path: Path) -> object:
    with whole(path):
        return json.loads(path.read_text(encoding="utf-8"))


def _is_original(content: object, known: dict, table: dict) -> bool:
    """More of its keys are an original's than ours: so a misspelt key still belongs to its family."""
    if not isinstance(content, dict):
        return False
    theirs = {name.split(".")[0] for name in table}
    return len(theirs & set(map(str, content))) > len(set(known) & set(map(str, content)))


def _translate(
    content: dict, table: dict[str, list], path: Path, settings: dict[str, Any]
) -> tuple[dict[str, Any], Original]:
    """An original's settings put into ours of the same data, and what they say of the run."""
    given = dict(_flat(content, table, path, ""))
    of_the_run: dict[str, Any] = {}
    for name, (target, default) in table.items():
        where, key = _place(settings, target)
        if where is not None and default is None:
            default = where[key]
        value = given.get(name, default)
        # The originals' empty path means none, and so may a key with nothing behind it; a setting needs its value.
        if where is None and target != "=" and value in (None, ""):
            continue
        if default is not None:
            _check_kind(value, default, path, name)
        if target == "=" and value != default:
            raise ValueError(f"{path}: {name}: only {default!r} is supported here, got {value!r}")
        if where is not None:
            where[key] = value
        elif key is not None and name in given:
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{path}: {name}: expected a number from 0 up, got {value}")
            of_the_run[key] = str(_find(path, value)) if key in _PATHS else value
    return settings, Original(**of_the_run)


def _place(settings: dict[str, Any], target: str | None) -> tuple[dict[str, Any] | None, str | None]:
    """Of a setting: the mapping that holds it, and its name there. Of an argument: None, and its name."""
    if target is None or target == "=":
        return None, None
    if target.startswith("--"):
        return None, target[2:].replace("-", "_")
    part, _, key = target.rpartition(".")
    return settings[part] if part else settings, key


def _flat(content: dict, table: dict, path: Path, prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of an original's file, all of them known to the table."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name in table:
            yield name, value
        elif isinstance(value, dict):
            # Also under a misspelt section: the whole name says best which was meant.
            yield from _flat(value, table, path, f"{name}.")
        elif any(known.startswith(f"{name}.") for known in table):
            raise ValueError(f"{path}: expected a mapping under {name}, got {value!r}")
        else:
            raise ValueError(f"{path}: unknown setting {name}; did you mean {_nearest(name, table)}?")


def _nearest(name: str, known: dict) -> str:
    return difflib.get_close_matches(name, list(known), 1, 0)[0]


def _find(path: Path, value: str) -> Path:
    """A path in an original's file. The originals run in the folder that holds their `cfg` folder."""
    from_there = path.resolve().parent.parent / value
    return from_there.resolve() if not Path(value).exists() and from_there.exists() else Path(value)


def _check_keys(content: object, known: dict, path: Path, prefix: str) -> None:
    if not isinstance(content, dict):
        where = f"under {prefix[:-1]}" if prefix else "of settings"
        got = (None if prefix else foreign(path)) or repr(content)
        raise ValueError(f"{path}: expected a mapping {where}, got {got}")
    for key in content:
        if key not in known:
            raise ValueError(
                f"{path}: unknown setting {prefix}{key}; did you mean {prefix}{_nearest(str(key), known)}?"
            )
    if missing := [key for key in known if key not in content]:
        raise ValueError(f"{path}: missing setting {prefix}{missing[0]}")
    for key, value in known.items():
        if isinstance(value, dict):
            _check_keys(content[key], value, path, f"{prefix}{key}.")
        elif value is not None:
            _check_kind(content[key], value, path, f"{prefix}{key}")


def _check_kind(value: object, known: object, path: Path, name: str) -> None:
    if not _same_kind(value, known):
        # YAML takes 1e-4 for a word.
        number = isinstance(known, float) and not isinstance(value, float)
        hint = " (in YAML 1.0e-4 is a number, 1e-4 is not)" if number else ""
        raise ValueError(f"{path}: {name}: expected a value like {known!r}, got {value!r}{hint}")


def _same_kind(value: object, known: object) -> bool:
    if isinstance(known, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf
    if isinstance(known, list):
        return isinstance(value, list) and len(value) == len(known) and all(map(_same_kind, value, known))
    return type(value) is type(known)
