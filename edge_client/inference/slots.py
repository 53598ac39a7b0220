"""A device's slots: its active and its previous model version, and their state.

    <model>.twa   artifact files, see streams.contract.artifact
    slots.json    trial.SlotState: active, previous, confirmed, crashes_us, refused
    serving       the version being served: written before its engine is built, removed at a clean
                  end. If it exists at open, the process died while serving it
    trying        a version whose engine is being built and tested for the first time

Installing:

1. verify the bytes (signature, digests, task version); a refused version stays refused
2. write `trying`
3. build the engine, run its self-test, remove `trying`; a version that fails is refused
4. write the artifact file (temporary, fsync, rename)
5. write slots.json the same way: from now on the new version is active and on trial
6. write `serving`, pass the engine to the loop
7. delete artifacts that are neither active nor previous

After a crash in 1, 3 or 4 the old version is active, and the new one is installed again. After 2
the new version is refused, unless there is no other. After 5 the new version is active and the
crash does not count against it; after 6 and 7 it counts as its first.

Going back, at open or while serving:

1. build the engine of the previous version, with verification and self-test
2. write slots.json: the previous version is active, the failed one is refused with its reason
3. write `serving`, pass the engine to the loop
4. delete the artifact of the refused version

After a crash in 1 the same is decided again; from 2 on the previous version is active. If the
previous version does not verify, the active one stays.

At open a crash is counted first, then the active file is verified and tested again; if it is
broken, the previous version takes its place and nothing is refused. An unreadable slots.json means
no model. On a full disk only installing fails; the rest continues in memory.
"""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_client.inference.engine import (
    ANSWERS,
    CRASH_S,
    CRASHES,
    TRIAL_S,
    Engine,
    SlotState,
    too_late,
)
from streams.contract.artifact import WEIGHTS, Artifact, unpack
from streams.contract.decisions import WITHDRAWN
from streams.contract.errors import ArtifactError, MalformedRecord
from streams.contract.task import Task
from streams.runtime.failpoints import Failpoint, unarmed
from streams.runtime.files import write_atomic

log = logging.getLogger(__name__)

Keys = Sequence[Ed25519PublicKey] | Callable[[], Sequence[Ed25519PublicKey]]


class Slots:
    """The two slots of one device; `engine` answers now. Thread-safe.

    trusted: keys for new versions; known: keys for installed versions, which stay valid when their
    key is revoked.
    """

    def __init__(
        self,
        folder: Path,
        task: Task,
        trusted: Keys,
        *,
        known: Keys | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        failpoint: Failpoint = unarmed,
    ) -> None:
        self._folder = folder
        self._task = task
        self._trusted, self._known = trusted, known or trusted
        self._clock = clock
        self._wall = wall
        self._failpoint = failpoint
        self._lock = threading.Lock()
        self._state = SlotState()
        self._since = clock()
        self.engine: Engine | None = None
        self.stable: str | None = None  # of the last decision; None before one since the start
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def active(self) -> str | None:
        return self._state.active

    @property
    def previous(self) -> str | None:
        return self._state.previous

    @property
    def confirmed(self) -> bool:
        return self._state.confirmed

    @property
    def refused(self) -> dict[str, str]:
        """Versions that are not installed again, with the reason."""
        return dict(self._state.refused)

    def kept(self, model: str) -> Artifact:
        """Return one of the two versions, verified; raise ArtifactError or OSError on failure."""
        if model not in (self.active, self.previous):
            raise ArtifactError("name", f"{model} is in no slot")
        artifact = self._verified(self._path(model).read_bytes(), kept=True)
        if artifact.model != model:
            raise ArtifactError("name", f"its file holds {artifact.model}")
        return artifact

    def weights_of(self, model: str) -> bytes | None:
        """Return the weights of one of the two versions; None where the device has none."""
        if model not in (self.active, self.previous):
            return None
        try:
            return self.kept(model).files.get(WEIGHTS)
        except (OSError, ArtifactError) as exc:
            log.warning("%s cannot be read for a run: %s", model, exc)
            return None

    def reinstall(self, model: str) -> Engine:
        return self.install(self._path(model).read_bytes(), kept=True)

    def open(self) -> Engine | None:
        """Start serving: return the active version's engine, or the previous one's if the active
        one is broken or has crashed too often, or None."""
        with self._lock:
            self._state = self._read()
            self._blame()
            often = f"crashed: {CRASHES} times within {CRASH_S:.0f} s"
            if self._state.failed and self._go_back(often):
                return self.engine
            for state in (self._state, self._state.gone_back()):
                engine = self._built(state.active)
                if engine is not None:
                    if state is not self._state:
                        self._remember(state)
                    self._serve(engine)
                    return engine
            self._state = SlotState(refused=self._state.refused)
            return None

    def withdraw(self, withdrawn: Mapping[str, str], stable: str | None) -> None:
        """Refuse the withdrawn versions, with their reasons, and go back to `stable` if the active
        one is among them. Versions that are no longer withdrawn may be installed again."""
        with self._lock:
            self.stable = stable
            reasons = {m: f"{WITHDRAWN}{why}" for m, why in withdrawn.items()}
            state = self._state.withdrawn(reasons, WITHDRAWN)
            if state != self._state:
                self._remember(state)
            active, previous = self._state.active, self._state.previous
            if active is not None and active in withdrawn and previous and previous == stable:
                self._go_back(reasons[active])

    def install(self, data: bytes, digest: str | None = None, *, kept: bool = False) -> Engine:
        """Verify and activate an artifact; after ArtifactError or OSError the old one serves."""
        with self._lock:
            artifact = self._verified(data, digest, kept=kept)
            model = artifact.model
            if model in self._state.refused:
                raise ArtifactError("refused", f"{model}: {self._state.refused[model]}")
            if self.engine is not None and model == self._state.active:
                return self.engine
            self._failpoint("slots-step-1")
            engine = self._tried(artifact)
            write_atomic(self._path(model), data)
            self._failpoint("slots-step-4")
            state = self._state.installed(model)
            write_atomic(self._folder / "slots.json", state.encode())
            self._state = state
            self._failpoint("slots-step-5")
            self._serve(engine)
            self._failpoint("slots-step-6")
            self._clean()
            self._failpoint("slots-step-7")
            return engine

    def check_trial(self) -> None:
        """Confirm the version on trial, or go back if its answers are too late."""
        engine = self.engine
        if engine is None or self._state.confirmed:
            return
        latencies = list(engine.latencies)
        late = too_late(latencies, self._task.latency_budget_s)
        if late is not None:
            self.go_back(engine.model, late)
        elif len(latencies) >= ANSWERS and self._clock() - self._since >= TRIAL_S:
            with self._lock:
                if engine.model == self._state.active:
                    confirmed = {"confirmed": True, "crashes_us": []}
                    self._remember(self._state.replace(**confirmed))

    def go_back(self, model: str, reason: str) -> bool:
        """Serve the previous version again; return False if `model` is not on trial any more or
        there is no previous version."""
        with self._lock:
            state = self._state
            if model != state.active or state.confirmed or state.previous is None:
                return False
            return self._go_back(reason)

    def close(self) -> None:
        """Record a clean end, which does not count as a crash."""
        with contextlib.suppress(OSError):
            (self._folder / "serving").unlink()

    def _read(self) -> SlotState:
        try:
            return SlotState.decode((self._folder / "slots.json").read_bytes())
        except FileNotFoundError:
            return SlotState()
        except (OSError, MalformedRecord) as exc:
            log.warning("%s is ignored: %s", self._folder / "slots.json", exc)
            return SlotState()

    def _blame(self) -> None:
        """Count a crash against the version that the markers of a dead process name."""
        tried, served = self._marked("trying"), self._marked("serving")
        state = self._state
        if tried is not None and state.active not in (None, tried):
            self._remember(state.refuse(tried, "died: the process ended while it was tried"))
        elif tried is None and served is not None and served == state.active:
            self._remember(state.crashed(int(self._wall() * 1e6)))
        (self._folder / "trying").unlink(missing_ok=True)

    def _marked(self, name: str) -> str | None:
        """Return the version that a marker names; None without a valid marker."""
        try:
            text = (self._folder / name).read_text(errors="replace")
        except OSError:
            return None
        return text if re.fullmatch(r"[1-9][0-9]{0,17}-[0-9a-f]{8}", text) else None

    def _tried(self, artifact: Artifact) -> Engine:
        """Run steps 2 and 3 of installing."""
        trying = self._folder / "trying"
        write_atomic(trying, artifact.model.encode())
        self._failpoint("slots-step-2")
        try:
            engine = Engine(self._task, artifact)
        except ArtifactError as exc:
            self._remember(self._state.refuse(artifact.model, str(exc)))
            raise
        finally:
            trying.unlink(missing_ok=True)
        self._failpoint("slots-step-3")
        return engine

    def _go_back(self, reason: str) -> bool:
        before = self._state
        engine = self._built(before.previous)
        if engine is None:
            self._remember(before.replace(previous=None))
            self._mark(before.active)
            return False
        log.warning("back from %s to %s: %s", before.active, before.previous, reason)
        self._failpoint("back-step-1")
        self._remember(before.gone_back(reason))
        self._failpoint("back-step-2")
        self._serve(engine)
        self._failpoint("back-step-3")
        self._clean()
        self._failpoint("back-step-4")
        return True

    def _built(self, model: str | None) -> Engine | None:
        """Return the engine of an installed version; None if its file is broken or unusable."""
        if model is None:
            return None
        self._mark(model)
        try:
            return Engine(self._task, self.kept(model))
        except (OSError, ArtifactError) as exc:
            log.warning("%s cannot be served: %s", model, exc)
            return None

    def _serve(self, engine: Engine) -> None:
        self._mark(engine.model)
        self._since = self._clock()
        self.engine = engine

    def _mark(self, model: str | None) -> None:
        """Write `serving`; on a full disk a crash is not counted, but the version serves."""
        self._write("serving", (model or "").encode())

    def _remember(self, state: SlotState) -> None:
        """Set a new state, even if it cannot be written to disk."""
        self._state = state
        self._write("slots.json", state.encode())

    def _write(self, name: str, data: bytes) -> None:
        try:
            write_atomic(self._folder / name, data)
        except OSError as exc:
            log.warning("%s was not written: %s", self._folder / name, exc)

    def _clean(self) -> None:
        keep = {self._path(model) for model in (self.active, self.previous) if model}
        for path in self._folder.glob("*.twa"):
            if path not in keep:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _verified(self, data: bytes, digest: str | None = None, *, kept: bool = False) -> Artifact:
        keys = self._known if kept else self._trusted
        return unpack(
            data,
            keys() if callable(keys) else keys,
            task=self._task.name,
            task_version=self._task.version,
            digest=digest,
        )

    def _path(self, model: str) -> Path:
        return self._folder / f"{model}.twa"
