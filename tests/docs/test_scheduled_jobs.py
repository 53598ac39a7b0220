"""The recipes of docs/how-to/scheduled-jobs.md: their commands are ours, their files are valid."""

import ast
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from jinja2 import Template

from compose.cli.batch.score import EXIT_CODES, read_words
from streams.batch.jobs.schedules import fill

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "scheduled-jobs.md"
TEXT = PAGE.read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)

INTERVAL = datetime(2026, 3, 1, 2, tzinfo=UTC), datetime(2026, 3, 2, 2, tzinfo=UTC)


def block(kind: str) -> str:
    (found,) = [text for name, text in BLOCKS if name == kind]
    return found


def commands() -> list[str]:
    """The words behind each `tidewheel score`, and behind `-- score` of a schedule."""
    text = re.sub(r"\\\n\s*", "", "\n".join(code for _, code in BLOCKS))
    start, end = INTERVAL  # their str() has a space, as that of Airflow's times
    text = Template(text).render(ds="2026-03-01", data_interval_start=start, data_interval_end=end)
    lines = re.findall(r"(?:tidewheel|--) *score (.*?)(?:$|; fi)", text, re.MULTILINE)
    return [line for line in lines if line]


def test_the_page_has_the_exit_codes() -> None:
    rows = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| (\w+)", TEXT, re.MULTILINE)}
    named = {name: code for name, code in EXIT_CODES.items() if name != "Stopped"}
    assert named.items() <= rows.items()
    assert f"| {EXIT_CODES['Stopped']} | stopped" in TEXT


@pytest.mark.parametrize("line", commands())
def test_every_score_command_of_the_page_is_one(line: str) -> None:
    now = datetime.now()
    words = [word for word in shlex.split(line) if word != "--detach"]
    options = read_words([fill(word, now, now) for word in words])
    assert options.inputs
    assert options.registry
    assert [Path(key).name for key in options.trust] == ["signing.pub"]
    assert (options.rows, options.id) == ("readings", "device")


def test_the_page_has_score_commands_of_each_way() -> None:
    assert len(commands()) == 4


def test_the_dag_is_python() -> None:
    ast.parse(block("python"))


def test_the_dag_scores_its_interval() -> None:
    (line,) = [line for line in commands() if "day=2026-03-01" in line]
    asked = read_words(shlex.split(line))
    assert asked.inputs == ["/data/lake/"]
    assert (asked.start, asked.until) == tuple(time.isoformat() for time in INTERVAL)


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_the_cron_job_is_as_the_schema_of_kubernetes_says(version: str) -> None:
    kubernetes_validate.validate(yaml.safe_load(block("yaml")), version, strict=True)
