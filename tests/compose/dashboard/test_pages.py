"""The pages in a real browser, of made-up fleets."""

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.compose.dashboard.browser import Visit, chromium, served
from tests.compose.dashboard.made_up import CANARY, HTML, STABLE
from tests.compose.reports.test_jobs import job

PAGES = ("/", "/fleet", "/devices/d1", "/learning", "/releases", "/quality", "/jobs")
Opener = Callable[..., Visit]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    jobs = tmp_path_factory.mktemp("jobs")
    job(jobs, "night", 1_800_000_000_000_000)
    job(jobs, "failed", 1_800_000_000_000_001, "Failed")
    with served("--jobs", jobs) as found:
        yield found


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    made = Visit(browser, address)
    yield made
    made.close()


def test_every_page_is_drawn_without_an_error_and_asks_nobody_else(visit: Visit) -> None:
    for path in PAGES:
        page = visit.open(path)
        here = page.locator("nav a.here")
        expect(here).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert visit.wrong == []


def test_html_and_script_of_a_device_are_shown_as_text(visit: Visit) -> None:
    for path in ("/", "/fleet", "/devices/d3", "/quality"):
        page = visit.open(path)
        visit.until(lambda text: HTML in text.replace("\n", ""), f"the text on {path}")
        assert page.locator("img[src=x]").count() == 0
        assert page.locator("main script").count() == 0
        assert page.title().endswith("Tidewheel")
    page.get_by_role("button", name="0", exact=True).click()
    visit.until(lambda text: "Its headers" in text, "the letter's headers")
    assert page.title().endswith("Tidewheel")
    assert visit.wrong == []


def test_the_overview_says_what_is_wrong_first_and_leads_to_it(visit: Visit) -> None:
    page = visit.open("/")
    headings = page.locator("h2, [role=heading]").all_inner_texts()
    assert headings[:2] == ["What is wrong", "The loop"]
    page.get_by_role("link", name="d3 is in error").click()
    page.wait_for_url(re.compile("group=error"))
    expect(page.locator("tbody tr")).to_have_count(1)


def test_batch_jobs_show_progress_errors_and_how_to_continue(visit: Visit) -> None:
    page = visit.open("/jobs")
    cards = page.locator("main section")
    expect(cards).to_have_count(2)
    expect(cards.first).to_contain_text("the disk is full")
    night = cards.nth(1)
    expect(night).to_contain_text("InProgress, no process works on it")
    expect(night).to_contain_text("100 of 200")
    expect(night).to_contain_text("10 bad-length")
    expect(night).to_contain_text("tidewheel jobs resume")
    assert night.get_by_role("progressbar").get_attribute("aria-valuenow") == "50"


def test_histograms_of_a_device_are_tables_that_say_what_their_bars_show(visit: Visit) -> None:
    page = visit.open("/devices/d1")
    table = page.locator("table.histogram")
    expect(table).to_have_count(1)
    expect(table.locator("caption")).to_contain_text("x (mean)")
    row = table.locator("tbody tr").nth(1)
    assert row.get_by_role("rowheader").inner_text() == "-1.0 to 0.0"
    assert row.get_by_role("cell").all_inner_texts()[-2:] == ["50%", "10%"]
    wide = [row.locator(f".share.{side}").bounding_box() for side in ("theirs", "own")]
    assert wide[0] is not None
    assert wide[1] is not None
    assert wide[0]["width"] == pytest.approx(5 * wide[1]["width"], rel=0.05)
    visit.open("/devices/d0")
    visit.until(lambda text: "no drift reference" in text, "what to do for histograms")


def test_times_are_local_with_utc_on_hover(visit: Visit) -> None:
    page = visit.open("/releases")
    found = page.locator("tw-time").first
    local, utc = found.inner_text(), found.get_attribute("title") or ""
    assert utc.endswith(" UTC")
    hours = [int(re.search(r"(\d\d):\d\d:\d\d", text)[1]) for text in (local, utc)]  # type: ignore[index]
    assert (hours[0] - hours[1]) % 24 == 9  # the browser is in Tokyo


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
    page.get_by_role("button", name="silent 1").press("Enter")
    expect(rows).to_have_count(1)
    page.get_by_role("button", name="all 6").press("Enter")
    expect(rows).to_have_count(6)  # a table that is being drawn would lose the key
    page.get_by_role("columnheader", name="dropped").press("Enter")
    expect(rows.first).to_contain_text("d2")
    page.get_by_role("link", name="Skip to the content").press("Enter")
    expect(page.locator("main#content")).to_have_count(1)
    assert page.url.endswith("#content")


def test_charts_are_of_the_time_that_is_chosen_and_a_version_says_how_it_was_made(
    visit: Visit,
) -> None:
    page = visit.open("/")
    page.get_by_role("button", name="24 hours").click()
    chosen = page.get_by_role("button", name="24 hours")
    expect(chosen).to_have_attribute("aria-pressed", "true")
    page = visit.open("/releases")
    made = page.locator("section", has=page.get_by_role("heading", name="Lineage"))
    expect(made.locator("tbody tr").first).to_contain_text(CANARY)
    expect(made.locator("tbody tr").first).to_contain_text(STABLE)
    assert visit.wrong == []


def test_colours_follow_the_system_and_can_be_chosen(visit: Visit) -> None:
    page = visit.open("/jobs")
    body = page.locator("body")
    expect(body).to_have_class(re.compile("body--light"))
    page.get_by_role("button", name="Colours").click()
    expect(body).to_have_class(re.compile("body--dark"))
    page.wait_for_function("document.cookie.includes('tidewheel-theme=dark')")
    visit.open("/jobs")
    expect(page.locator("body")).to_have_class(re.compile("body--dark"))


def test_a_phone_shows_every_page_without_scrolling_sideways(
    browser: Browser, address: str
) -> None:
    visit = Visit(browser, address, "dark", width=390)
    for path in PAGES:
        page = visit.open(path)
        expect(page.locator("body")).to_have_class(re.compile("body--dark"))
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    visit.close()


def test_empty_pages_say_what_to_do(browser: Browser) -> None:
    with served("--empty") as address:
        visit = Visit(browser, address)
        for path, words in (
            ("/fleet", "tidewheel edge run"),
            ("/learning", "tidewheel train tiny.py:task"),
            ("/releases", "tidewheel prepare"),
            ("/quality", "every message"),
            ("/jobs", "tidewheel score TASK"),
            ("/devices/nobody", "No device named nobody"),
        ):
            visit.open(path)
            visit.until(lambda text, words=words: words in text, f"{words} on {path}")
        assert visit.wrong == []
        visit.close()


def test_ten_thousand_devices_are_paged_found_and_stay_live(browser: Browser) -> None:
    with served("--devices", "10000") as address:
        visit = Visit(browser, address)
        page = visit.open("/fleet")
        rows = page.locator("tbody tr")
        expect(rows).to_have_count(50)
        visit.until(lambda text: "page 1 of 200" in text, "two hundred pages")
        page.get_by_role("button", name="Next").click()
        visit.until(lambda text: "page 2 of 200" in text, "the second page")
        page.locator(".search input").fill("sensor-09999")
        expect(rows).to_have_count(1)
        assert page.locator("*").count() < 3000
        visit.close()


def test_a_page_shows_the_command_of_what_can_be_done_and_does_nothing_itself(visit: Visit) -> None:
    for path, command in (
        ("/learning", "tidewheel train tiny.py:task"),
        ("/releases", "tidewheel models rollback tiny.py:task"),
        ("/releases", "tidewheel models pause tiny.py:task"),
        ("/releases", f"tidewheel models promote tiny.py:task {CANARY}"),
    ):
        page = visit.open(path)
        expect(page.locator("code.copyable", has_text=command)).to_be_visible()
        assert (
            page.get_by_role("button", name=re.compile("roll|run|promote|pause", re.I)).count() == 0
        )
    page = visit.open("/quality")
    page.get_by_role("button", name="0", exact=True).click()
    shown = page.locator("code.copyable")
    expect(shown).to_have_text("tidewheel dead-letters replay tiny.py:task 0")
    shown.click()
    assert page.evaluate("getSelection().toString()") == shown.inner_text()
    assert visit.wrong == []
