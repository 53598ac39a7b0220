"""Processes with a log: started, waited for until they answer, and ended with all that they have
started."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.rig.processes.polling import until

ROOT = Path(__file__).parents[3]
STACKS_S = 1.0  # in which an agent writes them

_started: list[tuple["subprocess.Popen[bytes]", list[str], Path]] = []


def start(
    argv: Sequence[str | Path],
    log: Path,
    env: Mapping[str, str] | None = None,
    *,
    err: Path | None = None,
    cwd: Path = ROOT,
    stdin: int = subprocess.DEVNULL,
    session: bool = True,
) -> "subprocess.Popen[bytes]":
    """Start a command whose output is appended to `log`, or its errors to `err`. `env` is all of
    its environment."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out, (err or log).open("ab") as errors:
        words = [str(word) for word in argv]
        process = subprocess.Popen(
            words, env=env, cwd=cwd, stdin=stdin, stdout=out, stderr=errors,
            start_new_session=session,
        )  # fmt: skip
    note(process, words, err or log)
    return process


def note(process: "subprocess.Popen[bytes]", words: list[str], log: Path) -> None:
    """Let `last_words` have the end of a process's log."""
    _started[:] = [one for one in _started if one[0].poll() is None]
    _started.append((process, words, log))


def last_words() -> str:
    """The ends of the logs of all that runs, those of devices' agents with the stacks of their
    threads."""
    running = [one for one in _started if one[0].poll() is None]
    for process, words, _ in running:
        if {"edge", "run"} <= set(words):
            process.send_signal(signal.SIGUSR1)
    time.sleep(STACKS_S)
    texts = [f"--- {path}\n{path.read_text(errors='replace')[-6000:]}" for _, _, path in running]
    return "\n".join(texts)


def end(process: "subprocess.Popen[bytes]", patience_s: float = 15.0) -> None:
    """End the group of a process: SIGTERM, time to flush, then SIGKILL, also to what its leader may
    have left behind."""
    for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        if process.poll() is not None:
            break
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def await_answer(
    process: "subprocess.Popen[bytes]", log: Path, answers: Callable[[], object], within_s: float
) -> None:
    """Wait until a server answers; fail with the end of its log if it ends, or does not in time."""

    def ready() -> object:
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        return answers()

    until(ready, f"{log} shows why there is no answer", within_s)


@contextmanager
def serving(
    argv: Sequence[str | Path],
    log: Path,
    answers: Callable[[], object],
    env: Mapping[str, str] | None = None,
    within_s: float = 60.0,
    patience_s: float = 15.0,
) -> Iterator["subprocess.Popen[bytes]"]:
    """A server that answers."""
    process = start(argv, log, env)
    try:
        await_answer(process, log, answers, within_s)
        yield process
    finally:
        end(process, patience_s)
