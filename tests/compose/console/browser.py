"""A real browser: Debian's Chromium, driven by Playwright's Python client."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.rig.processes.polling import SLOWEST

ROOT = Path(__file__).parents[3]
WHY = ROOT / ".venv" / "chromium"  # what the Makefile found out
NAMES = ("chromium", "chromium-browser", "google-chrome")
expect.set_options(timeout=5_000 * SLOWEST)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; the test is skipped, and says why, only where there is none."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        said = WHY.read_text().strip()[-300:] if WHY.exists() else "apt-get install chromium"
        pytest.skip(f"needs Chromium: {said}")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@contextmanager
def served(*words: str | Path) -> Iterator[str]:
    """The console of a made-up fleet in a process of its own; its address."""
    command = [sys.executable, "-m", "tests.compose.console.served", *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


class Visit:
    """A page of a console in a tab of its own. `wrong`: errors, refused contents, and requests that
    went to elsewhere."""

    def __init__(self, browser: Browser, address: str, scheme: str = "light", width: int = 1280):
        self._address = address
        self.context = browser.new_context(
            color_scheme=scheme,  # type: ignore[arg-type]
            viewport={"width": width, "height": 860},
            locale="en-GB",
            timezone_id="Asia/Tokyo",
        )
        self.context.set_default_timeout(30_000 * SLOWEST)
        self.page: Page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type == "error" else None)
        self.page.on("request", lambda request: self._look(request.url))

    def _look(self, url: str) -> None:
        here = self._address, "data:"
        if not url.startswith(here):
            self.wrong.append(f"request to {url}")

    def open(self, path: str) -> Page:
        self.page.goto(self._address + path)
        self.page.wait_for_selector("h1")
        return self.page

    def text(self) -> str:
        return self.page.inner_text("body")

    def until(self, condition: Callable[[str], object], what: str, timeout_s: float = 60) -> None:
        """Wait for the page's text, as `polling.until` does."""
        timeout_s *= SLOWEST
        deadline = time.monotonic() + timeout_s
        while not condition(text := self.text()):
            assert time.monotonic() < deadline, f"not in {timeout_s:.0f} s: {what}:\n{text}"
            self.page.wait_for_timeout(100)

    def close(self) -> None:
        self.context.close()
