"""The files of a report: one HTML page that needs nothing else, markdown, PNGs; what the terminal shows."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import altair as alt
import pytest
from markdown_it import MarkdownIt
from matplotlib.image import imread

from kdschemes import cli
from kdschemes.errors import UserError
from kdschemes.printable import printable
from kdschemes.report import analyses, report
from kdschemes.report.build import Report, build
from kdschemes.report.document import Chart, Section, Table
from kdschemes.report.groups import run_groups
from kdschemes.report.html import html
from kdschemes.report.markdown import markdown
from kdschemes.report.style import PALETTES
from kdschemes.report.terminal import terminal
from kdschemes.study.record import Study
from tests.report.cases import results, rising, store_predictions, supervised, write_run, write_study_of

ATTACK = '<script>alert(1)</script><img src=x onerror="alert(2)"> & "quotes" |'
KINDS = ("csv", "html", "json", "md")
VOID = ("meta", "link", "img", "br")
CHARTS = ("accuracy", "lines", "curves", "nll_curves", "loss_1", "loss_2", "loss_3", "confusion", "reliability")


class Tags(HTMLParser):
    """Keeps the tags of a page with their attributes, and checks that every one is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    output = tmp_path / "runs"
    grid = "base: {scheme: supervised, train.epochs: 4}, grid: {optim.lr: [0.1, 0.2]}, seeds: [0, 1]"
    study = write_study_of(output, "mine", f"{{question: 'Is <b>a</b> rate > 0.1 better?', {grid}}}")
    store_predictions(write_run(output, supervised(0), results(0, 90.0), rising(90)), 0, {"student": 0.9})
    write_run(output, supervised(1), results(1, 94.0), rising(94))
    write_run(output, supervised(0, "optim.lr=0.2"), results(0, 70.0), rising(70))
    write_run(output, supervised(1, "optim.lr=0.2"), None, [40, 50])
    return study


def test_a_study_writes_its_pages_and_pictures(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "report", str(study.folder)]) == 0
    printed = capsys.readouterr().out
    pictures = ("accuracy", "confusion", "curves", "lines", "loss_1", "loss_2", "loss_3", "nll_curves", "reliability")
    files = {path.name for path in study.folder.iterdir()}
    assert files == {
        *(f"report.{kind}" for kind in ("html", "md", "csv", "json")),
        "study.yaml",
        *(f"{name}.png" for name in pictures),
    }
    assert f"written: {study.folder / 'report.html'}, report.md, report.csv, report.json, 9 PNGs" in printed
    assert "| lr=0.2 | 70.00 | 50.00 | student | 0 (1 missing) |" in re.sub(" +", " ", printed)
    assert "no process is training it" in printed
    for name in pictures:
        image = imread(study.folder / f"{name}.png")
        assert image.shape[1] > 1000
        assert 0.005 < (image[:, :, :3].min(axis=2) < 0.9).mean() < 0.9, f"{name}.png is empty"
    text = (study.folder / "report.md").read_text()
    assert re.findall(r"!\[.*\]\((.*)\)", text) == [f"{name}.png" for name in CHARTS]

    with (study.folder / "report.csv").open() as file:
        rows = [(row["run"], row["seed"], row["optim.lr"], row["test_top1_last"]) for row in csv.DictReader(file)]
    assert rows == [
        *[("lr=0.1", "0", "0.1", "90.0"), ("lr=0.1", "1", "0.1", "94.0")],
        *[("lr=0.2", "0", "0.2", "70.0"), ("lr=0.2", "1", "0.2", "")],
    ]
    found = json.loads((study.folder / "report.json").read_text())
    assert found["comparisons"][0] | {"low": 0} == {
        **{"run": "lr=0.2", "against": "lr=0.1", "planned": True, "seeds": 1, "difference": -20.0, "low": 0},
        **{"high": "nan", "p": "nan", "verdict": "fewer than 3 common seeds: no verdict", "differs": []},
    }
    assert found["tables"][0]["rows"][0][:2] == ["lr=0.1", "92.00 ± 2.83"]

    page = (study.folder / "report.html").read_text()
    assert 900_000 < len(page) < 1_300_000
    tags = Tags(page)
    assert tags.named("html") == [{"lang": "en"}]
    assert [each["aria-label"].split(".")[0] for each in tags.named("div") if each.get("role") == "img"] == [
        f"Chart {name.replace('_', ' ')}" for name in CHARTS
    ]
    assert all(not each.get("src") and not each.get("href", "#").startswith("http") for _, each in tags.found)
    assert "default-src 'none'" in str(tags.named("meta"))
    assert "<b>a</b>" not in page
    assert "Is &lt;b&gt;a&lt;/b&gt; rate &gt; 0.1 better?" in page
    trees = re.findall(r'<script type="application/json">(.*?)</script>', page)
    assert len([json.loads(tree) for tree in trees]) == 9
    assert [
        name for name in re.findall(r"var\(--([a-z0-9-]+)\)", page) if name not in {*PALETTES["light"], "sans"}
    ] == []


def test_out_names_both_pages(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdschemes.report.html._bundle", lambda: "")
    target = tmp_path / "pages" / "rate.md"
    report([str(study.folder)], output=None, out=str(target))
    files = {path.name for path in target.parent.iterdir()}
    assert files == {f"rate.{kind}" for kind in KINDS} | {f"rate_{name}.png" for name in CHARTS}
    assert "](rate_curves.png)" in target.read_text()
    assert not (study.folder / "report.md").exists()
    with pytest.raises(UserError, match=r"is a folder: name a file that ends in \.html or \.md"):
        report([str(study.folder)], output=None, out=str(tmp_path))
    with pytest.raises(UserError, match=r"rate\.pdf must end in \.html or \.md"):
        report([str(study.folder)], output=None, out=str(tmp_path / "rate.pdf"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        report([str(study.folder)], output=None, out=str(tmp_path / "file" / "rate.html"))


def test_runs_are_reported_into_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdschemes.report.html._bundle", lambda: "")
    run = write_run(tmp_path / "runs", supervised(0), None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    printed = report([str(run)], output=None, out=None)
    assert "No run is finished yet" in printed
    assert printed.endswith("written: report.html, report.md, report.csv, report.json")
    assert sorted(path.name for path in Path().iterdir()) == [
        f"report.{kind}" for kind in ("csv", "html", "json", "md")
    ]
    assert "<h1>Runs</h1>" in Path("report.html").read_text()


def test_nothing_of_a_run_is_markup() -> None:
    chart = Chart(name="one", spec=alt.Chart(alt.InlineData(values=[{"a": ATTACK}])).mark_point(), caption=ATTACK)
    table = Table(columns=("run", ATTACK), rows=[[ATTACK, "`1`"]], caption=ATTACK)
    section = Section(title=ATTACK, text=f"**bold** and `code`\n\n{ATTACK}", tables=[table], charts=[chart])
    made = Report(title=ATTACK, question=ATTACK, summary=[ATTACK], warnings=[ATTACK], sections=[section])
    page = html(made, {"one": {"data": ATTACK}})
    tags = Tags(page)
    assert [attributes.get("onerror") for _, attributes in tags.found] == [None] * len(tags.found)
    assert len(tags.named("script")) == 5  # configuration, one chart, tables, library, charts
    assert tags.named("img") == []
    assert "<strong>bold</strong> and <code>code</code>" in page
    text = markdown(made, {"one": "one.png"})
    assert "<script" not in text
    assert "<img" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("| &lt;script")]
    assert line.count(" | ") == 1
    assert ATTACK in terminal(made)


LABEL = "\x1b[31m\x07red\x9b \u202e \uffff\n# Head\n\n![i](http://e.com/i.png) [l](http://e.com) <http://e.com> `"


def test_control_characters_in_a_label_are_spelled_out_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ended the program that draws the charts, and acted on the terminal."""
    monkeypatch.setattr("kdschemes.report.html._bundle", lambda: "")
    output = tmp_path / "runs"
    variants = f"variants: {{{json.dumps(LABEL)}: {{}}, other: {{optim.lr: 0.2}}}}, seeds: [0]"
    study = write_study_of(
        output, "mine", f"{{question: {json.dumps(LABEL)}, base: {{scheme: supervised, train.epochs: 4}}, {variants}}}"
    )
    write_run(output, supervised(0), results(0, 90.0), rising(90))
    for command in (["study", "report", str(study.folder)], ["study", "status", str(study.folder)]):
        assert cli.main(command) == 0
        printed = capsys.readouterr().out
        assert "\\x1b[31m\\x07red\\x9b" in printed
        assert all(character.isprintable() or character == "\n" for character in printed)
    assert (study.folder / "accuracy.png").stat().st_size > 1000
    page, text = ((study.folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    for written in (page, text):
        assert "\\x1b[31m" in written
        assert not set(LABEL) & set(written) - set(LABEL).intersection(map(chr, range(32, 127))) - {"\n"}
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inner = [child for token in tokens for child in token.children or ()]
    assert "Head" not in {tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open"}
    links = [child.attrs["href"] for child in inner if child.type == "link_open"]
    assert links == ["report.csv", "report.json"]
    pictures = {str(child.attrs["src"]) for child in inner if child.type == "image"}
    assert pictures == {path.name for path in study.folder.glob("*.png")}


@pytest.mark.parametrize(
    "text",
    [
        *("# heading", "heading\n===", "heading\n---", "- item", "+ item", "1. item", "2) item", "> quotation", "***"),
        *("[a](http://b)", "![a](http://b)", "[a][b]", "[b]: http://c", "<http://a>", "<b>", "&lt;", "~~a~~", "*a*"),
        *("_a_", "a|b", "\\[a](b)", "a\\", "    code", "~~~", "``` a", "x\n\n# y", "-3.2", "a_b=[1, 2] (c)"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str) -> None:
    table = Table(columns=("a", text), rows=[[text, text]])
    made = Report(
        title=text, question=text, summary=[text], warnings=[text], sections=[Section(title="s", tables=[table])]
    )
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown(made, {}))
    shape = Tags(page)
    assert {name for name, _ in shape.found} <= {
        *("h1", "h2", "p", "ul", "li"),
        *("table", "thead", "tbody", "tr", "th", "td"),
    }
    seen = re.sub("<[^>]*>", "\n", page).replace("&quot;", '"')
    cell = printable(text).strip()
    assert seen.split("\n").count(cell.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")) >= 4
    assert len(shape.named("h2")) == 1
    assert len(shape.named("td")) == 2


def test_analyses_are_sections_and_one_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(groups: object) -> list[Section]:
        raise UserError("nothing was measured")

    def works(groups: object) -> list[Section]:
        return [Section(title="Mine", text="It works.")]

    monkeypatch.setattr(analyses, "ANALYSES", {"fails": fails, "works": works})
    groups = run_groups([write_run(tmp_path, supervised(0), results(0, 90.0))])
    made = build("Runs", "", groups, analyses=["fails", "works"], notes=["A note."])
    assert [(section.title, section.text) for section in made.sections[-3:]] == [
        ("Fails", "**This analysis failed**: nothing was measured"),
        ("Mine", "It works."),
        ("Notes", "A note."),
    ]
    with pytest.raises(UserError, match="unknown analysis 'work'; did you mean 'works'"):
        build("Runs", "", groups, analyses=["work"])


def contrast(a: str, b: str) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(color: str) -> float:
        parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", PALETTES)
def test_colors_are_seen_on_the_paper(theme: str) -> None:
    palette = PALETTES[theme]
    for name in ("ink", "muted", "link"):
        assert contrast(palette[name], palette["paper"]) >= 4.5, name
        assert contrast(palette[name], palette["panel"]) >= 4.5, name
    for number in range(1, 8):
        assert contrast(palette[f"series-{number}"], palette["paper"]) >= 3, number
