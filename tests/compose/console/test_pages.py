"""The pages in a real browser, of made-up fleets."""

import itertools
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.compose.console.browser import Visit, chromium, served
from tests.compose.console.made_up import CANARY, HTML
from tests.compose.reports.test_jobs import job

PAGES = ("/", "/fleet", "/devices/d1", "/learning", "/releases", "/quality?offset=0", "/jobs")

PLACES = """texts => texts.map(each => {
    const {left, right} = each.getBoundingClientRect();
    return [each.textContent, left, right];
})"""
CHART = """({from, minutes, each = 1}) => {
  const length = minutes / each + 1;
  const points = Array.from({length}, (_, n) => [from + 60000 * each * n, n]);
  const series = [{name: "made", kind: "line", colour: "steelblue", points}];
  const card = document.getElementById("rates"), before = card.querySelector("tw-chart");
  card.removeAttribute("data-live");  // nothing replaces it
  const chart = before.cloneNode();
  chart.setAttribute("data", JSON.stringify({series}));
  before.replaceWith(chart);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    jobs = tmp_path_factory.mktemp("jobs")
    job(jobs, "night", 1_800_000_000_000_000)
    job(jobs, "failed", 1_800_000_000_000_001, "Failed")
    with served("--state", jobs) as found:
        yield found


@pytest.fixture
def visit(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Visit]:
    made = Visit(browser, address, width=getattr(request, "param", 1280))
    yield made
    assert made.wrong == []
    made.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_page_is_drawn_without_an_error_and_loads_nothing_from_elsewhere(
    browser: Browser, address: str, width: int, scheme: str
) -> None:
    """Also on a phone, without scrolling sideways."""
    visit = Visit(browser, address, scheme, width)
    for path in PAGES:
        page = visit.open(path)
        expect(page.locator("nav a.here")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 200) == (scheme == "dark")
    assert visit.wrong == []
    visit.close()


def test_html_and_script_of_a_device_are_shown_as_text(visit: Visit) -> None:
    for path in ("/", "/fleet", "/devices/d3", "/quality", "/quality?offset=0"):
        page = visit.open(path)
        visit.until(lambda text: HTML in text.replace("\n", ""), f"the text on {path}")
        assert page.locator("img[src=x]").count() == 0
        assert page.locator("main script").count() == 0
        assert page.title().endswith("Tidewheel")


def test_the_overview_says_what_is_wrong_first_and_leads_to_it(visit: Visit) -> None:
    page = visit.open("/")
    assert page.locator("h2").all_inner_texts()[:2] == ["What is wrong", "The loop"]
    page.get_by_role("link", name="24 hours").click()
    expect(page.get_by_role("link", name="24 hours")).to_have_attribute("aria-current", "true")
    page.get_by_role("link", name="d3 is in error").click()
    page.wait_for_url(re.compile("group=error"))
    expect(page.locator("tbody tr")).to_have_count(1)


def test_batch_jobs_show_progress_errors_and_how_to_continue(visit: Visit) -> None:
    cards = visit.open("/jobs").locator("main section")
    expect(cards).to_have_count(2)
    expect(cards.first).to_contain_text("the disk is full")
    night = cards.nth(1)
    for words in ("InProgress, no process works on it", "20 of 40", "1 wrong-width",
                  "tidewheel jobs resume"):  # fmt: skip
        expect(night).to_contain_text(words)
    assert night.get_by_role("progressbar").get_attribute("aria-valuenow") == "50"


def test_histograms_of_a_device_are_tables_that_say_what_their_bars_show(visit: Visit) -> None:
    row = visit.open("/devices/d1").locator("table.histogram tbody tr").nth(1)
    assert row.get_by_role("rowheader").inner_text() == "-1.0 to 0.0"
    assert row.get_by_role("cell").all_inner_texts()[-2:] == ["50%", "10%"]
    theirs, own = (row.locator(f".share.{side}").bounding_box() for side in ("theirs", "own"))
    assert theirs and own and theirs["width"] == pytest.approx(5 * own["width"], rel=0.05)  # noqa: PT018
    visit.open("/devices/d0")
    visit.until(lambda text: "no drift reference" in text, "what to do for histograms")


def test_times_are_local_with_utc_on_hover_and_charts_say_their_values(visit: Visit) -> None:
    page = visit.open("/releases")
    found = page.locator("#decisions tw-time").first
    local, utc = found.inner_text(), found.get_attribute("title") or ""
    assert utc.endswith(" UTC")
    hours = [int(re.search(r"(\d\d):\d\d:\d\d", text)[1]) for text in (local, utc)]  # type: ignore[index]
    assert (hours[0] - hours[1]) % 24 == 9  # the browser is in Tokyo
    chart = page.locator("#growth tw-chart")
    expect(chart.locator("path.line")).to_have_count(4)  # two, and two in the legend
    chart.locator("svg").last.hover()
    expect(chart.locator(".tip")).to_contain_text(f"canary {CANARY} 0.75")


@pytest.mark.parametrize("visit", [1280, 390], indirect=True)
def test_the_times_below_a_chart_are_whole_also_where_its_samples_begin_or_end(
    visit: Visit,
) -> None:
    """Samples from one full hour on, to a whole minute."""
    page = visit.open("/")
    for minutes in (2, 3, 60):
        page.evaluate(CHART, {"from": 1_800_000_000_000, "minutes": minutes})
        drawn = page.locator("#rates tw-chart > svg")
        times = drawn.locator("text[text-anchor=middle]")
        expect(times.first).to_be_visible()
        assert times.last.inner_html().endswith(f":{minutes % 60:02}")
        [(_, begin, end)] = drawn.evaluate_all(PLACES)
        for _, left, right in times.evaluate_all(PLACES):
            assert begin <= left
            assert right <= end


@pytest.mark.parametrize("visit", [1280, 390], indirect=True)
def test_a_chart_over_days_has_dates_below_it_that_stand_apart(visit: Visit) -> None:
    page = visit.open("/")
    for days in (2, 9, 60, 365):
        page.evaluate(CHART, {"from": 1_800_000_000_000, "minutes": 1440 * days, "each": 60})
        times = page.locator("#rates tw-chart > svg text[text-anchor=middle]")
        expect(times.first).to_be_visible()
        found = times.evaluate_all(PLACES)  # at once: the chart is drawn anew as events come
        texts, boxes = [text for text, *_ in found], [box for _, *box in found]
        dates = [text for text in texts if re.fullmatch(r"\d\d? [A-Z][a-z]+", text)]
        assert len(dates) > 1, days
        assert len(set(dates)) == len(dates), days
        assert days < 60 or dates == texts, days
        assert "00:00" not in texts, days
        for (_, end), (begin, _) in itertools.pairwise(boxes):
            assert end < begin, days


def test_the_list_is_searched_grouped_and_sorted_with_the_keyboard(visit: Visit) -> None:
    page = visit.open("/fleet")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(6)
    page.keyboard.press("/")
    page.keyboard.type("d5")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text(CANARY)
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    expect(rows).to_have_count(6)
    page.get_by_role("link", name="silent 1").press("Enter")
    expect(rows).to_have_count(1)
    page.get_by_role("link", name="all 6").press("Enter")
    expect(rows).to_have_count(6)
    page.get_by_role("link", name="dropped").press("Enter")
    expect(rows.first).to_contain_text("d2")
    page.get_by_role("link", name="Skip to the content").press("Enter")
    assert page.url.endswith("#content")


def test_empty_pages_say_what_to_do(browser: Browser) -> None:
    with served("--empty") as address:
        visit = Visit(browser, address)
        for path, words in (
            ("/fleet", "tidewheel edge run"),
            ("/learning", "tidewheel train tiny.py:task"),
            ("/releases", "tidewheel prepare"),
            ("/quality", "every message"),
            ("/jobs", "tidewheel score TASK"),
        ):
            visit.open(path)
            visit.until(lambda text, words=words: words in text, f"{words} on {path}")
        assert visit.wrong == []
        visit.open("/devices/nobody")  # the status is 404
        visit.until(lambda text: "No device named nobody" in text, "that it is not known")
        visit.close()


def test_ten_thousand_devices_are_paged_and_found(browser: Browser) -> None:
    with served("--devices", "10000") as address:
        visit = Visit(browser, address)
        page = visit.open("/fleet")
        rows = page.locator("tbody tr")
        expect(rows).to_have_count(50)
        visit.until(lambda text: "page 1 of 200" in text, "two hundred pages")
        page.get_by_role("link", name="Next").click()
        visit.until(lambda text: "page 2 of 200" in text, "the second page")
        page.locator("input.search").fill("sensor-09999")
        expect(rows).to_have_count(1)
        visit.close()


def test_a_page_shows_the_command_of_what_can_be_done_and_does_nothing_itself(visit: Visit) -> None:
    for path, command in (
        ("/learning", "tidewheel train tiny.py:task"),
        ("/releases", "tidewheel models rollback tiny.py:task"),
        ("/releases", "tidewheel models rollout tiny.py:task pause"),
        ("/releases", f"tidewheel models promote tiny.py:task {CANARY}"),
        ("/quality?offset=0", "tidewheel dead-letters tiny.py:task 0 --replay"),
    ):
        page = visit.open(path)
        shown = page.locator("code.copyable", has_text=command)
        expect(shown).to_be_visible()
        assert page.locator("main button, form[method=post]").count() == 0
    shown.click()
    assert page.evaluate("getSelection().toString()") == shown.inner_text()
