"""The cause of the first failure reaches every rank.

A rank that fails leaves the others waiting: with gloo until the connection breaks, which says nothing of the cause;
with NCCL for hours. So each rank listens, in a thread and by a connection of its own, to the store through which the
ranks met. Whoever fails first writes the cause there and goes when the others have heard.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

_POLL = 0.5  # seconds between two looks
_CAUSE_COMES = 3.0  # seconds that the cause may take, once a connection broke
_HEARD = 10.0  # seconds that the others may take to hear
_GRACE = 5.0  # seconds that a rank has to end by itself, once it has heard
_MEET = 5.0  # seconds that a failing rank looks for the place where ranks meet


class RankStoppedError(ValueError):
    """Another rank failed."""


@contextlib.contextmanager
def one_cause() -> Iterator[None]:
    """Let every rank that works in this block end when one fails, each with that one's cause as its last words.

    Does nothing with a single process.

    Raises:
        RankStoppedError: another rank failed first.
    """
    global _listener
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    listener = _listener = _Listener()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if told := listener.tell(error):
            raise RankStoppedError(told) from error
        raise
    finally:
        listener.close()


def stop_listening() -> None:
    """What `leave_ranks` does when every rank is there: the store may go from here on."""
    if _listener is not None:
        _listener.close()


class _Listener:
    """Hears of the first rank that fails, and tells of this one."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ["WORLD_SIZE"])
        # A launcher that begins again keeps the store.
        self.key = f"vlm_plugin/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/"
        self.heard: str | None = None
        self._closed, self._ends = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._ends.set()
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(_MEET)

    def tell(self, error: BaseException) -> str | None:
        """Tell the others why this rank ends.

        Returns:
            What this one has to say instead, where another failed first; None where its own error is right.
        """
        self._ends.set()
        own = f"{type(error).__name__}: {' '.join(str(error).split())}"
        first = self.heard or self._tell(own, error)
        if first is None or first.partition(" stopped: ")[2] == own or isinstance(error, KeyboardInterrupt):
            return None
        return first if _may_follow(error) else f"{error}; {first}"

    def _tell(self, own: str, error: BaseException) -> str | None:
        """The first failure's words, or None where this is the first."""
        # A rank whose own memory went knows why; a broken connection is hardly ever the cause.
        store = self._connect(_MEET)
        if store is None:
            return None
        mine = f"rank {self.rank} stopped: {own}"
        with contextlib.suppress(RuntimeError):  # the rank that kept the store is gone
            if _may_follow(error):
                _wait(lambda: bool(self.heard) or store.check([f"{self.key}cause"]), _CAUSE_COMES)
            first = store.compare_set(f"{self.key}cause", "", mine).decode("utf-8", "replace")
            store.set(f"{self.key}heard{self.rank}", "1")
            if first != mine:
                return first
            others = [f"{self.key}heard{rank}" for rank in range(self.world)]
            _wait(lambda: store.check(others), _HEARD)
            return None
        return self.heard

    def _listen(self) -> None:
        store = self._connect(None)
        with contextlib.suppress(RuntimeError):  # the rank that kept the store is gone
            while store is not None and not self._closed.wait(_POLL):
                if store.check([f"{self.key}cause"]):
                    self.heard = store.get(f"{self.key}cause").decode("utf-8", "replace")
                    store.set(f"{self.key}heard{self.rank}", "1")
                    break
        if self.heard is None or self.heard.startswith(f"rank {self.rank} "):
            return
        # The main thread may be waiting for ever: nothing but the process's end ends that.
        if not self._ends.wait(_GRACE):
            print(f"\n{self.heard}", file=sys.stderr, flush=True)
            os._exit(1)

    def _connect(self, seconds: float | None) -> dist.TCPStore | None:
        """A connection to the store; None where none comes up in time, or before the end."""
        place = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "0"))
        until = None if seconds is None else time.monotonic() + seconds
        while not self._closed.is_set():
            # A plain connection first: torch's own tells of every attempt.
            with contextlib.suppress(OSError, RuntimeError):
                socket.create_connection(place, 1.0).close()
                patience = datetime.timedelta(seconds=_HEARD)
                return dist.TCPStore(*place, is_master=False, wait_for_workers=False, timeout=patience)
            if until is not None and time.monotonic() > until:
                return None
            self._closed.wait(_POLL / 2)
        return None


_listener: _Listener | None = None


def _may_follow(error: BaseException) -> bool:
    """Whether an error is of the kind that comes of another rank's end."""
    return isinstance(error, RuntimeError) and not isinstance(error, torch.cuda.OutOfMemoryError)


def _wait(until: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        time.sleep(_POLL / 5)
