"""The pictures of the explorer's page in docs/images/, taken in Chromium.

    iformer demo
    python docs/explorer_pictures.py runs/demo runs/coco/tiny runs/camvid

The first model, a classifier, is shown in the panels Classify, Frequencies, Branches and Ramp; the last one, a detector
or segmenter, in Objects and regions, on the street that comes along. --all takes every panel at 1280 and at 400 pixels
of width, in light and in dark, to look at them after a change.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from iformer.explorer.server import serving

PANELS = {
    "Classify": "#ex-classify .ex-bars",
    "Frequencies": "#ex-curve polyline",
    "Branches": "#ex-attended img",
    "Ramp": "#ex-sliders input",
    "Objects and regions": "#ex-scenes img",
}
"""The panels, each with what is there when it is complete."""

VIEWS = ((1280, "light"), (400, "dark"), (1280, "dark"), (400, "light"))


def take(models: list[str], output: Path, every: bool) -> None:
    """Write a picture of each panel, or of each at each width and in both styles."""
    output.mkdir(parents=True, exist_ok=True)
    with serving(models) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width, colours in VIEWS if every else VIEWS[:1]:
            page = browser.new_page(viewport={"width": width, "height": 720}, color_scheme=colours)
            page.goto(f"{address}?__theme={colours}")
            page.wait_for_selector(PANELS["Classify"])
            for panel, complete in PANELS.items():
                if panel == "Objects and regions":
                    _give_a_street(page, models[-1])
                page.get_by_role("tab", name=panel, exact=True).click()
                page.wait_for_selector(complete)
                page.mouse.move(0, 0)
                page.wait_for_timeout(2000)  # what moves comes to rest
                name = panel.split()[0].lower() + (f"_{width}_{colours}" if every else "")
                page.screenshot(path=output / f"explorer_{name}.png", full_page=True)
            page.close()
        browser.close()


def _give_a_street(page: Any, model: str) -> None:
    page.locator("#ex-model input").click()
    page.get_by_role("option", name=model, exact=True).click()
    page.locator("#ex-examples button:has(img[src*=street])").click()
    page.wait_for_selector("#ex-picture img[src*=street]")
    page.wait_for_timeout(1000)  # until the server has it


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="models, the last one a detector or segmenter")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--all", action="store_true", help="every width and style")
    arguments = parser.parse_args()
    take(arguments.models, arguments.output, arguments.all)


if __name__ == "__main__":
    main()
