"""How versions were made: from which version, by which run, of whose data, signed by whom. Pure."""

from pydantic import BaseModel

from compose.reports.rounds import RunSummary, history
from streams.contract.decisions import Decision
from streams.contract.documents import RoundEvent
from streams.fleet.view import FleetView
from streams.fleet.wording import short_runs

VERSIONS = 12
ASIDE = ("keys", "teacher")  # decisions that are not about a version of the device model


class Lineage(BaseModel):
    """A version, as the topics have it; None where they no longer do. run: its whole number, "" for
    a version that no run made; devices: whose updates are in it; samples: of its last round;
    reason: why it was accepted first; key: whose signature that decision has."""

    version: str
    base: str | None
    run: str
    rounds: int | None
    devices: int | None
    samples: int | None
    reason: str
    key: str
    at_us: int


def lineage(view: FleetView) -> list[Lineage]:
    """Return the newest versions that decisions are about, the newest first."""
    first: dict[str, Decision] = {}
    for _, decision in sorted(view.decisions.items()):
        if decision.model is not None and decision.kind not in ASIDE:
            first.setdefault(decision.model, decision)
    runs = {run.model: run for run in history(view.rounds) if run.model}
    newest = list(first.items())[: -VERSIONS - 1 : -1]
    return [_of(view, version, decision, runs.get(version)) for version, decision in newest]


def _of(view: FleetView, version: str, decision: Decision, run: RunSummary | None) -> Lineage:
    events = [] if run is None else [e for e in view.rounds if e.run == run.run]
    samples = [e.samples for e in events if e.kind == "aggregated"]
    return Lineage(
        version=version,
        base=run.base if run is not None else None,
        run=run.run if run is not None else decision.run,
        rounds=len(run.rounds) if run is not None else None,
        devices=_devices(events),
        samples=samples[-1] if samples else None,
        reason=short_runs(decision.reason),
        key=decision.key,
        at_us=decision.time_us,
    )


def _devices(events: list[RoundEvent]) -> int | None:
    """The number of devices whose updates were admitted."""
    return len({e.device for e in events if e.kind == "admitted"}) or None
