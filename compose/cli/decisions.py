"""Manual decisions of `tidewheel models`: promote, rollback, pause, resume. No broker is needed."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compose.cli.arguments import (
    ANNOUNCED,
    DEFAULT_STATE,
    Reason,
    RegistryPlace,
    State,
    TaskArgument,
    registry_of,
)
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import say
from streams.contract.errors import UsageError
from streams.contract.task import load_task

if TYPE_CHECKING:
    from federation.registry.manual import ManualDecision

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A version, as `list` shows it.")]


def promote(
    task: TaskArgument,
    model: Model,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    reason: Reason = "",
    yes: Yes = False,
) -> None:
    """Let all devices serve a version, even a withdrawn one; another offered version is
    withdrawn."""
    from federation.registry import manual

    agree = _agreement(yes, _moved(task))
    _decide(task, state, registry, lambda r, key: manual.promote(r, key, model, reason, agree))


def rollback(
    task: TaskArgument,
    to: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The version to go back to.")
    ] = None,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    reason: Reason = "",
    yes: Yes = False,
) -> None:
    """Withdraw the offered version; without one, go back from the stable version to the one before.

    A second call in a row does nothing; --to goes further back.
    """
    from federation.registry import manual

    agree = _agreement(yes, _moved(task))
    _decide(task, state, registry, lambda r, key: manual.roll_back(r, key, to, reason, agree))


def pause(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    reason: Reason = "",
    yes: Yes = False,
) -> None:
    """Keep the offered version at its stage until `resume`; devices change nothing.

    The controller still takes it back if it is worse. No run starts meanwhile.
    """
    from federation.registry import manual

    agree = _agreement(yes)
    _decide(task, state, registry, lambda r, key: manual.pause(r, key, reason, agree))


def resume(
    task: TaskArgument,
    state: State = DEFAULT_STATE,
    registry: RegistryPlace = None,
    reason: Reason = "",
    yes: Yes = False,
) -> None:
    """Continue a paused rollout from its stage, whose time limit begins again."""
    from federation.registry import manual

    agree = _agreement(yes)
    _decide(task, state, registry, lambda r, key: manual.resume(r, key, reason, agree))


def _moved(task: str) -> str:
    devices = len(load_task(task).device_names("fleet"))
    return f": up to {devices} devices of the task's fleet change"


def _agreement(yes: bool, more: str = "") -> Callable[[str], None]:
    """Ask on a terminal before a decision is made; elsewhere it needs --yes. `more` is what changes
    beside what the decision says."""

    def agree(text: str) -> None:
        if yes:
            return
        what = f"{text}{more}"
        if not sys.stdin.isatty():
            raise UsageError(f"{what}; nobody can be asked here: use --yes")
        if not typer.confirm(f"{what}. Go on?"):
            raise typer.Exit(1)

    return agree


def _decide(task: str, state: Path, place: str | None, decide: Any) -> None:
    from federation.registry.key_rotation import settled
    from streams.runtime.key_files import load_private_key

    where = registry_of(load_task(task), state, place)
    key = load_private_key(StateDir(state).signing_key)
    outcome: ManualDecision = settled(lambda: decide(where, key))
    if outcome.made is None:
        say(outcome.text)
    else:
        say(f"decision {outcome.made.decision.seq}: {outcome.text}; {ANNOUNCED}")
