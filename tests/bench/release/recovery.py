"""The loop by itself on real processes: from phones that are worn otherwise to a fleet that is
served well again, and a bad release to its end everywhere."""

import json
import os
import subprocess
import sys

from examples.drift.report import started_by
from tests.bench.machine import watched
from tests.bench.release.stage import Stage
from tests.bench.report import Cell, Goal, Results, Table

SPEED = 30.0


def recovery(stage: Stage, results: Results) -> None:
    """`make drift-demo`, as it is."""
    command = [sys.executable, "-m", "examples.drift.demo", "--json", "--speed", str(SPEED)]
    command += ["--state", str(stage.folder / "drift-demo")]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TIDEWHEEL_KAFKA")}
    with watched(stage.kafka.pid) as load:
        done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=False)
    found = json.loads(done.stdout)
    rows: list[list[Cell]] = []
    for name, key in (
        ("before", "before"),
        ("worn otherwise", "otherwise"),
        ("the new version", "recovered"),
    ):
        one, held = found[key], found[f"held_{key}"]
        agreement = one["agreeing"] / max(one["compared"], 1)
        told = one["correct"] / max(one["labelled"], 1)
        apart = held["correct"] / max(held["of"], 1)
        rows.append([name, agreement, told, apart, held["of"], one["windows"]])
    results.tables.append(
        Table(
            "People who wear the phone otherwise",
            "`make drift-demo`: real recordings of three people in a fleet of six, replayed "
            f"{SPEED:g} times as fast as life; one run. Told: on the events whose truth a device "
            "was told, of which it may have learned; held out: on segments that no training has "
            "seen, counted again each time that the recording is replayed. Before and after are "
            "other recordings of the same people. The gate, too, looked at held-out segments of "
            "the fleet, so the last row is not independent of its decision. Here "
            f"{started_by(found['cause'], found['never_moved'])}. "
            f"Others' load: {load.others:.0%}.",
            [
                "",
                "agreement with the teacher",
                "accuracy, told",
                "accuracy, held out",
                "of segments",
                "windows",
            ],
            rows,
        )
    )
    results.tables.append(
        Table(
            "From there to a fleet that serves another version",
            "Seconds and windows of such a phone, from the first closed window on.",
            ["what", "seconds", "windows"],
            [[_short(m["what"]), m["seconds"], m["windows"]] for m in found["moments"]],
        )
    )
    results.tables.append(
        Table(
            "A candidate that is bad for the canary alone",
            f"Right on {found['others_before']:.3f} of the others' segments as served, on "
            f"{found['others_bad']:.3f} by it; of the canary's, {found['canary']}, on "
            f"{found['canary_before']:.3f} and {found['canary_bad']:.3f}. It was on "
            f"{', '.join(found['bad_devices']) or 'no device'} alone.",
            [
                "canary's windows until it was taken back",
                "seconds from the first one until it was gone",
                "windows with answers of it",
            ],
            [[found["bad_windows"], found["bad_seconds"], found["bad_windows_in_all"]]],
        )
    )
    attacks = [*found["attacks"].items(), ("nobody hostile", found["control"] or "not reached")]
    results.tables.append(
        Table(
            "A hostile device",
            "Runs asked for after that, on the same fleet: a seventh SuperNode, whose agent trains "
            "nothing and claims as many samples as may be claimed, takes part in all but the last. "
            "A run that is refused without it as well says that its refusals prove little; what "
            "the gate finds in such candidates alone is above all a matter of `make bench-gains`.",
            ["what it sends", "what came of it"],
            [[name, _short(what)] for name, what in attacks],
        )
    )
    results.goals += [
        Goal("a bad release: the canary's windows", found["bad_windows"], at_most=2),
        Goal("of the drift-demo's steps, missing", len(found["missing"]), at_most=0),
    ]


def _short(text: str) -> str:
    return text if len(text) < 160 else text[:157] + "..."
