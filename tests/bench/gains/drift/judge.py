"""The drift detector on devices that did not set its constants, as they were recorded."""

from examples.drift.har_remounted import REMOUNTED
from streams.contract.task import Role
from tests.bench.federation.study import TASK, Study
from tests.bench.gains.drift.outcome import FALSE_SHARE
from tests.bench.gains.fleet import Installation, Recording, Watch, installed, outputs_of
from tests.bench.report import Cell, Goal, Results, Table


def judge(sensors: Installation, study: Study, results: Results) -> None:
    """The detector's false alarms on whom its constants were not chosen on."""
    har = installed(TASK, study.folder / "prepared")
    rows: list[list[Cell]] = []
    judged: list[tuple[str, Installation, tuple[Role, ...]]] = [
        ("people: fleet and held out, without drift", har, ("fleet", "held-out")),
        ("street sensors: fleet", sensors, ("fleet",)),
        ("street sensors: held out", sensors, ("held-out",)),
    ]
    for title, made, roles in judged:
        per_device = [
            _alarms(made, name) for name in made.task.device_names(*roles) if name not in REMOUNTED
        ]
        windows, alarms = (sum(each[at] for each in per_device) for at in (0, 1))
        some = sum(each[1] > 0 for each in per_device)
        rows.append([title, len(per_device), windows, alarms, 100 * alarms / windows, some])
        if made is sensors:
            results.goals.append(
                Goal(f"false alarms on {title}, % of {windows:,} days", 100 * alarms / windows,
                     at_most=FALSE_SHARE)
            )  # fmt: skip
    results.tables.append(Table("The drift detector on other data", _JUDGE, _JUDGED, rows))


def _alarms(made: Installation, name: str) -> tuple[int, int]:
    """Windows in which something is decided, and alarms, of a device's recordings as they are."""
    recording = Recording.of(made.task, made.task.readings(name))
    answers = outputs_of(made.task, made.first, recording.segments)
    watch = Watch(made.reference)
    found = [
        watch.see(made.counted(recording.segments[rows], answers[rows]))
        for rows in recording.windows(made.task)
    ]
    decided = [each for each in found if each is not None]
    return len(decided), sum(decided)


_JUDGE = (
    "Windows that alarm though nothing was altered. The detector's windows, cells and margin were "
    "chosen on the built-in task's people, on all of the fleet and on those held out "
    "(decision 11), so street sensors are the only data here that did not set them. A year of "
    "streets has events, works and holidays: some of these alarms may be right."
)
_JUDGED = ["", "devices", "windows", "alarms", "%", "devices with any"]
