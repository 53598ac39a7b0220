"""One device: its account, versions, windows and drift. Pure."""

from typing import Any

from pydantic import BaseModel

from compose.dashboard.model.fleet import FleetRow, row_of
from compose.dashboard.model.histograms import Histogram
from compose.dashboard.model.observed import Observed
from compose.dashboard.model.recent import Channel, Window
from streams.contract.accounting import DeviceAccount
from streams.contract.documents import KeptState, PersonalState
from streams.contract.task.metrics import named
from streams.fleet.timeline import Entry
from streams.fleet.view import model_number

HAPPENINGS = 20


class Account(BaseModel):
    """The event account of one epoch, as the device has it."""

    epoch: str
    current: bool
    produced: int
    delivered: int
    dropped: dict[str, int]
    pending: int
    skipped: dict[str, int]
    balanced: bool


class Score(BaseModel):
    """A version's answers on the device; score: of the labelled ones, in the device's metric.
    before, after: on the same held-out segments, of the device's first version and of this one."""

    version: str
    answers: int
    labelled: int
    score: float | None
    before: float | None
    after: float | None


class Span(BaseModel):
    """Windows in a row that one version answered, by their event times."""

    version: str
    from_us: int
    to_us: int
    windows: int


class DevicePage(BaseModel):
    """Everything that the topics have about a device. metric: of its answers. window_metric: what
    windows tell; reports: the newest, in the order in which they came; windows: one of each window,
    in the order of their event times; channels, histograms: those that have drifted most first."""

    row: FleetRow
    metric: str
    window_metric: str
    lower_is_better: bool
    previous: str | None
    refused: dict[str, str]
    held_back: str | None
    personal: PersonalState | None
    kept: KeptState | None
    latency_p50_us: float
    latency_p99_us: float
    samples: int
    true_labels: int
    teacher_labels: int
    accounts: list[Account]
    scores: list[Score]
    spans: list[Span]
    reports: list[Window]
    windows: list[Window]
    channels: list[Channel]
    histograms: list[Histogram]
    drift: dict[str, Any] | None
    happenings: list[Entry]


def device_page(seen: Observed, name: str) -> DevicePage | None:
    """Return what is known about a device; None for a name that no device has."""
    view = seen.view
    if (state := view.everyone.get(name)) is None:
        return None
    reports, drift = seen.beside.recent.of(name), view.drift.get(name)
    windows, told = in_order(reports), view.latest_agreement
    scores = [
        Score(
            version=model,
            answers=score.answers,
            labelled=score.labelled,
            score=score.of_labelled,
            before=score.of_paired[0],
            after=score.of_paired[1],
        )
        for model, score in sorted(state.accuracy.items(), key=lambda each: model_number(each[0]))
    ]
    about = [entry for entry in view.timeline.known.values() if entry.about == name]
    return DevicePage(
        row=row_of(seen, state),
        metric=named(view.row_metric),
        window_metric=told.called,
        lower_is_better=told.lower_is_better,
        previous=state.previous,
        refused=state.refused,
        held_back=state.held_back,
        personal=state.personal,
        kept=state.kept,
        latency_p50_us=state.latency_p50_us,
        latency_p99_us=state.latency_p99_us,
        samples=state.samples,
        true_labels=state.true_labels,
        teacher_labels=state.teacher_labels,
        accounts=_accounts(seen, name),
        scores=scores,
        spans=spans(windows),
        reports=reports,
        windows=windows,
        channels=list(seen.beside.recent.channels(name)),
        histograms=[
            kept.shown(seen.beside.classes) for kept in seen.beside.recent.histograms(name)
        ],
        drift=None if drift is None else drift.model_dump(exclude={"channels", "histograms"}),
        happenings=sorted(about, key=lambda entry: -entry.time_us)[:HAPPENINGS],
    )


def _accounts(seen: Observed, name: str) -> list[Account]:
    """Return the account of each epoch, the current one first."""
    now = seen.view.everyone[name].epoch
    found = []
    for (device, epoch), state in seen.view.epochs.items():
        if device != name:
            continue
        sides = state.produced, state.delivered, state.dropped, state.pending
        found.append(
            Account(
                epoch=epoch,
                current=epoch == now,
                produced=state.produced,
                delivered=state.delivered,
                dropped=state.dropped,
                pending=state.pending,
                skipped=state.skipped,
                balanced=DeviceAccount(*sides).balanced,
            )
        )
    return sorted(found, key=lambda account: not account.current)


def in_order(reports: list[Window]) -> list[Window]:
    """Return one report of each window, that with most events, in the order of event times."""
    found: dict[int, Window] = {}
    for report in reports:
        if (before := found.get(report.window_us)) is None or before.events < report.events:
            found[report.window_us] = report
    return [found[window_us] for window_us in sorted(found)]


def spans(windows: list[Window]) -> list[Span]:
    """Return which version answered when, of windows in their order."""
    found: list[Span] = []
    for window in windows:
        at = window.end_us
        if found and found[-1].version == window.release:
            last = found[-1]
            found[-1] = last.model_copy(update={"to_us": at, "windows": last.windows + 1})
        else:
            found.append(Span(version=window.release, from_us=at, to_us=at, windows=1))
    return found
