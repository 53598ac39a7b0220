"""Other weights that answer in place of the served version, while they are better on this device.

A challenger is a set of weights for the served version's graph, or an adapter of its input. There
is one at a time, of one of three origins:

    adapter    with `Training.choice` "device": the served version behind an input adapter, which
               undoes what has happened to the device's sensor (streams.learning.input_adapter)
    previous   with `Training.choice` "device": the version that answered before
    copy       with `Training.personal`: a copy of the served version that was trained here

(edge_client.training.own_weights trains adapters and copies). It answers while choice.py shows that
it is better on the device's own labelled segments, of which neither it nor the served version has
seen the label in training; an adapter is cross-validated. Both are compared when the challenger is
new, when another version is served, and when the labels are a quarter more; with too few labels, or
labels of too few classes, nothing changes. While a version is offered to a part of the fleet its
canary answers with it, behind the adapter that stands, and trains nothing: what is compared with
the stable version behind the same adapter is what was offered.

An adapter comes with its evidence, and stands only if it answers: in place of any other, and
against every later version, because it is about the sensor. It ends with the device's next drift,
or when the labels show that the served version is better without it. On a device whose sensor has
drifted (drift_watch.py) and that has too few labels it answers if its inputs are a quarter as far
from what the model was trained on, and the drift is gone behind it.

1. a challenger that has been trained, or that is to answer, is written to
   `challenger.safetensors` (0600: temporary, fsync, rename) with its ChallengerState in the header
2. the loop answers with it

A previous version that is not better, or any challenger that raises, is withdrawn, is served again
or (but for an adapter) is 30 days old, is removed. After a crash before 1 it is compared again;
after 1 the next start finds the file, and what answered before answers at once. The weights never
leave the device.

Answers have the model name `<version>.a<number>`, `<version>.k<previous>` or `<version>.p<number>`:
windows, scores and the device's accuracy count them for the release, as what devices answer under
it.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import safetensors.numpy

from edge_client.inference import choice
from edge_client.inference.drift_watch import DriftWatch
from edge_client.inference.engine import Engine
from edge_client.inference.slots import Slots
from edge_client.samples.samples import Samples
from streams.contract.artifact import challenger_header
from streams.contract.documents import ChallengerState, Origin
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.task import Task
from streams.learning.onnx_model import answering
from streams.runtime.files import write_atomic

log = logging.getLogger(__name__)

COMPARED = 400  # segments at most
LONGEST_H = 720.0
KINDS: dict[Origin, str] = {"adapter": ".a", "previous": ".k", "copy": ".p"}


class Trained(NamedTuple):
    """What was trained for a version: the safetensors, and when its training began. Of an adapter:
    the comparison on labels that did not fit it, the share of its answers that are of classes with
    labels, and whether its inputs are ALIGNED."""

    origin: Origin
    base: str
    number: int
    weights: bytes
    made_us: int
    compared: choice.Comparison | None = None
    covered: float = 1.0
    aligned: bool = False


class OwnTraining(Protocol):
    """Who trains (edge_client.training.own_weights)."""

    def consider(self, base: Engine, *, adapted: bool) -> Trained | None:
        """Return what was trained since the last call; begin a training if one is due."""
        ...

    def resume(self, origin: Origin, base: str, number: int) -> None:
        """Take note of what is there after a restart."""
        ...


class Standing(NamedTuple):
    """The challenger; `engine` has its weights in the graph of `state.base`. weights: those that
    are not in the file yet, None where they are."""

    state: ChallengerState
    engine: Engine
    weights: bytes | None = None


class Challenger:
    """The loop calls `engine_for` and `drop`, the keeper's thread `consider`."""

    def __init__(
        self,
        task: Task,
        folder: Path,
        slots: Slots,
        samples: Samples,
        own: OwnTraining,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._task, self._slots, self._samples, self._own = task, slots, samples, own
        self._watch = DriftWatch(task, slots, samples)
        self._path, self._wall = folder / "challenger.safetensors", wall
        self._standing: Standing | None = None
        self._serving: tuple[Engine, Engine] | None = None  # the served one, and who answers
        self._base: Engine | None = None
        self._told_then = 0  # true labels at the last comparison
        self._done_with: str | None = None  # the version against which none stands any more

    @property
    def state(self) -> ChallengerState | None:
        """What the device says of it."""
        standing, answers = self._standing, self._serving is not None
        return standing and standing.state.replace(answers=answers)

    def engine_for(self, base: Engine) -> Engine:
        """Return the engine that answers while `base` is served."""
        serving = self._serving
        return serving[1] if serving is not None and serving[0] is base else base

    def drop(self, reason: str) -> None:
        """Give up the challenger, because it failed."""
        if self._serving is not None:
            self._done_with = self._serving[0].model
        self._forget(reason)

    def consider(self) -> None:
        """Follow the served version, and look whether other weights should answer."""
        base, training = self._slots.engine, self._task.training
        if base is None or not (training.personal or training.choice == "device"):
            return
        if base is not self._base:
            self._base, self._told_then = base, 0
            self._take_up(base)
        self._end_outdated(base)
        if self._slots.stable not in (None, base.model):  # it is offered to a part of the fleet
            if not self._adapts:  # the stable version answered behind it, too
                self._answer(None)
            return
        self._watch.look(base)
        self._end_outdated(base)
        new = self._own.consider(base, adapted=self._adapts)
        if new is not None and new.base == base.model:
            (self._stand_adapter if new.origin == "adapter" else self._stand_copy)(base, new)
        stable = self._slots.stable
        told = self._samples.labels_told
        if not choice.is_time_to_look(told, self._told_then):
            return
        self._told_then = told
        if self._standing is None and stable is not None and base.model != self._done_with:
            self._stand_previous(base)
        if self._standing is not None:
            self._look(base, self._standing)

    @property
    def _adapts(self) -> bool:
        """Whether an adapter answers."""
        return self._serving is not None and self._serving[1].adapter is not None

    # --- who stands -----------------------------------------------------------------------------

    def _take_up(self, base: Engine) -> None:
        """Let the stored challenger stand against `base`; it answers if it did so before."""
        self._standing = None
        self._answer(None)
        try:
            data = self._path.read_bytes()
            state = ChallengerState.decode(challenger_header(data)[2])
            if state.origin == "copy" and state.base != base.model:
                self._forget("another version is served")
                return
            if state.origin != "previous":
                number = int(state.model.rpartition(KINDS[state.origin])[2])
                self._own.resume(state.origin, state.base, number)
            self._stand(base, state, data)
            self._standing = self._standing and self._standing._replace(weights=None)
        except FileNotFoundError:
            pass
        except (OSError, ArtifactError, MalformedRecord, ValueError) as exc:
            log.warning("%s is not used: %s", self._path, exc)
            self._forget("cannot be used")

    def _stand(
        self, base: Engine, state: ChallengerState, weights: bytes, *, answer: bool = True
    ) -> None:
        """Build the challenger's engine; raise ArtifactError if the weights do not fit."""
        if self._slots.active != base.model:
            raise ArtifactError("name", f"{self._slots.active} is served, not {base.model}")
        lasts = state.base == base.model or state.origin == "adapter"
        answered, kind = state.answers and lasts, KINDS[state.origin]
        model = f"{base.model}{kind}{state.model.rpartition(kind)[2]}"
        state = state.replace(model=model, base=base.model, answers=answered)
        engine = Engine(self._task, self._slots.kept(base.model), weights)
        engine.model = model
        engine.latencies = base.latencies  # they count for the served version's trial
        self._standing = Standing(state, engine, weights)
        if answer:
            self._answer(base if answered else None)

    def _stand_adapter(self, base: Engine, new: Trained) -> None:
        """Let a new adapter answer if its evidence says so. Otherwise the challenger before it
        stays, but for an adapter where the evidence is against one."""
        assert new.compared is not None
        compared, model = new.compared, f"{base.model}.a{new.number}"
        enough = compared.rows >= choice.FEWEST and new.covered >= choice.COVERED
        before, adapted, better = self._standing, self._adapts, None
        state = ChallengerState(
            origin="adapter", model=model, base=base.model, compared_with=base.model, answers=True,
            made_us=new.made_us, since_us=int(self._wall() * 1e6), drift_us=self._samples.since_us,
            segments=compared.rows if enough else 0, loss=compared.old, base_loss=compared.offered,
        )  # fmt: skip
        try:
            self._stand(base, state, new.weights, answer=False)
            assert self._standing is not None
            engine = self._standing.engine
            drifting = bool(self._samples.drifting)
            if enough:
                better = choice.adapter_answers(compared, drifting=drifting)
            else:
                better = (drifting and new.aligned and self._watch.is_mended(engine)) or None
            if better:
                self._write()
                self._answer(base)
                log.info("%s", state.text)
                return
        except Exception as exc:  # onnxruntime may fail on what the adapter makes of segments
            log.warning("%s is not used: %s", model, exc)
        text = "%s does not answer: error %.2f against %.2f on %d labels, of classes of %.0f %%"
        log.info(text, model, compared.old, compared.offered, compared.rows, 100 * new.covered)
        self._standing = before
        if better is False and adapted:
            self._forget("the served version is better without it")

    def _stand_copy(self, base: Engine, copy: Trained) -> None:
        """Let a new copy stand, in place of the one before or of a version that does not answer."""
        standing = self._standing
        if self._serving is not None and standing and standing.state.origin == "previous":
            return  # it answers, and was better than the version that this is a copy of
        now_us = int(self._wall() * 1e6)
        state = ChallengerState(
            origin="copy", model=f"{base.model}.p{copy.number}", base=base.model,
            made_us=copy.made_us, since_us=now_us,
        )  # fmt: skip
        try:
            self._stand(base, state, copy.weights)
            self._write()
        except (OSError, ArtifactError) as exc:
            log.warning("%s is not used: %s", state.model, exc)
            self._forget("a newer copy cannot be used")
            return
        self._told_then = 0

    def _stand_previous(self, base: Engine) -> None:
        previous = self._slots.previous
        if self._task.training.choice != "device" or previous in (None, *self._slots.refused):
            return
        assert previous is not None
        try:
            artifact = self._slots.kept(previous)
            made_us = max(base.created_us, artifact.manifest.created_us)
            state = ChallengerState(
                origin="previous", model=f"{base.model}.k{previous}", base=base.model,
                made_us=made_us, since_us=int(self._wall() * 1e6),
            )  # fmt: skip
            self._stand(base, state, answering(artifact))
        except (OSError, ArtifactError) as exc:
            log.warning("the version before is not compared: %s", exc)

    def _end_outdated(self, base: Engine) -> None:
        if self._standing is not None and (why := self._outdated(self._standing.state, base)):
            self._forget(why)

    def _outdated(self, state: ChallengerState, base: Engine) -> str:
        """Return why a challenger does not stand any longer, empty if it does."""
        version = state.model.rpartition(".k")[2]
        if (reason := self._slots.refused.get(version)) is not None:
            return reason
        if version == base.model:
            return "it is served"
        if state.origin == "adapter" and state.drift_us != self._samples.since_us:
            return "the sensor has changed since"
        hours = (self._wall() * 1e6 - state.since_us) / 3600e6
        if hours > LONGEST_H and state.origin != "adapter":
            self._done_with = state.base
            return f"it is {hours:.0f} h old"
        return ""

    def _forget(self, reason: str) -> None:
        if self._serving is not None and self._standing is not None:
            log.info("%s does not answer any longer: %s", self._standing.state.model, reason)
        self._standing = None
        self._answer(None)
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    # --- who answers ----------------------------------------------------------------------------

    def _look(self, base: Engine, standing: Standing) -> None:
        """Compare the challenger with the served version, and decide which one answers."""
        made_us = max(base.created_us, standing.state.made_us)
        segments, labels, times_us, covered = self._samples.choosing(COMPARED, made_us)
        if len(labels) < choice.LEAST or covered < choice.COVERED:
            if standing.weights is not None:  # the version before: it stands at the next look
                self._standing = None
            return  # nothing is decided, and nothing changes
        try:
            own, served = (
                choice.losses(self._task, engine.answers(segments), labels)
                for engine in (standing.engine, base)
            )
        except Exception as exc:  # onnxruntime may fail on the challenger's weights
            log.warning("%s is given up: %s", standing.state.model, exc)
            self.drop("it failed")
            return
        if self._standing is not standing:
            return  # the loop has given it up meanwhile
        found = choice.compare(self._task, own, served, times_us)
        state = standing.state
        answering = found.keeps(keeping=state.answers or state.origin == "copy")
        if state.origin == "adapter":  # it has shown that it is better: does this show otherwise?
            against = choice.compare(self._task, served, own, times_us)
            answering = not against.keeps(keeping=True)
        changed = answering != state.answers
        figures = {"segments": found.rows, "loss": found.old, "base_loss": found.offered}
        state = state.replace(**figures, compared_with=base.model, answers=answering)
        self._standing = standing._replace(state=state)
        if not answering and state.origin != "copy":
            self._forget(state.text)
            return
        if changed:
            log.info("%s", state.text)
            try:
                self._write()
            except OSError as exc:
                log.warning("%s cannot be written: %s", self._path, exc)
                self._standing = standing
                return
        self._answer(base if answering else None)

    def _answer(self, base: Engine | None) -> None:
        """Let the challenger answer in place of `base`; None: the served version answers."""
        standing = self._standing
        self._serving, self._samples.behind = None, None
        if base is not None and standing is not None:
            self._serving = base, standing.engine
            self._samples.behind = standing.engine.adapter

    def _write(self) -> None:
        assert self._standing is not None
        state, _, weights = self._standing
        tensors = safetensors.numpy.load(weights or self._path.read_bytes())
        header = {"base": state.base, "model": state.model, "state": state.encode().decode()}
        write_atomic(self._path, safetensors.numpy.save(tensors, metadata=header), mode=0o600)
        self._standing = self._standing._replace(weights=None)
