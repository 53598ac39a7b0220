"""A device's SuperNode: Flower's own, except that it runs no app but the installed one.

    tidewheel edge supernode OPTIONS     those of `flower-supernode`

Whoever reaches a SuperLink's control port can send an app's bundle to every SuperNode, and Flower's
SuperNode installs and runs it. `--trusted-entities` is no help: its signatures come from Flower's
Hub by way of the SuperLink, which has none for an app from a folder. Here a bundle is refused
before it is stored unless it has settings only, names this package's ClientApp, and is what the
run's record says; so the code that runs is the device's own, whatever the SuperLink sends. The
server gets Flower's error for an invalid bundle.

Its SuperExec is edge_client.superexec, which forks the ClientApps, and is started again when it
ends: Flower's SuperNode would go on without, and take messages that nobody answers. A message whose
ClientApp failed without a reply is answered with Flower's error for a crash; Flower does so when
the ClientApp's heartbeat is missing for a minute.

And it asks for work as often as TIDEWHEEL_PULL_S says. Flower's looks every 3 s: half of a short
round where nodes are few, and where they are many more than a SuperLink can answer.

All are put around private names of Flower's, whose version is pinned for it.
"""

import hashlib
import io
import logging
import os
import subprocess
import sys
import threading
import time
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streams.contract.errors import UsageError

CLIENT_APP = "edge_client.client_app:app"
FILES = {"pyproject.toml", "README.md", ".info/CONTENT"}
LARGEST = 100_000  # bytes of a bundle, and of each file in it
APP, VERSION = "tidewheel", "1.0.0"  # as compose.launcher.flower_processes makes it

PULL_S = "TIDEWHEEL_PULL_S"
USUAL_S = 3.0  # Flower's own pause after it asked for a message and there was none
REPLY_S = 0.1  # between two looks for the reply of a ClientApp; Flower's own pause is 0.5 s
LONGEST_S = 600.0
REST_S = 1.0  # the shortest pause while there is no run
RUN_S = 60.0  # after a message a run is taken to go on for so long

AGAIN_S = 1.0  # before a SuperExec that has ended is started again

log = logging.getLogger("flwr")  # where the SuperNode's own lines are


class ForeignApp(Exception):
    """A bundle that must not be run here; never leaves this module."""


def check_bundle(content: bytes) -> None:
    """Raise ForeignApp, with the reason, unless a bundle (FAB) is of our app."""
    if len(content) > LARGEST:
        raise ForeignApp(f"it has {len(content)} bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            files = bundle.infolist()
            names = [each.filename for each in files]
            if more := sorted(set(names) - FILES):
                raise ForeignApp(f"it has files beside the settings: {more[0][:80]}")
            if len(set(names)) != len(names) or any(each.file_size > LARGEST for each in files):
                raise ForeignApp("it has a file twice, or a large one")
            config = tomllib.loads(bundle.read("pyproject.toml").decode())
        project, app = config["project"], config["tool"]["flwr"]["app"]
        named = project["name"], app["publisher"], app["components"]["clientapp"]
        needed = project.get("dependencies", [])
    except ForeignApp:
        raise
    except Exception as exc:  # bytes from anyone
        raise ForeignApp(f"it cannot be read: {exc!r}"[:200]) from exc
    if named != (APP, APP, CLIENT_APP):
        raise ForeignApp(f"it is {named[1]}/{named[0]} with {named[2]}"[:200])
    if needed or "server" in project.get("optional-dependencies", {}):
        raise ForeignApp("it wants packages to be installed")


def check_run(run: Any, content: bytes) -> None:
    """Raise ForeignApp unless a run's record is of this bundle, and of a ClientApp."""
    found = run.fab_id, run.fab_version, run.fab_hash
    if found != (f"{APP}/{APP}", VERSION, hashlib.sha256(content).hexdigest()):
        raise ForeignApp(f"the run is of {run.fab_id} {run.fab_version}, not of its bundle"[:200])
    if "agent" in str(run.primary_task_type).lower():
        raise ForeignApp(f"the run's kind is {run.primary_task_type}")


def guarded(pull: Callable[..., int | None], refuse: Callable[..., None]) -> Callable[..., Any]:
    """Return Flower's `_pull_and_store_message` with the checks in it; `refuse` answers a message
    with an error."""

    def guarded_pull(**given: Any) -> int | None:
        messages: list[Any] = []
        runs: list[Any] = []

        def receive() -> Any:
            found = given["receive"]()
            messages[:] = [] if found is None else [found[0]]
            return found

        def get_run(run_id: int) -> Any:
            runs[:] = [given["get_run"](run_id)]
            return runs[0]

        def get_fab(digest: str, run_id: int) -> Any:
            fab = given["get_fab"](digest, run_id)
            check_bundle(fab.content)
            check_run(runs[0], fab.content)
            return fab

        try:
            return pull(**{**given, "receive": receive, "get_run": get_run, "get_fab": get_fab})
        except ForeignApp as exc:
            run = messages[0].metadata.run_id
            log.error("run %s is refused, its app is not Tidewheel's: %s", run, exc)
            refuse(messages[0], given["state"], given["object_store"])
            return int(run)

    return guarded_pull


def answering(finish: Callable[..., bool], client_app: str, failed: str, error: Any) -> Any:
    """Return Flower's `NodeState.finish_task`, which also answers the message of a ClientApp that
    failed without a reply with `error`."""

    def finish_task(state: Any, task_id: int, sub_status: str, details: str) -> bool:
        finished = finish(state, task_id, sub_status, details)
        if finished and sub_status == failed:
            tasks = state.get_tasks(task_ids=[task_id])
            if tasks and tasks[0].type == client_app:
                state._store_error_replies({tasks[0].run_id}, error)
        return finished

    return finish_task


class Kept:
    """In place of `subprocess` in Flower's module: the SuperExec that is started there is ours, and
    is kept running.

    It ends by itself once this process is gone, whose id its command has.
    """

    def Popen(self, command: Sequence[str]) -> None:  # noqa: N802  # the name is subprocess's
        ours = [sys.executable, "-m", "edge_client.superexec", *command[1:]]
        threading.Thread(target=self.keep, args=(ours,), name="superexec", daemon=True).start()

    def keep(self, command: Sequence[str]) -> None:
        """Start a command again and again."""
        while True:
            ended = subprocess.Popen(command).wait()
            log.warning("the SuperExec has ended (%d) and is started again", ended)
            time.sleep(AGAIN_S)


class Pace:
    """In place of `time` in Flower's module, which pauses USUAL_S when there was no message, and
    shorter while it waits for a ClientApp. `pull_s`: the pause when there was none while a run goes
    on; every node of a fleet asks that often, so it is Flower's unless it is set. At rest it is a
    second at least."""

    def __init__(self, pull_s: float = USUAL_S) -> None:
        self._pull_s = pull_s
        self._worked_at = -RUN_S

    def pause_s(self, asked_s: float, now: float) -> float:
        """Return how long to pause where Flower asked for `asked_s`, at `now` on a monotonic
        clock."""
        if asked_s < USUAL_S:
            self._worked_at = now
            return min(asked_s, REPLY_S)
        running = now - self._worked_at < RUN_S
        return self._pull_s if running else max(self._pull_s, REST_S)

    def sleep(self, seconds: float) -> None:
        time.sleep(self.pause_s(seconds, time.monotonic()))


def read_pace(environ: Mapping[str, str]) -> Pace:
    """Return the pace of TIDEWHEEL_PULL_S, seconds; raise UsageError if it is none."""
    text = environ.get(PULL_S, str(USUAL_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= LONGEST_S:
        raise UsageError(f"{PULL_S}={text!r}: give seconds, 0.05 to {LONGEST_S:.0f}")
    return Pace(seconds)


def main() -> None:
    """Run Flower's SuperNode with the checks."""
    pace = read_pace(os.environ)
    try:
        from flwr.app import Message
        from flwr.supernode import start_client_internal as node
        from flwr.supernode.cli import flower_supernode
        from flwr.supernode.nodestate import in_memory_nodestate as states
    except ImportError as exc:
        advice = "pip install 'tidewheel[edge-train]'"
        raise UsageError(f"a SuperNode needs Flower: {advice} ({exc})") from exc

    def refuse(message: Any, state: Any, store: Any) -> None:
        reply = Message(node.FAB_VERIFICATION_ERROR, reply_to=message)
        node._insert_message(reply, state, store)

    node._pull_and_store_message = guarded(node._pull_and_store_message, refuse)
    vars(node).update(subprocess=Kept(), time=pace)
    client_app, failed = vars(states)["TaskType"].CLIENT_APP, vars(states)["SubStatus"].FAILED
    states.InMemoryNodeState.finish_task = answering(  # type: ignore[method-assign]
        states.InMemoryNodeState.finish_task, client_app, failed, states.CLIENT_APP_CRASHED_ERROR
    )
    flower_supernode()


if __name__ == "__main__":
    main()
