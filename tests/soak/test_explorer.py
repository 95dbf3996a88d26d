"""Random clicks on all that the explorer's page has, for as long as EXPLORER_SECONDS says: its memory does not grow."""

import functools
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from iformer.explorer.ramp import NAMES
from tests.explorer.browser import browser, choose, explore, needs_a_browser, open_tab, set_slider, upload
from tests.explorer.conftest import Folders, folders  # noqa: F401

SECONDS = float(os.environ.get("EXPLORER_SECONDS", "240"))

WARM_UP = 60
"""The seconds after which growth is counted: by then all panels have been open with all models."""

REST = 10
"""The seconds from the last click to the last look: what a picture takes while it is computed is no growth."""

MOST = 100
"""The most MiB by which the server's memory may grow."""

TABS = ("Classify", "Frequencies", "Branches", "Ramp", "Objects and regions")


@needs_a_browser
@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_memory_does_not_grow(folders: Folders, tmp_path: Path) -> None:  # noqa: F811
    pictures = [folders.photo, folders.broken, folders.huge]
    for number in range(20):
        width, height = 40 + 97 * number, 40 + 61 * (number * 7 % 20)
        pictures.append(str(tmp_path / f"{number}.jpg"))
        Image.effect_noise((width, height), 20 + 5 * number).convert("RGB").save(pictures[-1])
    models = [folders.colour, folders.grey, folders.detector, folders.segmenter]
    moments, curve, clicks = random.Random(0), [], 0
    with explore(models, tmp_path) as server, browser() as opened:
        started, page, shown = time.monotonic(), None, 0.0
        while (passed := time.monotonic() - started) < SECONDS:
            if page is None or moments.random() < 0.01:  # a browser is closed in the middle of what it does
                if page:
                    page.context.close()
                page = opened.new_page()
                page.goto(server.address)
                page.wait_for_selector("#ex-classify :is(.ex-bars, .ex-note)")
            _act(page, moments, pictures, models)
            clicks += 1
            if passed - shown > SECONDS / 60:
                shown = passed
                curve.append((passed, server.memory))
                print(f"{passed:6.0f} s, {clicks:6} clicks, {server.memory:7.1f} MiB", flush=True)
        page.context.close()
        time.sleep(REST)
        last = server.memory
    warm = next(memory for passed, memory in curve if passed >= min(WARM_UP, SECONDS / 2))
    print(f"grown by {last - warm:.1f} MiB in {SECONDS:.0f} s and {clicks} clicks")
    assert last - warm < MOST


def _act(page: Any, moments: random.Random, pictures: list[str], models: list[str]) -> None:
    """Do one of the things that can be done now."""

    def any_of(selector: str) -> None:
        found = page.locator(f"{selector} >> visible=true")
        if count := found.count():
            found.nth(moments.randrange(count)).click(timeout=2000)

    def slide() -> None:
        places = [place for place in SLIDERS if page.locator(f"{place} >> visible=true").count()]
        if places:
            set_slider(page, moments.choice(places), round(moments.random(), 2))

    def ramp() -> None:
        found = page.locator("#ex-sliders input >> visible=true")
        if count := found.count():
            found.nth(moments.randrange(count)).fill(str(moments.randrange(3)))

    actions: list[Callable[[], None]] = [
        lambda: open_tab(page, moments.choice(TABS)),
        lambda: upload(page, moments.choice(pictures)),
        lambda: choose(page, "#ex-model", moments.choice(models)),
        lambda: any_of("#ex-examples button"),
        slide,
        slide,
        lambda: any_of("#ex-classify .ex-bar"),
        lambda: any_of("#ex-drawing .ex-block"),
        lambda: any_of("#ex-attended img"),
        lambda: any_of("#ex-kind label"),
        ramp,
    ]
    for place, choices in (("#ex-beside", models), ("#ex-preset", NAMES)):
        if page.locator(f"{place} >> visible=true").count():
            actions.append(functools.partial(choose, page, place, moments.choice(choices)))
    try:
        moments.choice(actions)()
    except Exception as error:  # what was to be clicked is gone or covered by what has just changed
        if type(error).__module__.partition(".")[0] != "playwright":
            raise
    page.wait_for_timeout(moments.choice([0, 0, 50, 200, 500]))


SLIDERS = ("#ex-strength", "#ex-cut-off", "#ex-threshold", "#ex-opacity")
