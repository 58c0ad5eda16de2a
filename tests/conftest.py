"""Shared by all tests: import paths, the golden files, and tests that need a device this machine may not have."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

# Before torch is imported, and for processes that tests start: networks of tests are too small to be shared by threads,
# which wait for each other by spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
# The benchmarks are not part of the installed package, and the golden parameters come from golden/fill.py.
for _entry in (GOLDEN, ROOT):
    if str(_entry) not in sys.path:
        sys.path.insert(0, str(_entry))

_MARKERS = {
    "cuda": "needs a CUDA device; left out, and counted in the summary, where there is none",
    "browser": "needs chromium; left out, and counted in the summary, where there is none",
    "full_disk": "needs /dev/full; left out, and counted in the summary, where there is none",
    "slow": "a long proof; left out, and counted in the summary, without --slow (tests/slow.sh runs them)",
}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_left_out: dict[str, int] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in _MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what cannot run here, instead of skipping it, so that a skip always means something unforeseen."""
    missing = {} if torch.cuda.is_available() else {"cuda": "no CUDA device"}
    missing |= {} if BROWSER else {"browser": "no chromium"}
    missing |= {} if config.getoption("--slow") else {"slow": "--slow runs them"}
    missing |= {} if Path("/dev/full").exists() else {"full_disk": "no /dev/full"}
    kept, dropped = [], []
    for item in items:
        reason = next(
            (f"marked {name} ({why})" for name, why in missing.items() if item.get_closest_marker(name)), None
        )
        if reason is None:
            kept.append(item)
        else:
            dropped.append(item)
            _left_out[reason] = _left_out.get(reason, 0) + 1
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """A file's tests on one process (pytest -n): what a module's fixtures train is trained once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    # One of several processes (pytest -n): each has collected all tests, and the first one's count is shown.
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = _left_out


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    _left_out.update(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason, count in _left_out.items():
        terminalreporter.write_line(f"left out: {count} test{'' if count == 1 else 's'} {reason}")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden files; README.md in it says how each entry was made."""
    return GOLDEN


@pytest.fixture(scope="session")
def browser() -> str:
    """The path of chromium, for tests that are marked so."""
    return BROWSER
