"""What a person may do from the console: what the command line does, by the same functions.

An action is asked for first: `plan` returns what would change, without changing anything. `do` does
it only if that is still what would change.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compose.dashboard.web.settings import ConsoleSettings
from compose.launcher.state_dir import StateDir
from compose.reports import dead_letters
from compose.reports.run_request import ask_for_run
from federation.registry import manual
from federation.registry.key_rotation import settled
from federation.registry.registry import Registry
from streams.contract.errors import TidewheelError, UsageError
from streams.contract.task import Task
from streams.runtime.key_files import load_private_key, load_public_key

log = logging.getLogger(__name__)

BY = "console"
Decide = Callable[[Registry, manual.Agree], manual.ManualDecision]


class _Planned(Exception):
    """Carries what would change."""


@dataclass(frozen=True)
class Plan:
    """An action that waits for its confirmation. text: what would change; possible: whether there
    is anything to do."""

    text: str
    possible: bool
    do: Callable[[str], str]


class Actions:
    """The actions of one task; each raises TidewheelError, in one line."""

    def __init__(self, settings: ConsoleSettings, task: Task) -> None:
        self._settings, self._task = settings, task
        self._layout = StateDir(settings.state)

    def train(self) -> Plan:
        text = f"A run of {self._task.name} is requested, whatever the budgets of runs are"

        def do(reason: str) -> str:
            return ask_for_run(self._settings.broker, self._task.name, f"{BY}: {reason or '-'}")

        return Plan(text, True, self._logged("train", do))

    def roll_back(self) -> Plan:
        """Withdraw the offered version, or go back from the stable one."""
        key = load_private_key(self._layout.signing_key)
        return self._decision(
            "rollback",
            lambda reason: lambda r, agree: manual.roll_back(r, key, None, reason, agree),
        )

    def promote(self, model: str) -> Plan:
        key = load_private_key(self._layout.signing_key)
        return self._decision(
            f"promote {model}",
            lambda reason: lambda r, agree: manual.promote(r, key, model, reason, agree),
        )

    def pause(self) -> Plan:
        """Keep the offered version at its stage."""
        key = load_private_key(self._layout.signing_key)
        return self._decision(
            "pause",
            lambda reason: lambda r, agree: manual.pause(r, key, reason, agree),
            moves=False,
        )

    def resume(self) -> Plan:
        key = load_private_key(self._layout.signing_key)
        return self._decision(
            "resume",
            lambda reason: lambda r, agree: manual.resume(r, key, reason, agree),
            moves=False,
        )

    def replay(self, offsets: Sequence[int]) -> Plan:
        names = ", ".join(str(offset) for offset in offsets)
        text = f"{len(offsets)} dead letters go to {self._task.name}.events again: {names}"

        def do(_reason: str) -> str:
            broker, name = self._settings.broker, self._task.name
            found = dead_letters.read_letters(broker, name)
            chosen = [dead_letters.find(found, offset) for offset in offsets]
            sent = dead_letters.replay(broker, name, chosen)
            return f"{sent} dead letters sent to {name}.events"

        return Plan(text, bool(offsets), self._logged(f"replay {names}", do))

    def _registry(self) -> Registry:
        keys = [load_public_key(path) for path in self._layout.trusted_keys()]
        place = self._settings.registry or self._layout.registry
        return Registry(place, self._task.name, self._task.version, keys)

    def _decision(self, name: str, decide: Callable[[str], Decide], *, moves: bool = True) -> Plan:
        """Return the plan of a decision about models; moves: devices change their version."""

        def plan(text: str) -> None:
            raise _Planned(text)

        try:
            outcome = decide("")(self._registry(), plan)
        except _Planned as planned:
            text = str(planned)
        else:
            return Plan(outcome.text, False, lambda _reason: outcome.text)

        def same(now: str) -> None:
            if now != text:
                raise UsageError(f"something else would change now: {now}; look again")

        def do(reason: str) -> str:
            made = settled(
                lambda: decide(f"{BY}: {reason}" if reason else BY)(self._registry(), same)
            )
            number = "" if made.made is None else f"decision {made.made.decision.seq}: "
            return f"{number}{made.text}"

        devices = len(self._task.device_names("fleet"))
        shown = f"{text}: up to {devices} devices of the task's fleet change" if moves else text
        return Plan(shown, True, self._logged(name, do))

    def _logged(self, name: str, do: Callable[[str], str]) -> Callable[[str], str]:
        def logged(reason: str) -> str:
            try:
                done = do(reason)
            except TidewheelError as exc:
                log.warning("action %s failed: %s", name, exc)
                raise
            log.info("action %s: %s", name, done)
            return done

        return logged
