"""The page in a real browser: one headless Chromium for the file, skipped where there is none."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strop.report import samples, write_report
from strop.report.metrics import Metrics
from strop.report.page import Book, render
from strop.report.run import Run
from strop.report.serve import Server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STEPS = 40


def write_run(folder: Path, *, steps: int = STEPS, seed: int = 0, per_step: int = 4, sampled_every: int = 4) -> Path:
    rng = random.Random(seed)
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            line = {"step": step, "loss": 1 / step, "reward": step / steps, "kl": 1.5 * step / steps}
            line |= {"rewards/a/mean": 0.1, "rewards/b/mean": rng.random()}
            file.write(json.dumps(line) + "\n")
    with (folder / "samples.jsonl").open("w") as file:
        for step in range(0, steps, sampled_every):
            for i in range(per_step):
                row = {"step": step, "prompt": f"prompt {i // 2}", "completion": f"<b>answer {step}-{i}</b>"}
                file.write(json.dumps({**row, "reward": (step + i) / (steps + 3)}) + "\n")
    (folder / "alarms.jsonl").write_text(json.dumps({"step": 30, "alarm": "kl", "text": "kl is over 1"}) + "\n")
    (folder / "config.yaml").write_text(f"method: grpo\nseed: {seed}\n")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    with playwright.sync_playwright() as found:
        browser = found.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    one, two = write_run(folder / "one"), write_run(folder / "two", seed=1)
    return {"one": write_report(one), "both": write_report(one, two, output=folder / "both.html")}


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens an address; fails if the page said anything on its console or asked for something elsewhere."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.set_default_timeout(30_000)

    def go(address: str | Path) -> Any:
        page.goto(address if isinstance(address, str) else address.as_uri())
        page.wait_for_selector(".plot canvas")
        return page

    yield go
    context.close()
    assert not said


def until(page: Any, selector: str, what: str, wanted: Any) -> None:
    """Wait until the first element of a selector is as wanted."""
    from playwright.sync_api import expect

    getattr(expect(page.locator(selector).first), what)(wanted, timeout=30_000)


def count(page: Any) -> int:
    return int(page.locator("#found").inner_text().split()[0])


def test_a_click_on_a_curve_opens_the_samples_of_its_step(opened: Any, files: dict[str, Path]) -> None:
    page = opened(files["one"])
    box = page.locator(".plot .u-over").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + 60)
    until(page, "#step", "to_have_value", "20")
    until(page, "#found", "to_have_text", "4 completions.")
    assert page.locator(".completion pre").first.inner_text() == "<b>answer 20-1</b>", "best first, as text"
    page.click("#clear")
    until(page, "#found", "to_have_text", "40 completions.")


def test_a_run_of_one_step_has_its_values_however_near_one_looks(opened: Any, tmp_path: Path) -> None:
    page = opened(write_report(write_run(tmp_path / "short", steps=1)))
    for _ in range(3):
        page.locator(".plot").first.press("+")
    until(page, ".readout", "to_contain_text", "step 1")


def test_bars_of_the_histogram_and_the_search_filter(opened: Any, files: dict[str, Path]) -> None:
    page = opened(files["one"])
    page.locator("#histogram button:enabled").last.click()
    until(page, "#found", "not_to_have_text", "40 completions.")
    top = count(page)
    page.locator("#histogram button:enabled").first.click()
    until(page, "#found", "not_to_have_text", f"{top} completions.")
    assert 0 < top < count(page) < 40
    page.fill("#search", "ANSWER 36-3")
    until(page, "#found", "to_have_text", "1 completions.")
    assert page.locator("mark").inner_text() == "answer 36-3"


def test_the_keyboard_alone_reads_zooms_and_opens(opened: Any, files: dict[str, Path]) -> None:
    page = opened(files["one"])
    plot = page.locator(".plot").first
    assert "from 1 at step 1 to 0.025 at step 40, lowest 0.025" in plot.get_attribute("aria-label")
    plot.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    until(page, "#status", "to_contain_text", "step 2loss 0.5")
    page.keyboard.press("+")
    page.wait_for_selector("body.zoomed")
    page.keyboard.press("Escape")
    page.wait_for_selector("body:not(.zoomed)")
    page.keyboard.press("Enter")
    page.wait_for_selector("#samples:focus")


def test_an_alarm_is_told_where_it_was_raised(opened: Any, files: dict[str, Path]) -> None:
    page = opened(files["one"])
    plot = page.locator("figure", has_text="kl").locator(".plot").first
    plot.focus()
    page.keyboard.press("End")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    until(page, "#status", "to_contain_text", "kl is over 1")


def test_smoothing_log_scale_and_dark_draw_anew(opened: Any, files: dict[str, Path]) -> None:
    page = opened(files["one"])
    seen: list[str] = []
    drawn = "document.querySelector('.plot canvas').toDataURL()"
    for change in (
        lambda: None,
        lambda: page.fill("#smoothing", "0.9"),
        lambda: page.check("#log"),
        lambda: page.emulate_media(color_scheme="dark"),
    ):
        change()
        page.wait_for_function(f"seen => !seen.includes({drawn})", arg=seen)  # it never comes where nothing is drawn
        seen.append(page.evaluate(drawn))


def test_runs_are_compared_and_hidden(opened: Any, files: dict[str, Path]) -> None:
    page = opened(files["both"])
    assert page.locator("figure").first.locator(".readout b").count() == 2
    assert page.locator("article").first.locator(".lane").count() == 2, "one prompt, a column for each run"
    page.locator("#runs input").first.uncheck()
    page.wait_for_selector(".plot canvas")
    assert page.locator("figure").first.locator(".readout b").count() == 1
    assert page.locator(".head:visible").count() == 1


def test_text_from_right_to_left_begins_on_the_right(opened: Any, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=1)
    row = {"step": 0, "prompt": "hi", "completion": "\u05e9\u05dc\u05d5\u05dd (hi)\nand left to right", "reward": 1.0}
    (folder / "samples.jsonl").write_text(json.dumps(row) + "\n")
    page = opened(write_report(folder))
    page.wait_for_selector(".completion pre")
    gaps = page.evaluate("""() => {
        const pre = document.querySelector(".completion pre"), range = document.createRange();
        const box = pre.getBoundingClientRect();
        return [[0, 9], [10, 27]].map(([from, to]) => {
            range.setStart(pre.firstChild, from); range.setEnd(pre.firstChild, to);
            const line = range.getBoundingClientRect();
            return [line.left - box.left, box.right - line.right];
        });
    }""")
    (left, right), (other_left, other_right) = gaps
    assert right < 2 < left and other_left < 2 < other_right


def test_a_phone_shows_everything_in_its_width(browser: Any, files: dict[str, Path]) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 700}, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.goto(files["both"].as_uri())
    page.wait_for_selector("#groups article")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator(".advice td").last.bounding_box()["width"] > 250, "a sentence has the width of the page"
    context.close()


def test_a_served_page_follows_its_run_and_keeps_the_zoom(opened: Any, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    server = Server([folder])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        page = opened(server.address)
        page.wait_for_selector("#groups article")
        page.locator(".plot").first.press("+")
        page.wait_for_selector("body.zoomed")
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": STEPS + 2, "loss": 7.5, "reward": 1.0}) + "\n")
        server.shelf.next = 0.0
        until(page, ".readout", "to_contain_text", "7.5")
        assert page.locator("body.zoomed").count() == 1 and "step 42" in page.locator(".state").inner_text()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def long_page(path: Path, count: int) -> Path:
    """The page of a run of so many steps and samples."""
    steps = range(count)
    lines = ({"step": step, "loss": 1 / (step + 1), "reward": step % 7} for step in steps)
    run = Run("long", path.parent, Metrics(lines))
    run.samples = [
        {"step": step, "prompt": f"prompt {step}", "completion": "word " * 20, "reward": 0.5} for step in steps
    ]
    path.write_text(render(Book("long", [run], samples=[[samples.shown(row, 0) for row in run.samples]])))
    return path


def test_a_hundred_thousand_steps_and_samples_are_as_light_as_a_few_thousand(opened: Any, tmp_path: Path) -> None:
    """A browser is given no more to read, to draw and to lay out: how long it takes is a matter of the machine."""
    sizes, elements = [], []
    for count in (5_000, 100_000):
        path = long_page(tmp_path / f"{count}.html", count)
        page = opened(path)
        page.wait_for_selector("#groups article")
        sizes.append(path.stat().st_size)
        elements.append(page.locator("*").count())
    assert "the run has 100,000" in page.locator("#found").inner_text()
    assert sizes[1] < 1.1 * sizes[0] and elements[1] <= elements[0], (sizes, elements)
