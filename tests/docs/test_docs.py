"""The site builds strictly without network, and its pages agree with the code."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted(DOCS.rglob("*.md"))
PACKAGES = ("streams", "federation", "edge_client", "compose")


def tool(name: str) -> ModuleType:
    """Import one of the scripts that write generated parts."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the site ------------------------------------------------------------------------------------


class Links(HTMLParser):
    """Collects what a page links to, what it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") != "canonical" and "href" in found:
            self.loaded.append(found["href"])
        if tag in ("script", "img") and "src" in found:
            self.loaded.append(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def html(site: Path) -> Iterator[tuple[Path, Links]]:
    for path in sorted(site.rglob("*.html")):
        if path.name != "404.html":  # its links are absolute: it is served anywhere
            yield path, Links(path.read_text())


def test_the_site_has_no_broken_internal_link(site: Path) -> None:
    anchors = {path: links.anchors for path, links in html(site)}
    broken = []
    for path, links in html(site):
        for link in links.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path
            if parts.path:
                target = (path.parent / unquote(parts.path)).resolve()
                target = target / "index.html" if target.is_dir() else target
            fragment = unquote(parts.fragment)
            if not target.exists() or (fragment and fragment not in anchors[target]):
                broken.append((str(path.relative_to(site)), link))
    assert broken == []


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = {link for _, links in html(site) for link in links.loaded}
    assert {link for link in loaded if urlsplit(link).netloc} == set()


def test_the_python_api_has_every_public_name_and_keeps_columns(site: Path) -> None:
    import tidewheel

    page = (site / "reference" / "api.html").read_text()
    assert {f"tidewheel.{name}" for name in tidewheel.__all__} <= Links(page).anchors
    assert "\nlateness_s       how long after its end" in page
    assert "decode_events(\n" in re.sub(r"<[^>]+>", "", page)


# --- what the pages name -------------------------------------------------------------------------


def test_the_readme_and_the_overview_are_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100
    assert len((DOCS / "architecture" / "overview.md").read_text().splitlines()) <= 300


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_of_the_repository_exist(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text())
    inside = {link for link in links if not urlsplit(link).scheme}
    assert {link for link in inside if not (ROOT / link).exists()} == set()


@cache
def defined(path: Path) -> frozenset[str]:
    """All functions, classes and methods of a source file by their qualified names, and the names
    that it assigns."""
    names = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(f"{prefix}{node.name}")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            if isinstance(node, ast.Assign):
                targets = [target for target in node.targets if isinstance(target, ast.Name)]
                names.update(f"{prefix}{target.id}" for target in targets)

    visit(ast.parse(path.read_text()).body, "")
    return frozenset(names)


SOURCE = re.compile(r"`(?!path/to/)([a-z_]+(?:/[a-z_]+)+\.py)(?::([A-Za-z_.]+))?`")
DOTTED = re.compile(
    r"`((?:streams|federation|edge_client|compose|examples)(?:\.[a-z_]+)+)(?::(\w+))?`"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_source_file_and_name_on_a_page_exists(page: Path) -> None:
    text = page.read_text()
    missing = []
    for file, name in SOURCE.findall(text):
        path = ROOT / file
        if not path.exists() or (name and name not in defined(path)):
            missing.append(f"{file}:{name}")
    for module, name in DOTTED.findall(text):
        place = ROOT / module.replace(".", "/")
        path = place.with_suffix(".py")
        path = path if path.exists() else place / "__init__.py"
        if not path.exists() or (name and name not in defined(path)):
            missing.append(f"{module}:{name}")
    assert missing == []


def test_every_test_that_the_parity_tables_name_exists() -> None:
    text = (REFERENCE / "batch-parity.md").read_text()
    named = re.findall(r"`(tests/[a-z_/]+\.py):(test_\w+)`", text)
    assert len(named) > 25
    assert [pair for pair in named if pair[1] not in defined(ROOT / pair[0])] == []
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    assert all(len(row) == 3 and all(cell.strip() for cell in row) for row in rows)


def test_the_overview_walks_an_event_and_a_weight_through_the_code() -> None:
    text = (DOCS / "architecture" / "overview.md").read_text()
    for title, hops in (("## One event", 20), ("## One weight", 20)):
        walk = text.partition(title)[2].partition("\n## ")[0]
        assert len([name for _, name in SOURCE.findall(walk) if name]) >= hops


# --- the reference -------------------------------------------------------------------------------


def test_the_command_line_page_has_every_command_and_option(site: Path) -> None:
    import click

    from compose.cli.main import whole

    page = (site / "reference" / "command-line.html").read_text()
    found = dict(tool("command_line").commands(whole(), ("tidewheel",)))
    assert {path.replace(" ", "-") for path in found} <= Links(page).anchors
    options = [p for c in found.values() for p in c.params if isinstance(p, click.Option)]
    assert {name for p in options for name in p.opts if f"<code>{name}</code>" not in page} == set()


def test_every_setting_of_a_run_is_in_the_reference() -> None:
    from federation.rounds.settings import RUN_CONFIG

    text = (REFERENCE / "settings.md").read_text()
    assert {name for name in RUN_CONFIG if f"`{name}`" not in text} == set()


def test_every_environment_variable_is_in_the_reference() -> None:
    from edge_client.sources.mqtt import MqttSettings
    from streams.kafka.settings import BrokerSettings

    broker = {f"TIDEWHEEL_KAFKA_{name.upper()}" for name in BrokerSettings.__struct_fields__}
    mqtt = {f"TIDEWHEEL_MQTT_{name}" for name in ("USERNAME", "PASSWORD", "CAFILE")}
    assert {"username", "password", "cafile"} <= set(MqttSettings.__struct_fields__)
    named = {
        name
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for name in re.findall(r"\"(TIDEWHEEL_[A-Z_]*[A-Z])\"", path.read_text())
    }
    wanted = (broker - {"TIDEWHEEL_KAFKA_BOOTSTRAP"}) | mqtt | named
    text = (REFERENCE / "settings.md").read_text()
    assert {name for name in wanted if f"`{name}`" not in text} == set()


def metric_names() -> set[str]:
    """The names that the three metrics modules export, as Prometheus shows them."""
    import compose.cli.batch.run as jobs
    import edge_client.metrics as device
    import federation.controller.metrics as controller
    import streams.worker.metrics as worker
    from streams.batch.jobs.job_queue import JobQueue
    from streams.contract.documents import DeviceState

    class Agent:
        connected = ready = alive = True

        def state(self) -> DeviceState:
            return DeviceState(
                device="d", task="t", time_us=0, epoch="e", active="", produced=0, delivered=0,
                pending=0, dropped={"x": 1}, skipped={"x": 1},
            )  # fmt: skip

    worker_metrics = worker.Metrics()
    worker_metrics.dead_letter("x")
    worker_metrics.dropped("x", 1)
    worker_metrics.lag(0, 0)
    worker_metrics.teacher("1-00000000")
    texts = [worker_metrics.text(), device.DeviceMetrics(Agent(), ROOT / "docs", 1).text()]
    texts.append(controller.FederationMetrics().text())
    texts.append(jobs.QueueMetrics(JobQueue(ROOT / "docs"), lambda: 0).text())
    found = {
        name
        for text in texts
        for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text.decode(), re.M)
        if kind != "gauge" or not name.endswith("_created")
    }
    prefix = controller.PREFIX
    source = Path(controller.__file__).read_text()
    found |= {f"{prefix}_{name}" for name in controller.LAST}
    for name in re.findall(r"\{PREFIX\}_(\w+)\"|^ +\(?\"(\w+)\", \"[A-Z]", source, re.M):
        if not name[1].startswith("fleet_"):  # those have another prefix, and are exported above
            found.add(f"{prefix}_{name[0] or name[1]}")
    return found


def test_every_metric_is_in_the_reference() -> None:
    documented = set(re.findall(r"`(tidewheel_\w+)", (REFERENCE / "metrics.md").read_text()))
    bare = documented | {name.removesuffix("_total") for name in documented}
    assert metric_names() - bare == set()


@pytest.mark.parametrize(
    ("raised", "folders", "page"),
    [
        ("MalformedRecord", ("streams/contract/events", "streams/worker"), "reference/errors.md"),
        ("Refusal", ("federation",), "architecture/federation.md"),
    ],
)
def test_every_reason_to_refuse_is_on_its_page(
    raised: str, folders: tuple[str, ...], page: str
) -> None:
    """A dead letter's, and that of an update."""
    reasons = {
        reason
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for reason in re.findall(rf"{raised}\(\s*\"([a-z-]+)\"", path.read_text())
    }
    assert len(reasons) > 10
    text = (DOCS / page).read_text()
    assert {reason for reason in reasons if f"`{reason}`" not in text} == set()


def test_the_examples_of_records_are_what_the_code_writes() -> None:
    page = (REFERENCE / "topics-and-records.md").read_text()
    examples = tool("record_examples")
    assert set(re.findall(r"<!-- example ([a-z-]+) -->", page)) == set(examples.EXAMPLES)
    assert examples.with_examples(page) == page


def test_make_help_names_what_make_can_do() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    named = set(re.findall(r"^make ([a-z-]+) ", done.stdout, re.MULTILINE))
    assert named >= {"help", "demo", "drift-demo", "demo-batch", "up", "test", "docs", "soak"}
