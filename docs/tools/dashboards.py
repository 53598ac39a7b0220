"""Write Grafana's dashboards: compose/monitoring/grafana/dashboards.

python docs/tools/dashboards.py
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "compose" / "monitoring" / "grafana" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "tidewheel"}
WIDTH, HEIGHT = 12, 8  # of a panel; a row has 24 columns


@dataclass(frozen=True)
class Panel:
    """series: (expression of Prometheus, legend); kind: timeseries or stat."""

    title: str
    series: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    about: str = ""


LAST_15_MIN = "sum by (reason) (increase({}[15m])) or vector(0)"
P99 = "histogram_quantile(0.99, sum by (le) (rate({}[5m])))"

PIPELINE = [
    Panel(
        "Events a second",
        [
            ("sum(tidewheel_fleet_events_per_second)", "produced"),
            ("tidewheel:rows:rate1m", "scored"),
        ],
        "ops",
    ),
    Panel(
        "Messages behind",
        [("sum by (partition) (tidewheel_lag_messages)", "partition {{partition}}")],
        about="From the acknowledged offset to the end; those of open windows count.",
    ),
    Panel(
        "Windows a second",
        [
            ('sum(rate(tidewheel_windows_total{late="no"}[1m]))', "closed"),
            ('sum(rate(tidewheel_windows_total{late="yes"}[1m]))', "late, as revisions"),
        ],
        "ops",
    ),
    Panel(
        "A commit, 99 %",
        [
            (P99.format("tidewheel_scoring_seconds_bucket"), "scoring"),
            (P99.format("tidewheel_commit_seconds_bucket"), "store and publish"),
        ],
        "s",
    ),
    Panel("Events in open windows", [("sum by (instance) (tidewheel_open_rows)", "{{instance}}")]),
    Panel(
        "Watermark delay",
        [("max by (instance) (tidewheel_watermark_delay_seconds)", "{{instance}}")],
        "s",
    ),
    Panel(
        "Events declared dropped, 15 min",
        [(LAST_15_MIN.format("tidewheel_dropped_rows_total"), "{{reason}}")],
    ),
    Panel(
        "Dead letters, 15 min",
        [(LAST_15_MIN.format("tidewheel_dead_letters_total"), "{{reason}}")],
    ),
]
FLEET = [
    Panel("Devices", [("max(tidewheel_fleet_devices)", "heard of")], kind="stat"),
    Panel("Silent devices", [("max(tidewheel_fleet_silent)", "silent")], kind="stat"),
    Panel("Events that wait in spools", [("max(tidewheel_fleet_pending)", "pending")]),
    Panel("Events that devices have dropped", [("max(tidewheel_fleet_dropped)", "dropped")]),
    Panel(
        "An answer, 99 %",
        [('max by (instance) (tidewheel_edge_answer_seconds{quantile="0.99"})', "{{instance}}")],
        "s",
        about="Of the devices that are scraped.",
    ),
    Panel("Spool", [("tidewheel_edge_spool_bytes", "{{instance}}")], "bytes"),
    Panel("Remembered segments", [('tidewheel_edge_samples{label="any"}', "{{instance}}")]),
    Panel("Training", [("tidewheel_edge_training", "{{instance}}")]),
]
LEARNING = [
    Panel(
        "Accuracy",
        [
            ("max(tidewheel_federation_held_out)", "held-out devices"),
            ("max(tidewheel_federation_devices_before)", "devices, before the round"),
        ],
        "percentunit",
    ),
    Panel("Rounds", [("sum by (outcome) (tidewheel_federation_rounds_total)", "{{outcome}}")]),
    Panel(
        "Updates of devices",
        [
            (
                "sum by (outcome, reason) (tidewheel_federation_updates_total)",
                "{{outcome}} {{reason}}",
            )
        ],
    ),
    Panel("Duration of a round", [("max(tidewheel_federation_seconds)", "last round")], "s"),
    Panel("Runs", [("sum by (outcome) (tidewheel_federation_runs_total)", "{{outcome}}")]),
    Panel("Decisions", [("max by (kind) (tidewheel_federation_decisions_total)", "{{kind}}")]),
    Panel(
        "Share that a version is offered to",
        [("max(tidewheel_federation_offered_share)", "share")],
        "percentunit",
    ),
    Panel("A stage goes on for", [("max(tidewheel_federation_stage_seconds)", "stage")], "s"),
]
DASHBOARDS = {"pipeline": PIPELINE, "fleet": FLEET, "learning": LEARNING}


def panel(number: int, shown: Panel) -> dict[str, Any]:
    column, row = number % 2, number // 2
    targets = [
        {"refId": chr(65 + i), "expr": expr, "legendFormat": legend, "datasource": SOURCE}
        for i, (expr, legend) in enumerate(shown.series)
    ]
    return {
        "id": number + 1,
        "type": shown.kind,
        "title": shown.title,
        "description": shown.about,
        "datasource": SOURCE,
        "gridPos": {"x": WIDTH * column, "y": HEIGHT * row, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": shown.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def dashboard(name: str) -> str:
    found = {
        "uid": f"tidewheel-{name}",
        "title": f"Tidewheel: {name}",
        "tags": ["tidewheel"],
        "schemaVersion": 41,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "panels": [panel(number, shown) for number, shown in enumerate(DASHBOARDS[name])],
    }
    return json.dumps(found, indent=1) + "\n"


if __name__ == "__main__":
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(dashboard(name))
