"""`exltune report` in a real browser: Debian's chromium, driven by playwright."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import succeed
from playwright.sync_api import ConsoleMessage, Page, sync_playwright
from synthetic_measurement import synthetic_measurement

from exltune.inventory import inventory_from_config
from exltune.schema.measurement import Measurement

CONFIGS = Path(__file__).resolve().parents[1] / "fixtures" / "configs"
CHROMIUM = shutil.which("chromium")
#: Without these it looks for Google's hosts at every start.
_QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")
_WIDTHS = (2.0, 3.0, 4.0)
_SCRIPT = '<img src="https://example.invalid/x.png" onerror="window.harmed = 1">'

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def measured() -> Measurement:
    """GLM-4.7's 92 layers, with a name that is markup."""
    config = json.loads((CONFIGS / "glm-4.7.json").read_text(encoding="utf-8"))
    made = synthetic_measurement(inventory_from_config(config), _WIDTHS, (6.0,))
    first, *rest = made.exltune.groups
    groups = (first.model_copy(update={"id": f"0.{_SCRIPT}"}), *rest)
    detail = made.exltune.model_copy(update={"groups": groups, "codebook": _SCRIPT})
    return made.model_copy(update={"exltune": detail, "arch_string": _SCRIPT})


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the browser complained of and asked for."""
    return []


@pytest.fixture(scope="module")
def page(measured: Measurement, said: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The report, drawn."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "m.json").write_text(measured.model_dump_json(), encoding="utf-8")
    out = folder / "report.html"
    succeed("report", folder / "m.json", "--out", out)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_QUIET))
        page = browser.new_page()

        def console(message: ConsoleMessage) -> None:
            said.append(f"{message.type}: {message.text}")

        page.on("console", console)
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(f"request: {request.url}"))
        page.goto(out.as_uri())
        page.wait_for_selector("html[data-drawn=true]", timeout=120_000)
        yield page
        browser.close()


def _cells(page: Page) -> tuple[str, int]:
    """Width and number of the cells of the heat map that are drawn."""
    found = page.evaluate(
        """() => document.getElementById("heat_map").data.filter(trace => trace.visible)
            .map(trace => [trace.meta.choice, trace.z.flat().filter(value => value !== null).length])"""
    )
    assert len(found) == 1
    return found[0][0], found[0][1]


def test_it_is_drawn_without_a_request_or_complaint(page: Page, said: list[str]) -> None:
    assert [words for words in said if not words.startswith("request: file:")] == []
    assert len(said) == 1
    charts = ("heat_map", "intervals", "error_law", "law_misfit", "additivity", "wider")
    assert all(page.locator(f"#{chart} svg.main-svg").count() for chart in charts)
    assert page.evaluate("window.harmed === undefined && document.images.length === 0")
    assert _SCRIPT in page.locator("h1").inner_text()


@pytest.mark.parametrize("choice", ["3", "2"])
def test_the_width_switches_map_intervals_and_tables(page: Page, measured: Measurement, choice: str) -> None:
    page.locator(f"input[name=width][value='{choice}']").check()
    page.wait_for_function(
        "choice => document.getElementById('heat_map').data.every(t => t.visible === (t.meta.choice === choice))",
        arg=choice,
    )
    assert _cells(page) == (choice, len(measured.exltune.groups))
    shown = page.evaluate(
        """() => document.getElementById("intervals").data.filter(trace => trace.visible)
            .map(trace => [trace.meta.choice, trace.x.length])"""
    )
    assert {one for one, _ in shown} == {choice}
    assert sum(number for _, number in shown) == len(measured.exltune.groups)
    tables = page.locator("[data-width]:visible")
    assert [tables.nth(number).get_attribute("data-width") for number in range(tables.count())] == [choice]
    largest = max((p.kld_nats, g.id) for g in measured.exltune.groups for p in g.probes if p.choice == choice)
    assert tables.locator("tbody tr td").first.inner_text() == largest[1]


def test_hover_names_the_group(page: Page, measured: Measurement) -> None:
    area = page.locator("#heat_map .nsewdrag")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.05 * box["height"])
    words = page.locator("#heat_map .hoverlayer .hovertext")
    words.wait_for()
    text = words.text_content() or ""
    groups = {group.id for group in measured.exltune.groups}
    assert any(f"{group} at 2 bits" in text for group in groups), text
    assert "nats/token" in text
    assert "bytes" in text
