"""The HTML page of a matrix in headless Chromium: keyboard, screen reader labels, light and dark colours."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from conformance.report.matrix import page
from conformance.report.matrix.columns import Column
from tests.support.matrices import CLAUSES, HOSTILE, a_report
from tests.test_matrix import hostile, three

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)
PATIENCE = 120_000  # milliseconds, for a busy machine
CONTRAST = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => parts(colour).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [, , , opacity = 1] = parts(getComputedStyle(at).backgroundColor);
      if (opacity === 1) return getComputedStyle(at).backgroundColor;
    }
  };
  const poor = new Set();
  for (const element of document.querySelectorAll("body *")) {
    const written = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!written || !element.checkVisibility() || ["SCRIPT", "OPTION"].includes(element.tagName)) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) poor.add(`${element.tagName}.${element.className} ${element.textContent}: ${contrast}`);
  }
  return [...poor];
}"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: ci/html installs Debian's")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium for the module's tests."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), timeout=PATIENCE)
        yield launched
        launched.close()


Opened = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Opened]:
    """A function that opens the page of given columns; the page must log nothing and request no other URL."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def show(*columns: Column, **options: Any) -> Page:
        file = tmp_path / "report.html"
        file.write_text(page.document(columns or three()), encoding="utf-8")
        context = browser.new_context(**{"viewport": {"width": 1300, "height": 800}, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        seen = context.new_page()
        seen.on("console", lambda message: said.append(message.text))
        seen.on("pageerror", lambda error: said.append(str(error)))
        seen.on("dialog", lambda dialog: said.append(dialog.message))
        seen.on("request", lambda request: asked.append(request.url))
        seen.goto(file.as_uri())
        return seen

    expect.set_options(timeout=PATIENCE)
    yield show
    for context in contexts:
        context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {(tmp_path / "report.html").as_uri()}


def shown(seen: Page) -> list[str]:
    """The clause ids of the visible rows."""
    rows = seen.locator(".matrix tbody tr:not(.group)")
    return [row.locator("th code").inner_text() for row in rows.all() if row.is_visible()]


def test_a_screen_reader_gets_rows_columns_and_the_result_of_each_cell(opened: Opened) -> None:
    seen = opened()
    table = seen.get_by_role("table", name="Clauses and what became of each on each target")
    heads = [head.inner_text().split("\n")[0] for head in table.get_by_role("columnheader").all()]
    assert heads == ["clause", "right layers 1.2", "lesser layers 1.2", "absent"]
    assert table.get_by_role("rowheader").count() == len(CLAUSES) + 3
    names = [cell.get_attribute("aria-label") for cell in table.get_by_role("button").all()]
    assert names[:4] == [
        "LIN-FWD on right layers 1.2: pass, worst 0.50",
        "LIN-FWD on lesser layers 1.2: fail, worst 2.00",
        "LIN-FWD on absent: not run",
        "LIN-BWD-DA on right layers 1.2: pass, worst 0.50",
    ]
    assert seen.get_by_role("status").inner_text() == "5 of 5 clauses shown"


def test_rows_are_filtered_by_keyboard(opened: Opened) -> None:
    seen = opened()
    status = seen.get_by_role("status")
    seen.get_by_label("Group").focus()
    seen.keyboard.press("ArrowDown")
    expect(status).to_have_text("3 of 5 clauses shown")
    assert shown(seen) == ["LIN-FWD", "LIN-BWD-DA", "LIN-DET"]
    assert not seen.get_by_role("rowheader", name="layer", exact=True).is_visible()
    seen.get_by_role("checkbox", name="pass").focus()
    seen.keyboard.press("Space")
    seen.keyboard.press("Tab")
    seen.keyboard.press("Tab")
    seen.keyboard.press("Tab")
    assert seen.evaluate("document.activeElement.value") == "not_run"
    seen.keyboard.press("Space")
    expect(status).to_have_text("2 of 5 clauses shown")
    assert shown(seen) == ["LIN-FWD", "LIN-DET"]
    seen.get_by_label("Words").focus()
    seen.keyboard.type("det DEMANDS")
    expect(status).to_have_text("1 of 5 clauses shown")
    assert shown(seen) == ["LIN-DET"]
    seen.get_by_role("button", name="Show all").focus()
    seen.keyboard.press("Enter")
    expect(status).to_have_text("5 of 5 clauses shown")
    assert seen.get_by_label("Words").input_value() == ""


def test_the_dtype_filter_shows_only_results_in_that_dtype(opened: Opened) -> None:
    seen = opened()
    group = seen.locator(".matrix tbody").first.locator(".group td")
    assert group.all_inner_texts() == ["3 of 3", "1 of 3", "not run"]
    seen.get_by_label("Dtype").focus()
    seen.keyboard.type("bfloat16")
    lesser = seen.get_by_role("button", name=re.compile("on lesser"))
    expect(lesser.first).to_have_attribute("aria-label", "LIN-FWD on lesser layers 1.2: pass, worst 0.50")
    labels = [cell.get_attribute("aria-label") for cell in lesser.all()]
    assert labels[2] == "LIN-DET on lesser layers 1.2: fail, worst 3.00"
    assert group.nth(1).inner_text().endswith("2 of 3")
    assert "fail" not in (group.nth(1).get_attribute("class") or "")
    assert "LAY-FWD on lesser layers 1.2: not claimed" in labels


def test_enter_opens_a_cell_and_escape_closes_it_and_restores_the_focus(opened: Opened) -> None:
    seen = opened()
    cell = seen.get_by_role("button", name="LIN-FWD on lesser layers 1.2")
    cell.focus()
    seen.keyboard.press("Enter")
    dialog = seen.get_by_role("dialog", name="LIN-FWD on lesser layers 1.2")
    expect(dialog).to_be_visible()
    assert seen.evaluate("document.getElementById('cell').contains(document.activeElement)")
    text = dialog.inner_text()
    for part in ("What LIN-FWD demands.", "m=3 k=4", "shrunk from m=99 k=4", "float32: fail", 'print("LIN-FWD")'):
        assert part in text
    assert "loraspec rerun 'LIN-FWD lesser f m=3 k=4'" in text
    assert "lesser/repro_LIN-FWD.py" in text
    seen.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(cell).to_be_focused()
    seen.keyboard.press("ArrowLeft")
    expect(seen.get_by_role("button", name="LIN-FWD on right")).to_be_focused()
    seen.keyboard.press("ArrowDown")
    expect(seen.get_by_role("button", name="LIN-BWD-DA on right")).to_be_focused()
    seen.keyboard.press("Space")
    expect(seen.get_by_role("dialog", name="LIN-BWD-DA on right layers 1.2")).to_contain_text("0.25")
    seen.get_by_role("button", name="Close").click()
    expect(seen.get_by_role("button", name="LIN-BWD-DA on right")).to_be_focused()


def test_a_not_claimed_cell_says_why(opened: Opened) -> None:
    seen = opened()
    seen.get_by_role("button", name="LAY-FWD on lesser").click()
    expect(seen.get_by_role("dialog")).to_contain_text("not claimed: the target has no LinearLoRA")


def test_hostile_text_is_escaped(opened: Opened) -> None:
    seen = opened(hostile(), *three())
    title = seen.title()
    assert title == "loraspec: 4 targets"
    seen.locator(".matrix td.fail button").first.click()
    expect(seen.get_by_role("dialog")).to_contain_text(HOSTILE)
    seen.keyboard.press("Escape")
    seen.get_by_label("Dtype").select_option("bfloat16")
    assert seen.title() == title
    assert seen.locator("img").count() == 0


def test_the_page_works_without_javascript(opened: Opened) -> None:
    seen = opened(java_script_enabled=False)
    assert not seen.locator("#filters").is_visible()
    assert len(shown(seen)) == len(CLAUSES)
    seen.get_by_role("link", name="fail 2.00").click()
    details = seen.locator("details:target")
    details.locator("summary").click()
    expect(details).to_contain_text("shrunk from m=99 k=4")
    expect(details).to_contain_text('print("LIN-FWD")')


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(scheme: str, opened: Opened) -> None:
    seen = opened(color_scheme=scheme)
    dark = seen.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 24)"
    assert dark == (scheme == "dark")
    for details in seen.locator("details").all():
        details.evaluate("(element) => { element.open = true; }")
    assert seen.evaluate(CONTRAST) == []
    seen.get_by_role("button", name="LIN-FWD on lesser").click()
    assert seen.evaluate(CONTRAST) == []


@pytest.mark.parametrize("width", [420, 1280])
def test_the_verdict_table_fits_the_window(width: int, opened: Opened) -> None:
    report = replace(a_report(LIN_FWD=(("fail", 2.0), ("fail", 2.0))), device_name="AMD EPYC 9654 96-Core Processor")
    seen = opened(Column.of(report, {}), viewport={"width": width, "height": 900})
    sizes = "(table) => [table.scrollWidth - table.parentElement.clientWidth, document.body.scrollWidth - innerWidth]"
    assert max(seen.locator(".about").evaluate(sizes)) <= 0
    date = seen.locator(".about .date").bounding_box()
    assert date is not None
    assert 0 <= date["x"] < date["x"] + date["width"] <= width
    assert seen.locator(".about .date time").evaluate("(e) => e.getClientRects().length") == 1  # not broken into lines


def test_row_and_column_headers_stay_visible_when_scrolling(opened: Opened) -> None:
    seen = opened(viewport={"width": 500, "height": 300})
    grid = seen.locator("#grid")
    grid.evaluate("(element) => { element.scrollTo(60, 120); }")
    assert grid.evaluate("(element) => element.scrollTop") > 0
    box, head = grid.bounding_box(), seen.locator(".matrix thead th").first.bounding_box()
    assert box is not None
    assert head is not None
    assert (abs(head["x"] - box["x"]) < 3, abs(head["y"] - box["y"]) < 3) == (True, True)
