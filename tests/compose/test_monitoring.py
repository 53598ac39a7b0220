"""Rules, alerts and dashboards in compose/monitoring."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "compose" / "monitoring"
DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboards", ROOT / "docs/tools/dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("check", "config", "prometheus.yaml"),
        ("check", "rules", "rules.yaml"),
        ("test", "rules", "rules_test.yaml"),  # each alert fires for its cause, none without
    ],
)
def test_prometheus_takes_the_rules_and_they_tell_what_is_wrong(words: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "needs promtool: `make .venv/promtool`, or your system's package prometheus"
    done = subprocess.run([promtool, *words], cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", (MONITORING / "rules.yaml").read_text()))
    tested = re.findall(r'alertname="(\w+)"', (MONITORING / "rules_test.yaml").read_text())
    assert alerts
    assert alerts == set(tested)


def test_the_dashboards_are_as_generated() -> None:
    made = tool()
    assert [path.stem for path in DASHBOARDS] == sorted(made.DASHBOARDS)
    for path in DASHBOARDS:
        again = "run `python docs/tools/dashboards.py`"
        assert path.read_text() == made.dashboard(path.stem), again


def test_rules_and_dashboards_use_metrics_that_there_are() -> None:
    reference = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    documented = set(re.findall(r"`(tidewheel_\w+)", reference))
    documented |= {f"{name}_bucket" for name in documented}
    for path in (MONITORING / "rules.yaml", *DASHBOARDS):
        named = set(re.findall(r"tidewheel_\w+", path.read_text()))
        assert named - documented == set(), path.name
