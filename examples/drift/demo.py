"""`python -m examples.drift.demo`: a fleet recovers from drift, and refuses harmful candidates.

A whole fleet runs (`tidewheel up`) on examples/drift/har_remounted.py, where the phones of three
people are remounted at some time. Nobody intervenes until accuracy has recovered:

1 the fleet serves; the phones are remounted, and the windows show it
2 each of those devices fits an input adapter, and answers behind it
3 agreement and accuracy on those people have recovered, with whatever version is served

Then, on the same fleet:

4 a run of the fleet alone: what is learned is served, or taken back where it stays undecided
5 a candidate that is bad on the canary's person alone is put behind the gate: it is taken back
6 poisoned candidates are put before the gate: none passes
7 a hostile device takes part in two runs, through a SuperNode as any, first with the step turned
  round, then with labels exchanged: its updates or the run are refused, or the candidate is no
  worse on all recordings

Exits 0 only when all of it happened, but for 4: a run that is refused there, too, says that the
refusal in 7 proves little.
"""

import json as json_module
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from compose.cli.arguments import broker_of
from compose.cli.server import ask_for_run
from compose.launcher.commands import chosen_devices
from compose.launcher.state_dir import StateDir
from compose.reports.terminal import console
from examples.drift import bad_candidates, har_remounted
from examples.drift.analysis import Recovery
from examples.drift.hostile_device import NAME, HostileDevice
from examples.drift.report import DemoResult, show
from examples.drift.running_fleet import DEVICES, TASK, RunningFleet
from federation.evaluation import recent_windows
from federation.evaluation.accuracy import HeldOut
from federation.registry import manual
from federation.registry.registry import HELD_OUT, Registry
from streams.contract.artifact import Artifact
from streams.contract.decisions import rollout_position
from streams.contract.documents import RoundEvent
from streams.contract.errors import ProcessFailed, TidewheelError
from streams.contract.task import load_task
from streams.kafka.reader import Reader
from streams.runtime.trust import load_private_key

WINDOWS = 8  # the last ones of each of those people, before it is said to have recovered
REGAINED = 0.5  # of the agreement and accuracy lost
OFFERS = 3  # of a bad candidate, where the fleet has learned meanwhile
SLOW = 10.0  # speed while it is offered: a window comes after the controller has seen the last
HARM = 0.01  # of the share of all recordings that is right
UNDECIDED_S = 150.0  # how long a version is offered, of which the canary cannot say what it is
SOON = 2  # windows of the canary, after which a bad candidate is to be taken back
SEEN_US = (har_remounted.AFTER_S + 480) * 1_000_000  # one pass of the later recordings


class Demo:
    """One run, against a fleet that this process starts and ends."""

    def __init__(self, state: Path, speed: float, timeout_s: float, terminal: Console) -> None:
        self._state, self._speed, self._console = state, speed, terminal
        self._task = load_task(TASK)
        self._devices = chosen_devices(self._task, DEVICES)
        self._worn = [d for d in self._devices if d in har_remounted.REMOUNTED]
        self._recovery = Recovery(self._task.id, self._worn, har_remounted.AFTER_S * 1_000_000)
        self._outcome = DemoResult(canary=min(self._devices, key=self._place))
        self._fleet = RunningFleet(state, speed, timeout_s, self._recovery, self._say)

    def run(self) -> DemoResult:
        with self._fleet:
            try:
                self._fleet.connect()
                self._corrects_itself()
                self._refuses()
            except ProcessFailed as exc:
                self._outcome.missing.append(str(exc))
            finally:
                self._figures()
        if self._fleet.code:
            log = self._fleet.log
            self._outcome.missing.append(f"tidewheel up ended with {self._fleet.code}: see {log}")
        return self._outcome

    # --- steps 1 to 3 ---------------------------------------------------------------------------

    def _corrects_itself(self) -> None:
        look, o = self._recovery, self._outcome
        self._fleet.until(lambda: look.began_s, "a phone is remounted")
        self._say(f"{', '.join(self._worn)} have their phones remounted from now on")
        self._fleet.until(look.alarm_s, "the windows show that inputs have drifted")
        o.held_before = look.held_out()
        self._fleet.until(self._all_adapted, "each of them answers behind an input adapter")
        self._adapted = look.moment("each answers behind an input adapter", time.time())
        so_far = look.held_out()
        self._fleet.until(self._has_recovered, "they answer nearly as before")
        self._recovered = look.moment("their last windows are nearly as before", time.time())
        o.held_otherwise, o.held_recovered = so_far - o.held_before, look.held_out() - so_far
        self._figures()

    def _all_adapted(self) -> bool:
        states = [self._recovery.view.devices.get(device) for device in self._worn]
        own = [state.challenger for state in states if state is not None]
        return sum(c is not None and c.answers and c.origin == "adapter" for c in own) == len(
            self._worn
        )

    def _serves(self, device: str) -> str | None:
        state = self._recovery.view.devices.get(device)
        return state.active if state else None

    def _has_recovered(self) -> bool:
        """Whether their last windows, all of them behind an adapter, have regained enough."""
        look = self._recovery
        o = look.before(), look.otherwise(), look.adapted(self._worn, WINDOWS)
        regained = (
            _regained(*(each.agreement for each in o)),
            _regained(*(each.accuracy for each in o)),
        )
        return o[2].windows == WINDOWS * len(self._worn) and all(regained)

    def _figures(self) -> None:
        look, o = self._recovery, self._outcome
        if not o.recovered.windows:
            o.before, o.recovered = look.before(), look.adapted(self._worn, WINDOWS)
            o.otherwise = look.otherwise()
        own = [getattr(self, name) for name in ("_adapted", "_recovered") if hasattr(self, name)]
        o.moments = sorted([*look.moments(), *own], key=lambda m: m.seconds)

    # --- steps 4 to 7 ---------------------------------------------------------------------------

    def _refuses(self) -> None:
        key = load_private_key(StateDir(self._state).signing_key)
        registry = self._registry = Registry(
            StateDir(self._state).registry, self._task.name, self._task.version, [key.public_key()]
        )
        first = registry.load(registry.models()[0])
        recordings = bad_candidates.Recordings.read(self._task, self._devices, SEEN_US)
        self._learns(key)
        windows = recent_windows.read(self._task, self._tail)
        if windows is None:
            raise ProcessFailed("no recent windows can be read")
        self._fleet.pace(self._devices, SLOW)
        base = self._offered(registry, key, recordings, windows)
        self._fleet.pace(self._devices, self._speed)
        self._attacked(first, base, recordings, self._poisoned(recordings, first, base))

    def _learns(self, key: Ed25519PrivateKey) -> None:
        """Let the fleet learn alone, and wait until what it has learned is served or dropped; take
        it back, as a person would, where the canary cannot decide."""
        verdict, _ = self._run_asked("the fleet alone")
        self._outcome.control = f"{verdict.kind}, {verdict.reason}"
        if verdict.kind != "promoted":
            return
        view, ends = self._recovery.view, ("served", "rolled-back", "dropped")

        def over() -> bool:
            found = view.decisions.values()
            return any(d.model == verdict.model and d.kind in ends for d in found)

        what, limit = f"{verdict.model} is served, or taken back", time.monotonic() + UNDECIDED_S
        self._fleet.until(lambda: over() or time.monotonic() > limit, what)
        if not over() and self._registry.desired().offered is not None:
            text = f"undecided after {UNDECIDED_S:.0f} s"
            self._say(f"{text}: {manual.roll_back(self._registry, key, reason=text).text}")
            self._outcome.control += f"; {text}, and taken back"
        self._fleet.until(over, what)

    def _offered(
        self,
        registry: Registry,
        key: Ed25519PrivateKey,
        recordings: bad_candidates.Recordings,
        windows: recent_windows.RecentWindows,
    ) -> Artifact:
        """Offer a candidate that is bad for the canary, until it is taken back; return its base.
        The fleet goes on to learn: a candidate whose base is not served any more is dropped, and
        one of the new base is offered."""
        canary = self._outcome.canary
        for _ in range(OFFERS):
            base = registry.serving()
            assert base is not None
            bad = bad_candidates.against(
                recordings, bad_candidates.weights_of(base), canary, windows
            )
            offered = bad_candidates.offer(registry, key, base, bad, "manual: good on average")
            name, seq = offered.decision.model or "", offered.decision.seq
            if self._is_answered_with(name, seq):
                self._note_shares(recordings, base, bad)
                self._taken_back(name, seq, base.model)
                return base
        raise ProcessFailed(f"a bad candidate was dropped {OFFERS} times: others were served first")

    def _is_answered_with(self, bad: str, seq: int) -> bool:
        """Wait until the canary answers with what was offered; False if it is dropped."""
        look, canary = self._recovery, self._outcome.canary

        def ended() -> bool:
            return bool(look.windows_by(bad, canary) or look.decided("dropped", seq))

        self._fleet.until(ended, f"{canary} answers with {bad}")
        return bool(look.windows_by(bad, canary))

    def _tail(self, topic: str) -> Reader:
        return Reader(broker_of(self._state, None), [topic], timeout_s=3.0)

    def _note_shares(
        self, recordings: bad_candidates.Recordings, base: Artifact, bad: bad_candidates.Tensors
    ) -> None:
        o = self._outcome
        was = bad_candidates.shares(recordings, base, bad_candidates.weights_of(base))
        now = bad_candidates.shares(recordings, base, bad)
        others = [device for device in self._devices if device != o.canary]
        o.canary_before, o.canary_bad = was[o.canary], now[o.canary]
        o.others_before, o.others_bad = (
            sum(x[d] for d in others) / len(others) for x in (was, now)
        )

    def _taken_back(self, bad: str, seq: int, base: str) -> None:
        look, o = self._recovery, self._outcome

        def back() -> bool:
            decided = look.decided("rolled-back", seq)
            return decided is not None and decided.model == bad

        began_s, by_base = time.monotonic(), look.windows_by(base, o.canary)
        self._fleet.until(back, f"{bad} is taken back")
        decided = look.decided("rolled-back", seq)
        assert decided is not None
        o.bad_windows = int(decided.evidence["windows"])
        if o.bad_windows > SOON:
            o.missing.append(f"{bad} was taken back after {o.bad_windows} windows, not {SOON}")

        def withdrawn() -> bool:
            states = [look.view.devices[device] for device in self._devices]
            refused = bad in look.view.devices[o.canary].refused
            return refused and all(state.active == base for state in states)

        self._fleet.until(withdrawn, f"every device serves {base}, {o.canary} refuses {bad}")
        o.bad_seconds = time.monotonic() - began_s
        again = f"{o.canary} answers with {base} again"
        self._fleet.until(lambda: look.windows_by(base, o.canary) > by_base, again)
        o.bad_windows_in_all = look.windows_by(bad, o.canary)
        o.bad_devices = [device for device in self._devices if look.windows_by(bad, device)]

    def _poisoned(
        self, recordings: bad_candidates.Recordings, first: Artifact, base: Artifact
    ) -> dict[str, bad_candidates.Tensors]:
        held_out = HeldOut.decode(self._registry.central(HELD_OUT), self._task)
        candidates = bad_candidates.poisoned(
            recordings, bad_candidates.weights_of(first), bad_candidates.weights_of(base)
        )
        for name, weights in candidates.items():
            verdict = bad_candidates.at_the_gate(recordings, base, held_out, weights)
            self._outcome.gate[name] = verdict.reason
            self._say(f"the gate, {name}: {'passes' if verdict.promote else verdict.reason}")
            if verdict.promote:
                self._outcome.missing.append(f"poisoned, {name}: the gate lets it pass")
        return candidates

    def _attacked(
        self,
        first: Artifact,
        base: Artifact,
        recordings: bad_candidates.Recordings,
        poisoned: dict[str, bad_candidates.Tensors],
    ) -> None:
        then, served = bad_candidates.weights_of(first), bad_candidates.weights_of(base)
        steps = bad_candidates.steps(then, served, poisoned)
        with HostileDevice(self._state, {}) as device:
            for name, device.step in steps.items():
                reason = f"a hostile device: {name}"
                self._outcome.attacks[name] = self._attack(reason, base, recordings)

    def _attack(self, reason: str, base: Artifact, recordings: bad_candidates.Recordings) -> str:
        """Ask for a run; return what came of the hostile device's updates."""
        verdict, events = self._run_asked(reason)
        told, missing = {e.kind: e for e in events if e.device == NAME}, self._outcome.missing
        if "admitted" in told:
            text = f"its updates were admitted; the run: {verdict.kind}, {verdict.reason}"
            if verdict.kind != "promoted":
                return text
            was, now = (
                bad_candidates.mean_share(recordings, base, bad_candidates.weights_of(each))
                for each in (base, self._registry.load(verdict.model or ""))
            )
            if now < was - HARM:
                missing.append(f"what {NAME} sent does harm ({reason}): {was:.3f}, then {now:.3f}")
            return f"{text}; right on {now:.3f} of all recordings, {was:.3f} before"
        if "refused" in told:
            return f"its updates were refused: {told['refused'].reason}"
        missing.append(f"{NAME} did not take part ({reason})")
        return "it did not take part"

    def _run_asked(self, reason: str) -> tuple[RoundEvent, list[RoundEvent]]:
        """Ask for a run; return its end and all of its events."""
        self._say(ask_for_run(broker_of(self._state, None), self._task.id, reason))
        self._fleet.until(lambda: self._run_for(reason), f"the run is started: {reason}")
        self._fleet.until(lambda: self._verdict(reason), f"the run ends: {reason}")
        verdict = self._verdict(reason)
        assert verdict is not None
        return verdict, self._run_for(reason)

    def _run_for(self, reason: str) -> list[RoundEvent]:
        """The events of the run that was asked for with this reason."""
        rounds = self._recovery.view.rounds
        started = [e.run for e in rounds if e.kind == "requested" and reason in e.reason]
        return [e for e in rounds if started and e.run == started[0]]

    def _verdict(self, reason: str) -> RoundEvent | None:
        kinds = ("promoted", "rejected", "finished")
        return next((e for e in self._run_for(reason) if e.kind in kinds), None)

    def _place(self, device: str) -> float:
        return rollout_position(self._task.id, device)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _regained(first: float | None, low: float | None, now: float | None) -> bool:
    """Whether as much was lost as there is to see, and enough of it has come back."""
    if first is None or low is None or now is None:
        return False
    return first > low and now - low >= REGAINED * (first - low)


def main(
    state: Annotated[Path, typer.Option(help="A state folder of its own.")] = Path(
        ".tidewheel/drift-demo"
    ),
    speed: Annotated[float, typer.Option(help="Replay speed: 1 is real time.")] = 30.0,
    timeout: Annotated[float, typer.Option(help="Seconds after which it fails.")] = 1200.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the scenario and print what was measured; exits 1 where something did not happen."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for number in (signal.SIGTERM, signal.SIGINT):  # the fleet is to go as well
        signal.signal(number, signal.default_int_handler)
    terminal = console(stderr=json)
    try:
        outcome = Demo(state, speed, timeout, terminal).run()
    except TidewheelError as exc:
        print(f"drift-demo: {exc}", file=sys.stderr)  # noqa: T201
        raise typer.Exit(exc.exit_code) from exc
    if json:
        print(json_module.dumps(asdict(outcome), indent=1))  # noqa: T201
    else:
        show(outcome, terminal)
    raise typer.Exit(1 if outcome.missing else 0)


if __name__ == "__main__":
    typer.run(main)
