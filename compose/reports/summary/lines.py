"""The lines of a summary: a device's account and answers, and what the gate said of a run. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from streams.contract.documents import DeviceState, ModelScore, RoundEvent
from streams.fleet.view import model_number

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
    first: str
    last: str
    before: float | None
    after: float | None
    before_of: int
    after_of: int
    drops: dict[str, int] = field(default_factory=dict)  # by reason
    skipped: dict[str, int] = field(default_factory=dict)  # readings and answers, by reason
    irregular: dict[str, int] = field(default_factory=dict)  # and no event is missing for them
    labels_told: int = 0
    samples: int = 0  # remembered segments, `true_labels` of them with a true label
    true_labels: int = 0
    truths: int = 0  # answers whose true label is in the data, told to the device or not
    late_labels: dict[str, int] = field(default_factory=dict)  # sent by themselves, see DeviceState
    ended: bool = False  # its spool was lost and another epoch began
    error: str = ""  # its last one
    kept: str = ""  # the earlier version that it keeps, and why

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
    """What the gate said of a federated run: figures before and after, None where nothing was
    evaluated. `audit` is of segments that no decision uses."""

    run: str
    model: str | None
    promoted: bool
    reason: str
    devices_base: float | None
    devices: float | None
    audit_base: float | None
    audit: float | None
    audit_segments: int
    metric: str = "accuracy"  # that of the task, in which all of these are
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)  # others of the audit

    @classmethod
    def of(cls, event: RoundEvent) -> "RunLine":
        found, promoted = event.metrics, event.kind == "promoted"

        def share(name: str) -> float | None:
            rows = found.get(f"{name.removesuffix('_base')}_segments")
            return found.get(name) if rows else None

        return cls(
            event.run, event.model, promoted, event.reason, share("devices_base"),
            share("devices"), share("audit_base"), share("audit"),
            int(found.get("audit_segments", 0)), event.metric, _audited(found, event.metric),
        )  # fmt: skip


def _audited(found: Mapping[str, float], metric: str) -> dict[str, tuple[float, float]]:
    """The audit's metrics before and after, by name, but for the task's own."""
    names = [n.removeprefix("audit_") for n in found if n.startswith("audit_")]
    return {
        name: (found[f"audit_{name}_base"], found[f"audit_{name}"])
        for name in names
        if f"audit_{name}_base" in found and name != metric
    }


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
    return DeviceLine(
        device=state.device,
        epoch=state.epoch,
        produced=state.produced,
        delivered=state.delivered,
        dropped=sum(state.dropped.values()),
        pending=state.pending,
        scored=scored,
        dropped_seen=dropped_seen,
        first=first or "",
        last=state.active,
        before=figures[0],
        after=figures[1],
        before_of=counts[0],
        after_of=counts[1],
        drops=state.dropped,
        error="" if ended else state.error or "",
        skipped=state.skipped,
        irregular=state.irregular,
        labels_told=0 if ended else state.labels_told,
        samples=0 if ended else state.samples,
        true_labels=0 if ended else state.true_labels,
        truths=0 if ended else sum(score.labelled for score in state.accuracy.values()),
        late_labels={} if ended else state.late_labels,
        ended=ended,
        kept="" if ended or state.kept is None else state.kept.text,
    )
