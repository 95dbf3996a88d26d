"""The explorer's page in a real browser: all panels, what they show, and what they say about wrong input."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.explorer.browser import Server, browser, choose, explore, needs_a_browser, open_tab, set_slider, upload
from tests.explorer.conftest import CLASSES, Folders

pytestmark = needs_a_browser


@pytest.fixture(scope="module")
def server(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("gradio")
    models = [folders.colour, folders.grey, folders.detector, folders.segmenter]
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}  # so it fetches nothing
    with explore(models, tmp_path_factory.mktemp("server"), **nowhere) as running:
        yield running


@pytest.fixture(scope="module")
def context(server: Server) -> Iterator[Any]:
    pytest.importorskip("playwright")
    with browser() as opened:
        made = opened.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
        made.set_default_timeout(60_000)
        yield made


@pytest.fixture
def page(context: Any, server: Server, folders: Folders) -> Iterator[Any]:
    """The page with a photograph; nothing is fetched from elsewhere, and no script fails."""
    opened = context.new_page()
    elsewhere: list[str] = []
    failures: list[str] = []
    opened.on("request", lambda request: elsewhere.append(request.url))
    opened.on("pageerror", lambda error: failures.append(str(error)))
    opened.goto(server.address)
    opened.wait_for_selector("#ex-classify .ex-bars")
    example = opened.locator("#ex-classify .html-container").inner_html()
    upload(opened, folders.photo)
    opened.wait_for_function("document.querySelector('#ex-picture img')?.src.includes('photo')")
    opened.wait_for_function(
        """example => {
          const shown = document.querySelector('#ex-classify .html-container');
          return shown.querySelector('.ex-bars') && shown.innerHTML !== example;
        }""",
        arg=example,
    )
    yield opened
    opened.close()
    assert not [url for url in elsewhere if not url.startswith((server.address, "data:", "blob:"))]
    assert not failures


def settled(page: Any, part: str, change: Callable[[], None]) -> None:
    """Make a change, and wait until the content of a part of the page has changed."""
    content = f"{part} .html-container"
    before = page.locator(content).inner_html()
    change()
    page.wait_for_function(
        "([content, before]) => document.querySelector(content).innerHTML !== before", arg=[content, before]
    )


def contrast(page: Any, picture: str) -> float:
    """How much the pixels of a picture on the page vary, from 0 to 255."""
    return float(
        page.evaluate(
            """picture => {
              const image = document.querySelector(picture);
              const canvas = document.createElement('canvas');
              [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
              const context = canvas.getContext('2d');
              context.drawImage(image, 0, 0);
              const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
              const red = pixels.filter((_, i) => i % 4 == 0);
              return red.reduce((a, b) => Math.max(a, b)) - red.reduce((a, b) => Math.min(a, b));
            }""",
            picture,
        )
    )


def test_classify(page: Any, folders: Folders) -> None:
    view = "#ex-classify"
    page.wait_for_function("document.querySelectorAll('#ex-classify .ex-bar').length == 4")
    assert sorted(page.locator(f"{view} .ex-name").all_inner_texts()) == sorted(CLASSES)
    assert contrast(page, f"{view} img") > 30
    picture = page.locator(f"{view} img").get_attribute("src")
    settled(page, view, page.locator(f"{view} .ex-bar").nth(2).click)
    assert "ex-chosen" in page.locator(f"{view} .ex-bar").nth(2).get_attribute("class")
    clicked = page.locator(f"{view} img").get_attribute("src")
    assert clicked != picture
    settled(page, view, lambda: set_slider(page, "#ex-strength", 0.1))
    assert page.locator(f"{view} img").get_attribute("src") != clicked
    settled(page, view, lambda: choose(page, "#ex-beside", folders.grey))
    assert page.locator(f"{view} img").count() == 2
    page.locator("text=Make the same yourself >> visible=true").click()
    page.get_by_text("iformer predict photo.png").wait_for()
    with page.expect_download() as saved:
        page.locator(f"{view} .ex-save").first.click()
    assert saved.value.suggested_filename == "grad_cam.png"


def test_frequencies(page: Any) -> None:
    open_tab(page, "Frequencies")
    page.wait_for_selector("#ex-curve polyline")
    assert contrast(page, "#ex-frequencies img") > 20
    values = page.locator("#ex-frequencies .ex-value").all_inner_texts()
    settled(page, "#ex-frequencies", lambda: set_slider(page, "#ex-cut-off", 0.9))
    assert page.locator("#ex-frequencies .ex-value").all_inner_texts() != values
    assert "up to 0.90 π" in page.locator("#ex-frequencies").inner_text()
    marked = "document.querySelector('#ex-curve .ex-marked').getAttribute('x1')"
    page.wait_for_function(f"Number({marked}) > 300")  # the mark has moved along
    settled(page, "#ex-frequencies", page.get_by_label("High-pass").click)
    assert "above 0.90 π" in page.locator("#ex-frequencies").inner_text()


def test_branches(page: Any) -> None:
    open_tab(page, "Branches")
    page.wait_for_selector("#ex-attended img")
    assert page.locator("#ex-drawing .ex-block").count() == 4
    assert page.locator("#ex-branches .ex-branch").all_inner_texts() == ["max-pooling", "convolution", "attention"]
    assert contrast(page, "#ex-branches img") > 30
    cross = page.locator("#ex-attended .ex-cross").get_attribute("style")
    box = page.locator("#ex-attended img").bounding_box()
    settled(
        page, "#ex-attended", lambda: page.locator("#ex-attended img").click(position={"x": 9, "y": box["height"] - 9})
    )
    assert page.locator("#ex-attended .ex-cross").get_attribute("style") != cross
    settled(page, "#ex-branches", page.locator("#ex-drawing .ex-block").nth(1).click)
    assert "Stage 2, block 1" in page.locator("#ex-branches").inner_text()
    page.get_by_text("This block has no attention").wait_for()


def test_ramp(page: Any) -> None:
    open_tab(page, "Ramp")
    page.wait_for_selector("#ex-sliders input")
    assert page.locator("#ex-sliders input").count() == 18
    assert "19.87" in page.locator("#ex-costs").inner_text()
    settled(page, "#ex-sliders", lambda: choose(page, "#ex-preset", "iformer_nano"))
    page.wait_for_function("document.querySelector('#ex-costs').innerText.includes('as iformer_nano')")
    settled(page, "#ex-costs", lambda: page.locator("#ex-sliders input").last.fill("0"))
    assert "from" in page.locator("#ex-costs").inner_text()
    page.locator("text=Make the same yourself >> visible=true").click()
    page.get_by_text("attention_heads '[1, 2, 4, 5, 0]'").wait_for()


def test_objects_and_regions(page: Any, folders: Folders) -> None:
    choose(page, "#ex-model", folders.detector)
    page.get_by_text("is a detector").wait_for()
    open_tab(page, "Objects and regions")
    page.wait_for_selector("#ex-scenes img")
    settled(page, "#ex-scenes", lambda: set_slider(page, "#ex-threshold", 0))
    assert re.search(r"[1-9]\d* objects? with a score of 0 % at least", page.locator("#ex-scenes").inner_text())
    with page.expect_download() as saved:
        page.get_by_text("COCO JSON").first.click()
    assert json.loads(Path(saved.value.path()).read_text())["annotations"]
    settled(page, "#ex-scenes", lambda: choose(page, "#ex-model", folders.segmenter))
    page.wait_for_selector("#ex-scenes >> text=Label map")
    assert contrast(page, "#ex-scenes img") > 20
    settled(page, "#ex-scenes", lambda: set_slider(page, "#ex-opacity", 1))


@pytest.mark.parametrize(("which", "told"), [("broken", "unreadable image"), ("huge", "9000 × 9000 pixels")])
def test_wrong_pictures_are_a_sentence(which: str, told: str, page: Any, folders: Folders) -> None:
    upload(page, getattr(folders, which))
    page.locator("#ex-classify .ex-note", has_text=told).wait_for()
    assert "Traceback" not in page.content()
    upload(page, folders.photo)
    page.wait_for_selector("#ex-classify .ex-bars")


def test_no_picture_is_a_sentence(page: Any) -> None:
    page.locator("#ex-picture").get_by_role("button", name="Remove Image").first.click()
    page.locator("#ex-classify .ex-note", has_text="There is no picture").wait_for()


@pytest.mark.parametrize("source", ["Paste from clipboard", "Capture from camera"])
def test_a_picture_is_pasted_or_taken(source: str, page: Any, context: Any) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async () => {
          const canvas = document.createElement('canvas');
          const pen = canvas.getContext('2d');
          pen.fillStyle = 'red';
          pen.fillRect(40, 20, 90, 60);
          const copied = await new Promise(done => canvas.toBlob(done));
          await navigator.clipboard.write([new ClipboardItem({'image/png': copied})]);
        }"""
    )
    picture = page.locator("#ex-picture")
    picture.get_by_role("button", name="Remove Image").first.click()
    page.locator("#ex-classify .ex-note", has_text="There is no picture").wait_for()
    picture.get_by_label(source).click()
    if "camera" in source:
        picture.get_by_text("Click to Access Webcam").click()
        page.wait_for_function("document.querySelector('#ex-picture video')?.videoWidth > 0")  # it films
        picture.get_by_label("capture photo").click()
    page.wait_for_selector("#ex-classify .ex-bars")
    assert contrast(page, "#ex-picture img") > 30


def test_a_browser_closed_in_the_middle_of_an_upload(page: Any, server: Server) -> None:
    host, port = server.address.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: explorer\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=part\r\n\r\n--part\r\n"
        )
        assert page.request.get(server.address).ok  # by then the upload has begun
    assert page.request.get(server.address).ok  # in the end the fixture finds no traceback in what the server printed


def test_a_hundred_clicks_and_a_closed_browser(page: Any, context: Any, server: Server) -> None:
    for number in range(100):
        page.locator("#ex-classify .ex-bar").nth(number % 4).click()
    page.close()
    again = context.new_page()
    again.goto(server.address)
    again.wait_for_selector("#ex-classify .ex-bars")
    again.close()
