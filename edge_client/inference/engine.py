"""One model version on the device: it answers one segment at a time, on trial or confirmed.

A version is on trial from its installation until it has served TRIAL_S and given ANSWERS answers in
one process without a crash; then it is confirmed for good. On trial it fails by CRASHES crashes
within CRASH_S, or when the p99 of its last ANSWERS answers is above the task's latency budget.
`SlotState` and `too_late` are pure.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from streams.contract.artifact import Artifact
from streams.contract.decisions import Model
from streams.contract.documents import Document
from streams.contract.task import Task
from streams.learning.input_adapter import InputAdapter
from streams.learning.onnx_model import OnnxModel

CRASHES, CRASH_S = 3, 600.0
TRIAL_S = 600.0
ANSWERS = 200
REFUSED_KEPT = 20  # the latest


class Engine:
    """One model version, ready to answer; `latencies` (seconds) are those of its last answers."""

    def __init__(self, task: Task, artifact: Artifact, weights: bytes | None = None) -> None:
        """Build and test the engine; raise ArtifactError if it does not fit the task.

        `weights` (safetensors) replace the artifact's, or are an input adapter before them; they
        are not tested with its probe.
        """
        self.model = artifact.model
        self.created_us = artifact.manifest.created_us
        self.latencies: deque[float] = deque(maxlen=1000)
        self._model = OnnxModel(task, artifact, weights)

    @property
    def adapter(self) -> InputAdapter | None:
        """What is applied to segments before the graph."""
        return self._model.adapter

    def latency_us(self) -> tuple[float, float]:
        """Return p50 and p99 of the last answers in us, 0 before the first one. Not by
        numpy.percentile, which imports numpy.ma."""
        took = np.sort(list(self.latencies) or [0.0]) * 1e6
        p50, p99 = np.interp((0.5, 0.99), np.linspace(0, 1, len(took)), took)
        return float(p50), float(p99)

    def run(self, segment: np.ndarray) -> np.ndarray:
        """Return the outputs (outputs,) float32 of a segment (channels, samples) float32."""
        answer: np.ndarray = self._model.run(segment[None])[0]
        return answer

    def answers(self, segments: np.ndarray) -> np.ndarray:
        """Return the outputs (n, outputs) of segments, one at a time as for events."""
        return np.stack([self.run(segment) for segment in segments])


class SlotState(Document):
    """The file slots.json. `confirmed` and `crashes_us` (wall clock) are the active version's;
    `refused` maps versions that are not installed again to the reason."""

    active: Model | None = None
    previous: Model | None = None
    confirmed: bool = False
    crashes_us: list[int] = []
    refused: dict[Model, str] = {}

    def __post_init__(self) -> None:
        if self.active is not None and self.active == self.previous:
            raise ValueError("active and previous are the same")

    @property
    def failed(self) -> bool:
        """Whether the crashes require going back to the previous version."""
        both = self.active is not None and self.previous is not None
        return both and not self.confirmed and len(self.crashes_us) >= CRASHES

    def crashed(self, now_us: int) -> "SlotState":
        """Return the state after a crash; it does not count against a confirmed version."""
        if self.confirmed:
            return self
        recent = [at for at in self.crashes_us if abs(now_us - at) <= CRASH_S * 1e6]
        return self.replace(crashes_us=[*recent, now_us])

    def installed(self, model: str) -> "SlotState":
        """Return the state with `model` on trial. The previous version becomes a confirmed one if
        possible; an unconfirmed one only if there is no other."""
        order = [self.active if self.confirmed else None, self.previous, self.active]
        kept = next((m for m in order if m not in (None, model) and m not in self.refused), None)
        return SlotState(active=model, previous=kept, refused=self.refused)

    def gone_back(self, reason: str | None = None) -> "SlotState":
        """Return the state with the previous version active; with a reason the other one is
        refused."""
        refused = self if reason is None else self.refuse(str(self.active), reason)
        return SlotState(active=self.previous, refused=refused.refused)

    def withdrawn(self, reasons: Mapping[str, str], mark: str) -> "SlotState":
        """Return the state with exactly the versions in `reasons` refused as withdrawn (the reasons
        begin with `mark`); none of them stays the previous version."""
        state = self.replace(
            refused={m: w for m, w in self.refused.items() if not w.startswith(mark)}
        )
        for model, reason in reasons.items():
            if model not in state.refused:
                state = state.refuse(model, reason)
        if state.previous in reasons:
            state = state.replace(previous=None)
        return state

    def refuse(self, model: str, reason: str) -> "SlotState":
        others = {m: why for m, why in self.refused.items() if m != model}
        latest = [*others.items(), (model, reason[:300])][-REFUSED_KEPT:]
        return self.replace(refused=dict(latest))


def too_late(latencies_s: Sequence[float], budget_s: float) -> str | None:
    """Return why the last ANSWERS answers miss the budget; None if they keep it or are fewer.

    With the p99, two of them may take any time.
    """
    if len(latencies_s) < ANSWERS:
        return None
    p99 = sorted(latencies_s[-ANSWERS:])[99 * (ANSWERS - 1) // 100]
    if p99 <= budget_s:
        return None
    return f"late: p99 of {ANSWERS} answers is {p99 * 1e3:.3g} ms, {budget_s * 1e3:.3g} are allowed"
