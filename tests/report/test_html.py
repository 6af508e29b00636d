"""A report in a real browser: charts are drawn, nothing is asked of anybody, nothing overflows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdschemes.report import report
from kdschemes.report.style import PALETTES
from tests import REPOSITORY
from tests.report.browser import CHROMIUM, Browser
from tests.report.cases import both, results, rising, store_predictions, write_run, write_study_of

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]

DRAWN = "document.documentElement.dataset.drawn === 'true'"
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
CHARTS = """
[...document.querySelectorAll('.chart')].map((box) => {
  const svg = box.querySelector('svg');
  const shown = svg ? svg.getBoundingClientRect() : { width: 0, height: 0, right: 0 };
  const all = (selector) => (svg ? [...svg.querySelectorAll(selector)] : []);
  const marks = all('.mark-rect path, .mark-line path, .mark-symbol path, .mark-rule line').length;
  const texts = all('text').filter((text) => text.textContent.trim()).length;
  return { name: box.parentElement.id, width: shown.width, height: shown.height, right: shown.right, marks, texts };
})
"""
PAPER = "getComputedStyle(document.body).backgroundColor"
TABLES = """
[...document.querySelectorAll('.scroll')].map((box) =>
  [box.scrollWidth, box.clientWidth, box.getBoundingClientRect().right])
"""
LABEL = "getComputedStyle(document.querySelector('#accuracy .role-axis-label text')).fill"


def write_a_study(output: Path) -> Path:
    """Write a study that has every kind of chart: a grid of two keys, exits, predictions, an unfinished run."""
    text = "{question: 'Is <b>this</b> seen?', base: {scheme: self, train.epochs: 4}, seeds: [0, 1, 2], "
    text += "grid: {scheme.alpha: [0.25, 0.5], optim.lr: [0.05, 0.1]}}"
    study = write_study_of(output, "all_charts", text)
    for number, entry in enumerate(study.runs):
        words = ["scheme=self", f"seed={entry.seed}", *(f"{key}={value}" for key, value in entry.grid.items())]
        top = 80.0 + number
        heads = {name: both(top - n, top) for n, name in enumerate(("student", "student/exit1", "ensemble"))}
        cost = {name: {"parameters": 10**n, "macs": 10**n, "latency_ms": 1.0 + n} for n, name in enumerate(heads, 3)}
        more = {"heads": heads, "cost": cost, "early_exit": {"budgets": None}, "train_macs_per_image": 1e6}
        last = number == len(study.runs) - 1
        run = write_run(output, words, None if last else results(entry.seed, top, **more), rising(top))
        point = {"macs": 500, "top1": top - 3}
        curve = [{"macs": 500 + 10 * n, "top1": top - 3 + n / 10, "ratio": 1.0} for n in range(9)]
        found = {
            "exits": {"student/exit1": point, "student": {"macs": 900, "top1": top}},
            "static": point,
            "curve": curve,
        }
        (run / "early_exit.json").write_text(json.dumps(found))
        store_predictions(run, entry.seed, dict.fromkeys(heads, 0.8))
    return study.folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study with every chart, and a study of which nothing ran."""
    output = tmp_path_factory.mktemp("runs")
    everything = write_a_study(output)
    nothing = write_study_of(output, "nothing", "{question: Q, base: {scheme: supervised}, seeds: [0]}").folder
    for folder in (everything, nothing):
        report([str(folder)], output=None, out=None)
    return {"everything": everything / "report.html", "nothing": nothing / "report.html"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("theme", PALETTES)
@pytest.mark.parametrize("device", WIDTHS)
def test_the_page_is_whole(pages: dict[str, Path], browser: Browser, device: str, theme: str) -> None:
    width, height = WIDTHS[device]
    browser.show(pages["everything"], width=width, height=height, theme=theme, ready=DRAWN)
    assert browser.complaints == []
    assert browser.requests == [pages["everything"].as_uri()]
    charts = browser.value(CHARTS)
    names = [chart["name"] for chart in charts]
    assert names == [
        *("accuracy", "heat_map", "lines", "curves", "nll_curves", "loss_1", "loss_2", "loss_3", "exits"),
        *("cost_macs", "confusion", "confusion_2", "reliability", "agreement", "agreement_2"),
        *("agreement_3", "agreement_4", "agreement_between"),
    ]
    for chart in charts:
        assert chart["marks"] >= 2, chart
        assert chart["texts"] >= 4, chart
        assert chart["height"] > 60, chart
        assert 100 < chart["width"] <= width, chart
        assert chart["right"] <= width, chart
    assert browser.value("document.documentElement.scrollWidth") <= width
    tables = browser.value(TABLES)
    assert len(tables) >= 4
    assert all(right <= width for _, _, right in tables)
    assert device == "desktop" or any(inside > box for inside, box, _ in tables), "no table had to scroll"

    def rgb(name: str) -> str:
        channels = [int(PALETTES[theme][name][start : start + 2], 16) for start in (1, 3, 5)]
        return f"rgb({', '.join(map(str, channels))})"

    assert browser.value(PAPER) == rgb("paper")
    assert browser.value(LABEL) == rgb("muted")
    assert browser.value("document.querySelector('.question').textContent") == "Is <b>this</b> seen?"


def test_charts_follow_the_width_of_the_window(pages: dict[str, Path], browser: Browser) -> None:
    browser.show(pages["everything"], width=1280, height=900, theme="light", ready=DRAWN)
    wide = {chart["name"]: chart["width"] for chart in browser.value(CHARTS)}
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    browser.wait(
        "[...document.querySelectorAll('.chart svg')].every((svg) => svg.getBoundingClientRect().right <= 390)"
    )
    narrow = {chart["name"]: chart["width"] for chart in browser.value(CHARTS)}
    assert wide["curves"] > 900
    assert all(width <= 390 for width in narrow.values())
    assert browser.complaints == []


def test_a_point_shows_its_numbers(pages: dict[str, Path], browser: Browser) -> None:
    browser.show(pages["everything"], width=1280, height=900, theme="dark", ready=DRAWN)
    browser.value("document.querySelector('#accuracy .mark-symbol path').scrollIntoView({block: 'center'})")
    box = browser.value("document.querySelector('#accuracy .mark-symbol path').getBoundingClientRect().toJSON()")
    at = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for x in (at[0] - 1, at[0]):
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=at[1])
    browser.wait("document.querySelector('#vg-tooltip-element.visible')?.textContent.includes('alpha=0.25 lr=0.05')")
    assert browser.complaints == []


def test_a_study_of_which_nothing_ran(pages: dict[str, Path], browser: Browser) -> None:
    browser.show(pages["nothing"], width=390, height=844, theme="light", ready="true")
    assert browser.complaints == []
    assert browser.value(CHARTS) == []
    assert browser.value("document.querySelectorAll('tbody tr').length") == 1
    assert browser.value("document.documentElement.scrollWidth") <= 390


def test_tables_are_sorted_and_filtered(pages: dict[str, Path], browser: Browser) -> None:
    """A click sorts by numbers, downwards, then upwards, then back; words filter."""
    browser.show(pages["everything"], width=1280, height=900, theme="light", ready=DRAWN)
    column = (
        "[...document.querySelector('.scroll').querySelectorAll('tbody tr')].map((row) => row.cells[1].textContent)"
    )
    button = "document.querySelectorAll('.scroll')[0].querySelectorAll('thead button')[1]"
    before = browser.value(column)
    seen = []
    for _ in range(3):
        browser.value(f"{button}.click()")
        seen.append(browser.value(column))
    assert seen == [sorted(before, key=by_number, reverse=True), sorted(before, key=by_number), before]
    shown = "[...document.querySelectorAll('input.filter')[0].nextElementSibling.querySelectorAll('tbody tr')]"
    shown += ".filter((row) => !row.hidden).map((row) => row.cells[0].textContent)"
    rows = browser.value(shown)
    box = "document.querySelectorAll('input.filter')[0]"
    browser.value(f"{box}.value = '{rows[3]}'; {box}.dispatchEvent(new Event('input'))")
    found = browser.value(shown)
    assert rows[3] in found
    assert 0 < len(found) < len(rows)
    assert browser.complaints == []


def by_number(cell: str) -> float:
    return float(cell.split()[0])


def test_a_phone_shows_the_accuracy_first(pages: dict[str, Path], browser: Browser) -> None:
    browser.show(pages["everything"], width=390, height=844, theme="light", ready=DRAWN)
    cell = "document.querySelectorAll('.scroll')[0].querySelector('tbody tr').cells[1].getBoundingClientRect()"
    assert browser.value(f"{cell}.right") <= 390
    labels = browser.value("[...document.querySelectorAll('#accuracy .role-axis-label')].map((at) => at.textContent)")
    assert any("alpha=0.25" in label and "lr=0.05" in label for label in labels)


def test_a_page_prints_on_white_paper(pages: dict[str, Path], browser: Browser) -> None:
    browser.show(pages["everything"], width=1280, height=900, theme="dark", ready=DRAWN)
    browser.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert browser.value(PAPER) == "rgb(255, 255, 255)"
    assert len(browser.call("Page.printToPDF", printBackground=True)["data"]) > 50_000


def test_a_run_that_was_just_trained(tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [
        "losses.feature=none",
        "scheme.exit_head=linear",
        "data.val_fraction=0.8",
        "data.train_fraction=1",
        "train.epochs=2",
    ]
    command = [sys.executable, str(REPOSITORY / "run.py"), "scheme=self", *small, "train.num_threads=1"]
    subprocess.run([*command, f"output_dir={tmp_path / 'runs'}"], check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    report([str(tmp_path / "runs")], output=None, out=None)
    browser.show(tmp_path / "report.html", width=1280, height=900, theme="light", ready=DRAWN)
    assert browser.complaints == []
    names = [chart["name"] for chart in browser.value(CHARTS) if chart["marks"] >= 2]
    assert {"accuracy", "curves", "exits", "reliability", "agreement", "cost_macs"} <= set(names)
