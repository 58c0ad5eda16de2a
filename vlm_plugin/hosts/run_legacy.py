"""Runs a script of an original repository, unedited, on today's Python and torch.

The originals were written for Python 2 or early Python 3, torch 0.3 to 1.9, and a GPU. What has vanished since is
supplied in this process alone, in three ways: names that can be set again are set (`xrange`, `transforms.Scale`);
arguments and defaults that are gone are translated (`delim_whitespace`, byte masks); calls of methods that no type has
any more (`text.decode(...)`, `table.has_key(...)`) are redirected while the host's modules are imported. Nothing is
written into the host's folder but what its own script writes there.

Only what would stop a script is supplied. Where today's libraries merely give other numbers (`nn.Upsample` no longer
aligns the corners of bilinear pictures), they give today's.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib.util
import multiprocessing
import os
import pickle
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.utils.model_zoo
import torchvision
from PIL import ImageFont

# What the originals import beside this package's own requirements, and what pip calls it.
PACKAGES = {
    "dateutil": "python-dateutil",
    "pandas": "pandas",
    "scipy": "scipy",
    "six": "six",
    "skimage": "scikit-image",
    "tensorboard": "tensorboard",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
}
# Python 2's methods, for objects that have no such method of their own.
_METHODS: dict[str, Callable[..., Any]] = {
    "decode": lambda text, *_, **__: text,
    "has_key": lambda table, key: key in table,
    "iteritems": lambda table: iter(table.items()),
    "next": next,
}


def _call(name: str, receiver: object, *args: object, **options: object) -> object:
    """`receiver.name(...)` as Python 2 would have it."""
    method = getattr(receiver, name, None) or partial(_METHODS[name], receiver)
    return method(*args, **options)


class _OldCalls(ast.NodeTransformer):
    """Turns `x.has_key(k)`, and whatever else is in `_METHODS`, into `__legacy_call__("has_key", x, k)`."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
            node.args = [ast.Constant(node.func.attr), node.func.value, *node.args]
            node.func = ast.Name("__legacy_call__", ast.Load())
        return node


def _compile(path: str) -> types.CodeType:
    """Code of a host's file; line numbers stay the file's."""
    tree = _OldCalls().visit(ast.parse(Path(path).read_bytes(), path))
    return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class _Loader(SourceFileLoader):
    """Loads a host's modules; never from or into `__pycache__`, whose code would not be redirected."""

    def get_code(self, fullname: str) -> types.CodeType:
        return _compile(self.get_filename(fullname))


def _redirect_imports(code: Path) -> None:
    """Every module below `code` goes through `_Loader`."""
    find = FileFinder.path_hook((_Loader, [".py"]))

    def hook(folder: str) -> FileFinder:
        if not Path(folder).resolve().is_relative_to(code):
            raise ImportError(folder)
        return find(folder)

    sys.path_hooks.insert(0, hook)
    sys.path_importer_cache.clear()


def _supply_python() -> None:
    builtins.xrange = range
    builtins.__legacy_call__ = _call
    # Python 2's byte strings hold any byte: the data sets' pickles of numpy numbers do.
    pickle.load = partial(pickle.load, encoding="latin1")
    if "fork" in multiprocessing.get_all_start_methods():
        # A loader's worker that starts afresh would import the host without any of this.
        multiprocessing.set_start_method("fork", force=True)


def _supply_packages() -> None:
    """Arguments and defaults of other packages, those that are installed."""
    truetype, make_grid = ImageFont.truetype, torchvision.utils.make_grid

    def truetype_or_default(
        font: str, size: float = 10, **options: object
    ) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        try:
            return truetype(font, size, **options)
        except OSError:  # the originals name a font of a checkout of Pillow
            return ImageFont.load_default(size)

    ImageFont.truetype = truetype_or_default
    torchvision.utils.make_grid = lambda *args, range=None, **options: make_grid(
        *args, **({"value_range": range} if range else {}) | options
    )
    torchvision.transforms.Scale = torchvision.transforms.Resize
    with contextlib.suppress(ModuleNotFoundError):
        import yaml

        load = yaml.load
        yaml.load = lambda stream, Loader=yaml.SafeLoader: load(stream, Loader)
    with contextlib.suppress(ModuleNotFoundError):
        import pandas

        read_csv = pandas.read_csv
        pandas.read_csv = lambda *args, delim_whitespace=False, **options: read_csv(
            *args, **({"sep": r"\s+"} if delim_whitespace else {}) | options
        )
    with contextlib.suppress(ModuleNotFoundError):
        import skimage.transform

        # It once saw for itself that the third axis of a picture is its colours.
        skimage.transform.pyramid_expand = partial(skimage.transform.pyramid_expand, channel_axis=-1)


def _supply_torch() -> None:
    masked_fill, getitem, load_url = torch.Tensor.masked_fill_, torch.Tensor.__getitem__, torch.utils.model_zoo.load_url

    def load_url_or_random(url: str, *args: object, **options: object) -> dict[str, Any]:
        try:
            return load_url(url, *args, **options)
        except OSError as error:
            if "inception_v3" not in url:
                raise
            print(
                f"run-legacy: no {url} ({error}); random weights stand in, "
                "which will do where a DAMSM image encoder is loaded over them, and nowhere else",
                file=sys.stderr,
            )
            return torchvision.models.inception_v3(init_weights=False).state_dict()

    torch.utils.model_zoo.load_url = load_url_or_random
    torch.Tensor.masked_fill_ = lambda tensor, mask, value: masked_fill(tensor, mask.bool(), value)
    # A loss was a vector of one number.
    torch.Tensor.__getitem__ = lambda tensor, index: (
        tensor if index.__class__ is int and index == 0 and tensor.dim() == 0 else getitem(tensor, index)
    )
    _supply_single_process()
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor
        torch.cuda.set_device = lambda device: None
        torch.cuda.FloatTensor = torch.FloatTensor


def _supply_single_process() -> None:
    """DF-GAN gathers the features of its FID from every process, and asks for them without any process group too."""
    world_size, all_gather = dist.get_world_size, dist.all_gather

    def gather(parts: list[torch.Tensor], tensor: torch.Tensor, *args: object, **options: object) -> object:
        if dist.is_initialized():
            return all_gather(parts, tensor, *args, **options)
        return parts[0].copy_(tensor)

    dist.get_world_size = lambda *args, **options: world_size(*args, **options) if dist.is_initialized() else 1
    dist.all_gather = gather


def run_legacy(host: str | Path, words: Sequence[str]) -> None:
    """Runs a host's script as `python script ...` in its `code` folder would, with what has vanished supplied.

    It changes this process for good: its folder, its arguments, its `__main__` and the libraries it has loaded.

    Args:
        host: the original's clone.
        words: the script, relative to the clone's folder `code`, and its arguments.

    Raises:
        ValueError: no script was named, or the host needs packages that are not installed.
        OSError: there is no such folder or script.
        SystemExit: the script's own; 1 after an exception of the script, whose traceback is on stderr by then.
    """
    code = Path(host).resolve() / "code"
    if not code.is_dir():
        raise FileNotFoundError(f"{code}: no such folder; name the clone of an original repository")
    if not words:
        raise ValueError("name a script and its arguments: run-legacy HOST -- main.py --cfg ...")
    script = code / words[0]
    if not script.is_file():
        raise FileNotFoundError(f"{script}: no such script")
    sys.dont_write_bytecode = True
    sys.argv = list(words)
    sys.path.insert(0, str(script.parent))
    os.chdir(code)
    _redirect_imports(code)
    _supply_python()
    _supply_packages()
    _supply_torch()
    main = types.ModuleType("__main__")
    main.__file__ = str(script)
    sys.modules["__main__"] = main
    try:
        exec(_compile(str(script)), main.__dict__)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and str(error.name).split(".")[0] in PACKAGES:
            missing = [name for module, name in PACKAGES.items() if not importlib.util.find_spec(module)]
            raise ValueError(f"{error}; the originals need: pip install {' '.join(missing)}") from error
        # Without our own frame. Not left to the caller, who takes some exceptions for slips of the user's.
        traceback.print_exception(type(error), error, error.__traceback__.tb_next)
        raise SystemExit(1) from None
