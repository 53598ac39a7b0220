"""What a device remembers of its two slots, and when a version on trial has failed. Pure.

A version is on trial from its installation until it has served TRIAL_S and given ANSWERS answers in
one process without a crash. On trial it fails by CRASHES crashes within CRASH_S, or when the p99 of
its last ANSWERS answers is above the task's latency budget. Once confirmed it is not judged any
more.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from streams.contract.documents import Document

CRASHES, CRASH_S = 3, 600.0
TRIAL_S = 600.0
ANSWERS = 200
REFUSED_KEPT = 20  # the latest

Model = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,17}-[0-9a-f]{8}$")]


class SlotState(Document):
    """slots.json. `confirmed` and `crashes_us` (wall clock) are the active version's; `refused`
    holds versions that are not installed again, with the reason."""

    active: Model | None = None
    previous: Model | None = None
    confirmed: bool = False
    crashes_us: list[int] = []
    refused: dict[Model, str] = {}

    @model_validator(mode="after")
    def _two_slots(self) -> Self:
        if self.active is not None and self.active == self.previous:
            raise ValueError("active and previous are the same")
        return self

    @property
    def failed(self) -> bool:
        """Whether the crashes bring the previous version back."""
        both = self.active is not None and self.previous is not None
        return both and not self.confirmed and len(self.crashes_us) >= CRASHES

    def crashed(self, now_us: int) -> "SlotState":
        """The process died while the active version was served; a confirmed one is not blamed."""
        if self.confirmed:
            return self
        recent = [at for at in self.crashes_us if abs(now_us - at) <= CRASH_S * 1e6]
        return self.model_copy(update={"crashes_us": [*recent, now_us]})

    def installed(self, model: str) -> "SlotState":
        """`model` goes on trial. One that is not confirmed itself takes the previous version's
        place only where there is none: what is gone back to has proved itself where possible."""
        order = [self.active if self.confirmed else None, self.previous, self.active]
        kept = next((m for m in order if m not in (None, model) and m not in self.refused), None)
        return SlotState(active=model, previous=kept, refused=self.refused)

    def gone_back(self, reason: str | None = None) -> "SlotState":
        """The previous version is active; with a reason the one before is not installed again."""
        refused = self if reason is None else self.refuse(str(self.active), reason)
        return SlotState(active=self.previous, refused=refused.refused)

    def withdrawn(self, told: Mapping[str, str], mark: str) -> "SlotState":
        """With the versions `told` refused, whose reasons begin with `mark`, and no others refused
        for such a reason; none of them is gone back to."""
        state = self.model_copy(
            update={"refused": {m: w for m, w in self.refused.items() if not w.startswith(mark)}}
        )
        for model, reason in told.items():
            if model not in state.refused:
                state = state.refuse(model, reason)
        if state.previous in told:
            state = state.model_copy(update={"previous": None})
        return state

    def refuse(self, model: str, reason: str) -> "SlotState":
        others = {m: why for m, why in self.refused.items() if m != model}
        latest = [*others.items(), (model, reason[:300])][-REFUSED_KEPT:]
        return self.model_copy(update={"refused": dict(latest)})


def too_late(latencies_s: Sequence[float], budget_s: float) -> str | None:
    """Why the latest answers miss the budget; None where they keep it or are fewer than ANSWERS.
    Two of them may be as late as they like."""
    if len(latencies_s) < ANSWERS:
        return None
    p99 = float(np.percentile(latencies_s[-ANSWERS:], 99, method="lower"))
    if p99 <= budget_s:
        return None
    return f"late: p99 of {ANSWERS} answers is {p99 * 1e3:.3g} ms, {budget_s * 1e3:.3g} are allowed"
