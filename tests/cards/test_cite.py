"""What `kdschemes cite` prints parses as BibTeX and names what a run used, all of it and nothing else."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from kdschemes import cli
from kdschemes.cards.cite import VIEW_PAPERS, network_keys
from kdschemes.cards.read import Card, Entry, all_cards, entries, plain
from kdschemes.config.data import DATA
from kdschemes.config.load import load_config
from kdschemes.config.losses import KINDS
from kdschemes.config.models import MODELS
from kdschemes.config.naming import dump_yaml
from kdschemes.config.schemes import SCHEMES
from kdschemes.study.spec_keys import read_keys
from tests import REPOSITORY

PACKAGE = Path(cli.__file__).parent
PAPERS = (PACKAGE / "cards" / "papers.bib").read_text()
REQUIRED = {
    "article": {"journal"},
    "book": {"publisher"},
    "inproceedings": {"booktitle"},
    "techreport": {"institution"},
    "phdthesis": {"school"},
    "mastersthesis": {"school"},
    "misc": set(),
}
"""Fields that each type of entry needs in addition to title, author and year."""
WITHOUT_PAPER = ("convnet", "convnet_quarter")


def parse(text: str) -> dict[str, dict[str, str]]:
    """Read BibTeX strictly: comments that begin with %, entries of braced fields, nothing else."""
    found: dict[str, dict[str, str]] = {}
    at = 0
    while match := re.compile(r"(?:\s|%[^@\n]*\n)*@(\w+)\{([\w:-]+)").match(text, at):
        kind, key = match[1].lower(), match[2]
        assert key not in found, f"{key} is there twice"
        values: dict[str, str] = {}
        at = match.end()
        while field := re.compile(r"\s*,\s*(\w+)\s*=\s*\{").match(text, at):
            name, depth, at = field[1].lower(), 1, field.end()
            while depth:
                depth += {"{": 1, "}": -1}.get(text[at], 0)
                at += 1
            assert name not in values, f"{key} has {name} twice"
            values[name] = text[field.end() : at - 1]
        end = re.compile(r"\s*,?\s*\}").match(text, at)
        assert end, f"{key} does not end where it should: {text[at : at + 40]!r}"
        at = end.end()
        missing = {"title", "author", "year"} | REQUIRED[kind]
        assert missing <= values.keys(), f"{key} lacks {missing - values.keys()}"
        assert all(value.strip() for value in values.values()), f"{key} has an empty field"
        assert re.fullmatch(r"(19|20)\d\d", values["year"]), key
        assert all("," in person for person in values["author"].split(" and ")), f"{key}: Last, First and Last, First"
        found[key] = values
    assert not text[at:].strip(), f"not BibTeX: {text[at : at + 40]!r}"
    return found


def cite(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    (tmp_path / "config.yaml").write_text(dump_yaml(load_config(arguments, recipes=tmp_path)))
    assert cli.main(["cite", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@cache
def losses() -> dict[str, Card]:
    return {card.name: card for card in all_cards() if card.is_loss}


def loss_keys(*names: str) -> list[str]:
    return [entry.key for name in names for entry in losses()[name].entries]


@pytest.mark.parametrize(
    "text",
    [
        "@misc{a, title = {A}, author = {B, C}}",
        "@misc{a, title = {A}, author = {B, C}, year = {2000}",
        "@misc{a, title = {A}}, author = {B, C}, year = {2000}}",
        "@article{a, title = {A}, author = {B, C}, year = {2000}}",
        "@misc{a, title = {A}, author = {B, C}, year = {}}",
        "@misc{a, title = {A}, author = {B, C}, year = {2000}} and so on",
        "@misc{a, title = {A}, author = {B, C}, year = {2000}}\n" * 2,
    ],
)
def test_the_checker_is_strict(text: str) -> None:
    with pytest.raises((AssertionError, IndexError)):
        parse(text)


def test_papers_parse_and_are_all_used() -> None:
    papers = parse(PAPERS)
    assert [entry.key for entry in entries(PAPERS)] == list(papers)
    networks = [*MODELS, "wrn_16_2", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2", "timm/vit_tiny"]
    used = {key for data in DATA.values() for key in data.papers} | {k for n in networks for k in network_keys(n)}
    of_cards = {entry.key for card in all_cards() for entry in card.entries}
    studies = (REPOSITORY / "experiments" / "studies").glob("*.yaml")
    of_studies = {each.paper for path in studies for each in read_keys(path, ()).published}
    assert used | of_cards | of_studies | {*VIEW_PAPERS.values(), "sun2024logit"} == set(papers)


@pytest.mark.parametrize("model", MODELS)
def test_networks_of_our_own_have_one_paper(model: str) -> None:
    assert len(network_keys(model)) == (model not in WITHOUT_PAPER)


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("timm/resnet18", ["he2016deep", "wightman2019timm"]),
        ("timm/resnet50.a1_in1k", ["he2016deep", "wightman2019timm"]),
        ("timm/resnetv2_50", ["wightman2019timm"]),
        ("timm/wide_resnet50_2", ["zagoruyko2016wide", "wightman2019timm"]),
        ("timm/mobilenetv2_100", ["sandler2018mobilenetv2", "wightman2019timm"]),
        ("timm/repvgg_a0", ["wightman2019timm"]),
        ("resnet8x4", ["he2016deep"]),
        ("wrn_40_2", ["zagoruyko2016wide"]),
        ("vgg13", ["simonyan2015very"]),
        ("mobilenet_v2", ["sandler2018mobilenetv2"]),
        ("shufflenet_v1", ["zhang2018shufflenet"]),
        ("shufflenet_v2", ["ma2018shufflenet"]),
        ("lenet5_half", ["lecun1998gradient"]),
        ("plain10", ["mirzadeh2020takd"]),
    ],
)
def test_keys_of_networks(model: str, keys: list[str]) -> None:
    assert network_keys(model) == keys


def test_one_key_is_one_paper_everywhere() -> None:
    titles: dict[str, str] = {}
    for entry in entries(PAPERS):
        title = re.sub(r"\W+", " ", plain(entry.field("title"))).lower()
        assert titles.setdefault(entry.key, title) == title, entry.key
    keys = {title: [key for key, other in titles.items() if other == title] for title in titles.values()}
    assert {title: same for title, same in keys.items() if len(same) > 1} == {}


def test_cite_names_everything_once_by_first_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = "losses.extra=[{name: at}, {name: logit_mse, standardize: true}]"
    options = ["scheme=offline", "data=cifar100", "model=resnet20", "teacher.name=[resnet56,timm/vgg16]"]
    extra = ["losses.feature=hint", "losses.relation=rkd", more, "data.mixup=0.2", "data.cutout=8"]
    extra.append("data.auto_augment=trivialaugment")
    text = cite(tmp_path, capsys, *options, *extra)
    losses = loss_keys("kd", "hint", "rkd", "at", "logit_mse")
    networks = ["he2016deep", "simonyan2015very", "wightman2019timm"]
    augmentations = ["zhang2018mixup", "devries2017improved", "muller2021trivialaugment"]
    expected = ["hinton2015distilling", *losses, "sun2024logit", "krizhevsky2009learning", *networks, *augmentations]
    assert list(parse(text)) == list(dict.fromkeys(expected))
    assert text.startswith("% method offline/kd\n% loss kd (response)\n")
    assert "% loss rkd (relation)\n@" in text
    assert "% standardize=true of the loss logit_mse\n@inproceedings{sun2024logit," in text
    assert "% model resnet20\n% teacher resnet56\n@inproceedings{he2016deep," in text
    assert "% mixup=0.2\n@" in text


def test_cite_of_the_default_run_and_of_peers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["alpaydin1998optical", "pedregosa2011scikit"]
    assert list(parse(cite(tmp_path, capsys))) == ["zhang2018deep", *loss_keys("kd"), *data, "zagoruyko2016wide"]
    text = cite(tmp_path, capsys, "scheme.peers=[resnet20,timm/deit_tiny]", "data=fashion_mnist")
    networks = ["he2016deep", "wightman2019timm"]
    assert list(parse(text)) == ["zhang2018deep", *loss_keys("kd"), "xiao2017fashion", *networks]
    assert "% model timm/deit_tiny; also cite the network's paper\n@" in text


def test_cite_of_supervised_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["scheme=supervised", "data=image_folder", "data.root=images"]
    assert list(parse(cite(tmp_path, capsys, *folder))) == ["goodfellow2016deep"]
    smoothed = cite(tmp_path, capsys, *folder, "scheme.label_smoothing=0.1")
    assert list(parse(smoothed)) == ["goodfellow2016deep", "szegedy2016rethinking"]
    text = cite(tmp_path, capsys, *folder, "method=label_smoothing", "model=resnet18_cifar")
    assert list(parse(text)) == ["szegedy2016rethinking", "he2016deep"]
    assert text.startswith("% method supervised/label_smoothing\n% label_smoothing=0.1\n@inproceedings{szegedy")


@pytest.mark.parametrize(("scheme", "method"), [(scheme, method) for scheme in SCHEMES for method in SCHEMES[scheme]])
def test_every_method_is_cited(scheme: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = cite(tmp_path, capsys, f"scheme={scheme}", f"method={method}")
    parse(text)
    assert text.startswith(f"% method {scheme}/{method}\n")


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, table in KINDS.items() for n in table if n != "none"])
def test_every_loss_is_cited(kind: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = cite(tmp_path, capsys, "scheme=offline", f"losses.{kind}={name}")
    assert set(loss_keys(name)) <= parse(text).keys()
    assert f"% loss {name} ({kind})\n" in text


def test_the_folder_may_hold_a_finished_or_an_old_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("scheme:\n  name: offline\ndata:\n  name: cifar10\n")
    (tmp_path / "results.json").write_text("{}")
    assert cli.main(["cite", str(tmp_path)]) == 0
    assert "krizhevsky2009learning" in parse(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["has no config.yaml"]),
        (b"scheme: {name: off", ["damaged", "not YAML"]),
        (b"\xff\xfe\x00", ["damaged"]),
        (b"", ["damaged", "no keys"]),
        (b"- 1\n", ["damaged", "no keys"]),
        (b"1: 2\n", ["unknown key '1'"]),
        (b"scheme: {name: offlin}\n", ["unknown scheme 'offlin'", "'offline'"]),
        (b"data: 3\n", ["data=3"]),
        (b"losses: {response: {name: kd, temperature: -1}}\n", ["losses.response.temperature=-1"]),
    ],
)
def test_a_folder_that_is_no_run_is_reported_in_one_line(
    content: bytes | None, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    assert cli.main(["cite", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert [word for word in [str(tmp_path), *words] if word not in err] == []


def test_a_missing_folder_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cite", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"error: folder {tmp_path / 'nowhere'} not found: give a run folder\n"


def test_fields_names_and_accents() -> None:
    (entry,) = entries('@misc{a,\n  title = {The {B}ig\n    {One}},\n  author = {M{\\"u}ller, A. and Smith, B.},\n}')
    assert entry.field("title") == "The {B}ig {One}"
    assert entry.field("year") == ""
    assert entry.authors == "Müller & Smith"
    names = {"Last, A": "Last", "A. Last": "Last", "A, B and C, D and E, F": "A et al.", "{\\c{C}}elik, A": "Çelik"}
    for given, shown in names.items():
        assert Entry("a", f"@misc{{a,\n author = {{{given}}}\n}}").authors == shown


def test_a_name_stays_in_its_comment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = cite(tmp_path, capsys, "scheme=supervised", 'model="timm/x\\n@misc{evil,}\\x1b"')
    assert "% model timm/x\\n@misc{evil,}\\x1b" in said
    assert "evil" not in parse(re.sub("^%.*$", "", said, flags=re.MULTILINE))
