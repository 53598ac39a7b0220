"""The token and the sessions of those who have given it. Sessions are in memory alone."""

import contextlib
import hmac
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streams.contract.errors import UsageError

COOKIE = "tidewheel-session"
READS_S, ACTS_S = 8 * 3600.0, 900.0  # how long a session lasts; how long it may act unused
WRONG, WAIT_S = 5, 60.0  # wrong tokens, and how long the form waits then
MOST = 100  # sessions at a time


def read_token(path: Path) -> str:
    """Return the token in `path`, which is made with mode 0600 if it is missing; raise UsageError
    if others can read it, or if it is none."""
    try:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
        mode, text = stat.S_IMODE(path.stat().st_mode), path.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"the console's token {path} cannot be read: {exc}") from exc
    if mode & 0o077:
        raise UsageError(f"the console's token {path} can be read by others: chmod 600 {path}")
    if len(text) < 32:
        raise UsageError(f"the console's token {path} is too short: remove it to make another one")
    return text


@dataclass
class _Session:
    opened: float
    acted: float


class Sessions:
    """Sessions by their secret name. Without a token nobody can open one. Thread-safe."""

    def __init__(
        self, token: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._token, self._clock = token, clock
        self._open: dict[str, _Session] = {}
        self._wrong = 0
        self._wait_until = 0.0
        self._lock = threading.Lock()

    @property
    def waits_s(self) -> float:
        """Seconds until a token is looked at again."""
        return max(0.0, self._wait_until - self._clock())

    def open(self, token: str) -> str | None:
        """Return a new session's name for the right token; None for another one, or while it
        waits."""
        with self._lock:
            now = self._clock()
            if self._token is None or now < self._wait_until:
                return None
            if not hmac.compare_digest(token.strip().encode(), self._token.encode()):
                self._wrong += 1
                if self._wrong >= WRONG:
                    self._wrong, self._wait_until = 0, now + WAIT_S
                return None
            self._wrong = 0
            if len(self._open) >= MOST:
                del self._open[next(iter(self._open))]
            name = secrets.token_urlsafe(32)
            self._open[name] = _Session(now, now)
            return name

    def may_read(self, name: str | None) -> bool:
        """Return whether the session lasts."""
        with self._lock:
            found = self._open.get(name or "")
            if found is None:
                return False
            if self._clock() - found.opened >= READS_S:
                del self._open[name or ""]
                return False
            return True

    def may_act(self, name: str | None) -> bool:
        """Return whether the session lasts, and was used for an action lately."""
        if not self.may_read(name):
            return False
        with self._lock:
            found = self._open.get(name or "")
            return found is not None and self._clock() - found.acted < ACTS_S

    def acted(self, name: str | None) -> None:
        """Let the session act for longer."""
        with self._lock:
            if (found := self._open.get(name or "")) is not None:
                found.acted = self._clock()

    def close(self, name: str | None) -> None:
        with self._lock:
            self._open.pop(name or "", None)
