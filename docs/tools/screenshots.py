"""Take the pictures of the console that the documentation shows, of a fleet that runs.

python docs/tools/screenshots.py ADDRESS DEVICE   (make screenshots OPTIONS="ADDRESS DEVICE")
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.compose.console.browser import Visit, chromium

FOLDER = Path(__file__).parents[1] / "images"
PICTURES = (  # name, page, colours, and the heading of the last card; empty: the whole page
    ("console-overview", "/", "light", ""),
    ("console-device", "/devices/{device}", "dark", "Histograms beside the reference"),
)
WIDTH, BELOW = 1180, 16


def main(address: str, device: str) -> None:
    with chromium() as browser:
        for name, path, scheme, last in PICTURES:
            visit = Visit(browser, address, scheme, WIDTH)
            page = visit.open(path.format(device=device))
            page.wait_for_selector("tw-chart > svg path.line", state="attached")
            height = page.evaluate("document.documentElement.scrollHeight")
            if last:
                box = page.locator("section.card", has_text=last).bounding_box()
                assert box is not None, f"no card {last} on {path}"
                height = box["y"] + box["height"] + BELOW
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": height}
            page.screenshot(path=FOLDER / f"{name}.png", full_page=True, clip=clip)
            visit.close()
            sys.stdout.write(f"{FOLDER / name}.png\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
