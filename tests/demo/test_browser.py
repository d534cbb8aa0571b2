"""The page in Debian's chromium: upload, play, seek, camera, a bad file, two visitors, and gestures from start to end.

`.ci/run` installs chromium; where there is none, these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drawn_videos import draw
from hang import HANG_SECONDS
from tada.data.motion import draw_motion
from tada.localization.recipe import LocalizationRecipe
from tada.localization.train_from_videos import train_on_videos

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
LONG = 1000 * HANG_SECONDS  # in milliseconds

CAMERA = """
// A camera that the test draws: window.gesture is "left", "right" or "still".
window.gesture = "still";
(() => {
  let canvas = null, began = 0, last = null;
  const draw = () => {
    if (window.gesture !== last) { last = window.gesture; began = performance.now(); }
    const pen = canvas.getContext("2d"), part = ((performance.now() - began) / 2000) % 1;
    pen.fillStyle = "#30404a"; pen.fillRect(0, 0, 320, 240);
    const x = { left: 290 - 260 * part, right: 30 + 260 * part, still: 160 }[window.gesture];
    pen.fillStyle = "#e8c39e"; pen.beginPath(); pen.arc(x, 130, 28, 0, 7); pen.fill();
    pen.fillRect(x - 12, 140, 24, 110);
  };
  navigator.mediaDevices.getUserMedia = async () => {
    canvas = document.createElement("canvas"); canvas.width = 320; canvas.height = 240;
    draw(); setInterval(draw, 33);
    return canvas.captureStream(30);
  };
})();
"""


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[str]:
    """Run ``tada demo`` in a process of its own; the value is its address."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "tada", "demo", "--port", "0", *words]  # other tests serve pages, too
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(HANG_SECONDS) == 130
    assert [path for path in folder.rglob("*") if path.is_file()] == [], "uploads are deleted"
    assert list(folder.glob("tada-demo-*")) == [], "it ended by itself, also while a page was open"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("page")) as own:
        yield own


@pytest.fixture
def visit() -> Iterator[Callable[..., Any]]:
    """Open a page in a browser; at the end, it has asked no other machine, and had no error."""
    asked: list[str] = []
    faults: list[str] = []
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)

        def open_page(address: str, *, script: str = "", **options: Any) -> Any:
            page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
            page.set_default_timeout(LONG)
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda fault: faults.append(str(fault)))
            if script:
                page.add_init_script(script)
            page.goto(address)
            page.wait_for_selector(".tada-hint")
            return page

        yield open_page
        browser.close()
    local = ("http://127.0.0.1:", "data:", "blob:http://127.0.0.1:")
    assert [url for url in asked if not url.startswith(local)] == []
    assert faults == []


def ask(page: Any, file: Path) -> None:
    page.set_input_files("input[type=file]", str(file))
    page.wait_for_selector(".tada-answer, .tada-error")


def now(page: Any) -> float:
    return float(page.evaluate("document.querySelector('.tada-left video').currentTime"))


def pause(page: Any) -> None:
    page.wait_for_function("document.querySelector('.tada-left video').readyState >= 2")
    page.evaluate("document.querySelector('.tada-left video').pause()")


def test_upload_play_seek_and_a_bad_file(address: str, visit: Callable[..., Any], film: Path, tmp_path: Path) -> None:
    page = visit(address)
    ask(page, film)
    page.wait_for_function("document.querySelector('.tada-left video').currentTime > 0.2")  # it plays
    pause(page)
    box = page.locator(".tada-track").bounding_box()
    for part, label in ((0.25, "left"), (0.75, "up")):
        page.mouse.click(box["x"] + part * box["width"], box["y"] + 20)
        assert now(page) == pytest.approx(4 * part, abs=0.1)
        row = page.locator(".tada-row", has_text=label)
        assert float(row.locator(".tada-value").inner_text()) > 0.5
    assert page.locator(".tada-film").count() == 2
    assert page.locator(".tada-map").count() == 1
    bad = tmp_path / "<b>list.mp4"
    bad.write_text("#EXTM3U\n/etc/passwd\n" * 20)
    page.set_input_files("input[type=file]", str(bad))
    page.wait_for_selector(".tada-error")
    text = page.inner_text(".tada-error")
    assert "<b>list.mp4" in text or "list.mp4" in text  # gradio may clean the name
    assert "/" not in text
    ask(page, film)  # and the page goes on


@pytest.mark.slow
def test_a_format_that_browsers_do_not_play(address: str, visit: Callable[..., Any], tmp_path: Path) -> None:
    frames = draw_motion("up", np.random.default_rng(0), num_frames=32, width=160, height=120)
    page = visit(address, color_scheme="dark")
    ask(page, draw(tmp_path / "film.avi", frames, codec="mpeg4", fps=16))
    assert "a small silent copy" in page.inner_text(".tada-left")
    page.wait_for_function("document.querySelector('.tada-left video').currentTime > 0.2")


@pytest.mark.slow
def test_the_camera(address: str, visit: Callable[..., Any]) -> None:
    """Chromium's own fake camera, recorded by gradio."""
    page = visit(address)
    page.get_by_label("Capture from camera").click()
    page.locator("[title='grant webcam access'] button").click()
    page.get_by_label("start recording").click()
    page.wait_for_timeout(3000)
    page.get_by_label("start recording").click()  # the same button stops
    page.wait_for_selector(".tada-answer")
    page.wait_for_function("document.querySelector('.tada-left video').currentTime > 0.2")


@pytest.mark.slow
def test_two_visitors(address: str, visit: Callable[..., Any], film: Path) -> None:
    one, other = visit(address), visit(address)
    for page in (one, other):
        page.set_input_files("input[type=file]", str(film))
    for page in (one, other):
        page.wait_for_selector(".tada-answer")
    one.close()
    other.locator(".tada-frame").nth(6).click()  # its video is still there
    assert now(other) > 3
    ask(other, film)


@pytest.mark.slow
def test_a_click_on_a_segment(visit: Callable[..., Any], untrimmed: Path, small_backbone: Path, tmp_path: Path) -> None:
    recipe = LocalizationRecipe(dim=8, epochs=1, warmup_epochs=0.0, batch_size=2)
    train_on_videos(
        recipe,
        untrimmed,
        untrimmed / "segments.csv",
        tmp_path / "when",
        backbone=str(small_backbone),
        window_seconds=0.5,
        num_workers=0,
        show_progress=False,
    )
    card = tmp_path / "when" / "localizer.json"
    about = json.loads(card.read_text()) | {"thresholds": {"left": 0.001, "up": 0.001}}  # so that there are segments
    card.write_text(json.dumps(about))
    with serving(tmp_path / "page", str(tmp_path / "when"), str(small_backbone)) as address:
        page = visit(address)
        ask(page, untrimmed / "v0.mp4")
        pause(page)
        assert page.locator(".tada-card").count() == 2
        segment = page.locator(".tada-segment").last
        name = segment.get_attribute("aria-label")
        segment.click(force=True)
        minutes, seconds = name.split(", ")[1].split(" to ")[0].split(":")
        assert now(page) == pytest.approx(60 * float(minutes) + float(seconds), abs=0.1)


@pytest.mark.slow
def test_label_train_recognize(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address, script=CAMERA)
    page.get_by_role("tab", name="Teach").click()
    page.get_by_text("Start the camera").click()
    for number, name in enumerate(("left", "right"), start=1):
        page.get_by_label(f"name of gesture {number}").fill(f"to the {name}")
        page.keyboard.press("Enter")  # leaves the field
        page.evaluate("name => { window.gesture = name }", name)
        for _ in range(5):
            page.keyboard.press(str(number))  # those that come too early wait
        page.wait_for_function(f"document.querySelectorAll('.tada-thumbs img').length == {5 * number}")
    page.keyboard.press("Backspace")
    page.wait_for_function("document.querySelectorAll('.tada-thumbs img').length == 9")
    page.keyboard.press("Enter")
    page.wait_for_selector(".tada-live:not([hidden])")
    for name in ("left", "right"):
        page.evaluate("name => { window.gesture = name }", name)
        page.wait_for_function(f"document.querySelector('.tada-live .tada-said').textContent == 'to the {name}'")
    with page.expect_download() as download:
        page.get_by_text("Take the model with you").click()
    assert download.value.suggested_filename == "gestures.zip"
