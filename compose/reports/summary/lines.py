"""The lines of a summary: a device's account and answers, and what the gate said of a run. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from streams.contract.documents import DeviceState, ModelScore, RoundEvent
from streams.fleet.view import model_number

SAME = ("device", "epoch", "produced", "delivered", "pending", "skipped", "irregular")
OWN = ("samples", "true_labels", "late_labels")  # of the current epoch alone
ServerCounts = Mapping[tuple[str, str], tuple[int, int]]  # (device, epoch) -> (scored, dropped)


@dataclass(frozen=True)
class DeviceLine:
    """One device: its account on both sides, its answers under the first and the last version."""

    device: str
    epoch: str
    produced: int
    delivered: int
    dropped: int
    pending: int
    scored: int
    dropped_seen: int
    last: str
    before: float | None
    after: float | None
    before_of: int
    after_of: int
    drops: dict[str, int] = field(default_factory=dict)  # by reason
    skipped: dict[str, int] = field(default_factory=dict)  # readings and answers, by reason
    irregular: dict[str, int] = field(default_factory=dict)  # and no event is missing for them
    samples: int = 0  # remembered segments, `true_labels` of them with a true label
    true_labels: int = 0
    late_labels: dict[str, int] = field(default_factory=dict)  # sent by themselves, see DeviceState
    ended: bool = False  # its spool was lost and another epoch began
    error: str = ""  # its last one
    instead: str = ""  # what answers in place of the served version, and why

    @property
    def balanced(self) -> bool:
        """Both sides agree to the event; what waits on the device is all that is missing. An epoch
        whose spool was lost had no last word: more may have arrived than it knew of, not less."""
        device_side = self.produced == self.delivered + self.dropped + self.pending
        known, arrived = self.delivered + self.dropped, self.scored + self.dropped_seen
        return device_side and (known <= arrived if self.ended else known == arrived)

    @property
    def lost(self) -> int:
        """Events that were in a spool when it was lost, as far as the device has told."""
        return max(0, self.produced - self.scored - self.dropped_seen) if self.ended else 0


@dataclass(frozen=True)
class RunLine:
    """What the gate said of a federated run. `audit` is of segments that no decision uses, before
    and after, None where nothing was evaluated."""

    run: str
    model: str | None
    promoted: bool
    reason: str
    audit_base: float | None
    audit: float | None
    audit_segments: int

    @classmethod
    def of(cls, event: RoundEvent) -> "RunLine":
        found, segments = event.metrics, int(event.metrics.get("audit_segments", 0))
        base, audit = (found.get(name) if segments else None for name in ("audit_base", "audit"))
        promoted = event.kind == "promoted"
        return cls(event.run, event.model, promoted, event.reason, base, audit, segments)


def device_line(
    state: DeviceState, server: ServerCounts, first: str | None, last: str | None, *, ended: bool
) -> DeviceLine:
    scored, dropped_seen = server.get((state.device, state.epoch), (0, 0))
    none = ModelScore()
    before, after = (state.accuracy.get(m or "", none) for m in (first, last))
    if first == last:
        after = none
    if ended:  # its figures went on with the device
        before = after = none
    pair = after.paired and min(state.accuracy, key=model_number) == first
    figures = after.of_paired if pair else (before.of_held_out, after.of_held_out)
    counts = (after.paired, after.paired) if pair else (before.held_out, after.held_out)
    own = {} if ended else {
        "error": state.error or "",
        "instead": state.challenger.text if state.challenger and state.challenger.answers else "",
        **{name: getattr(state, name) for name in OWN},
    }  # fmt: skip
    return DeviceLine(
        **{name: getattr(state, name) for name in SAME},
        **own,
        dropped=sum(state.dropped.values()),
        drops=state.dropped,
        scored=scored,
        dropped_seen=dropped_seen,
        last=state.active,
        before=figures[0],
        after=figures[1],
        before_of=counts[0],
        after_of=counts[1],
        ended=ended,
    )
