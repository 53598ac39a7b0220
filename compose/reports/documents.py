"""The JSON of `status`, `rounds` and `releases`, described; tests compare with what is printed."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from compose.reports.rounds import RunSummary
from streams.contract.decisions import DesiredState
from streams.contract.documents import DeviceState


class Report(BaseModel):
    """A JSON report: every field is there, and no other."""

    model_config = ConfigDict(extra="forbid")


class Rates(Report):
    """Events a second: as devices say, and as windows were reported in the last minute."""

    produced_per_s: float
    scored_per_s: float


class PartitionLagReport(Report):
    """A partition of `events`; committed: None if no worker has."""

    partition: int
    end: int
    committed: int | None
    messages: int
    deleted_unread: int
    waits_s: float | None


class LagReport(Report):
    """How far the workers are behind, in messages; retention_s: None for ever."""

    messages: int
    retention_s: float | None
    partitions: list[PartitionLagReport]


class DriftSummary(Report):
    """Devices that are watched and that alarm; worst: by device the channel that drifted most."""

    watched: int
    alarming: int
    worst: dict[str, str]


class StatusReport(Report):
    """The output of `tidewheel status --json`. without_agent: devices that have events in windows
    and no state; each has as much of one as is known."""

    task: str
    release: DesiredState
    devices: list[DeviceState]
    without_agent: list[DeviceState]
    windows: int
    unseen: int
    agreement: dict[str, float | None]
    windows_metric: str | None
    rounds: dict[str, int]
    last_outcome: str | None
    rates: Rates
    lag: LagReport
    drift: DriftSummary


class RunsReport(Report):
    """The output of `tidewheel rounds --json`, of the runs that the topic still has."""

    task: str
    runs: list[RunSummary]


class DecisionReport(Report):
    """A decision; share: of the fleet that the version is offered to."""

    seq: int
    time_us: int
    kind: str
    model: str | None
    reason: str
    evidence: dict[str, float]
    run: str
    key: str
    share: float
    stage: int


class DecisionsReport(Report):
    """The output of `tidewheel releases --json`."""

    task: str
    decisions: list[DecisionReport]


class JobsReport(Report):
    """Jobs of `tidewheel score`, the newest first, each as `tidewheel jobs show --json` prints it;
    unreadable: a line for each folder that cannot be read."""

    jobs: list[dict[str, Any]]
    unreadable: list[str]
