"""Study files: the runs they give, and errors in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdschemes.config.load import load_config
from kdschemes.config.naming import to_tree
from kdschemes.errors import UserError
from kdschemes.storage.naming import run_name
from kdschemes.study.prerequisites import with_prerequisites
from kdschemes.study.spec import StudyFile, find_study_file, read_study
from tests import REPOSITORY

EXPERIMENTS = REPOSITORY / "experiments"


def read(folder: Path, text: str, *overrides: str) -> StudyFile:
    path = folder / "mine.yaml"
    path.write_text(text)
    return read_study(path, overrides, recipes=EXPERIMENTS)


def error(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, text, *overrides)
    message = str(caught.value)
    assert message.startswith(f"study {folder / 'mine.yaml'}: ")
    assert "\n" not in message
    return message.removeprefix(f"study {folder / 'mine.yaml'}: ")


def test_runs_are_variants_times_grid_times_seeds_in_order(tmp_path: Path) -> None:
    text = """
        question: >
          What does alpha
          do?
        base: {scheme: offline, train: {epochs: 2}}
        variants:
          kd: {}
          dkd: {losses.response: {name: dkd, beta: 2}}
        grid: {scheme.alpha: [0.1, 1], optim.lr: [1.0e-5]}
        seeds: [3, 0]
    """
    study = read(tmp_path, text, "data.val_fraction=0.3", "output_dir=elsewhere")
    assert (study.name, study.keys.question, study.output) == ("mine", "What does alpha do?", Path("elsewhere"))
    assert [run.label for run in study.runs] == [
        f"{variant} alpha={alpha} lr=1.0e-05 seed={seed}"
        for variant in ("kd", "dkd")
        for alpha in ("0.1", "1")
        for seed in (3, 0)
    ]
    last = study.runs[-1]
    assert last.overrides == (
        *("scheme=offline", "train.epochs=2", "losses.response.name=dkd", "losses.response.beta=2"),
        *("scheme.alpha=1", "optim.lr=1.0e-05", "seed=0", "data.val_fraction=0.3", "output_dir=elsewhere"),
    )
    assert (last.variant, dict(last.grid), last.seed) == ("dkd", {"scheme.alpha": 1, "optim.lr": 1e-5}, 0)
    for run in study.runs:
        assert run.config == load_config(run.overrides, recipes=EXPERIMENTS)
        assert run.folder == run_name(run.config)
    assert len({run.folder for run in study.runs}) == 8


def test_a_variant_is_one_point_for_all_values_of_a_key_that_it_does_not_use(tmp_path: Path) -> None:
    text = "{question: Q, variants: {alone: {scheme: supervised}, taught: {scheme: offline}}, seeds: [0, 1], "
    text += "grid: {losses.response.temperature: [1, 4], optim.lr: [0.1, 0.2]}}"
    runs = read(tmp_path, text).runs
    points = [run.point for run in runs if run.seed == 0]
    assert points[:2] == ["alone lr=0.1", "alone lr=0.2"]
    assert points[2:] == [f"taught temperature={value} lr={rate}" for value in (1, 4) for rate in (0.1, 0.2)]
    assert [dict(run.grid) for run in runs[:3]] == [{"optim.lr": 0.1}, {"optim.lr": 0.1}, {"optim.lr": 0.2}]
    assert runs[0].overrides == ("scheme=supervised", "optim.lr=0.1", "seed=0")
    alone = "{question: Q, base: {scheme: supervised}, grid: {losses.response.temperature: [1, 4]}}"
    assert "scheme=supervised" in error(tmp_path, alone)
    text = (
        "{question: Q, variants: {alone: {scheme: supervised}, taught: {scheme: offline}}, grid: {scheme.KEY: [0, 1]}}"
    )
    assert [run.point for run in read(tmp_path, text.replace("KEY", "alpha")).runs][:2] == ["alone", "taught alpha=0"]
    assert "unknown key 'scheme.alhpa'; did you mean 'scheme.alpha'" in error(tmp_path, text.replace("KEY", "alhpa"))
    text = text.replace("scheme: offline", "scheme: supervised, optim.lr: 1").replace("KEY", "alpha")
    assert "'scheme.alpha' does not exist for scheme=supervised" in error(tmp_path, text)


def test_only_a_question_is_one_run_of_the_defaults(tmp_path: Path) -> None:
    (run,) = read(tmp_path, "question: Does it run?").runs
    assert (run.label, run.overrides, run.config) == ("seed=0", ("seed=0",), load_config([], recipes=EXPERIMENTS))


def test_a_recipe_is_a_base_or_a_variant(tmp_path: Path) -> None:
    short, other = "cifar100/resnet56_resnet20_short", "repdistiller/sp_vgg13_vgg8"
    text = f"{{question: Q, base: {{experiment: {short}, train.epochs: 3}}}}"
    (run,) = read(tmp_path, text, "teacher.checkpoint=hf_hub:a/x").runs
    assert (run.config.train.epochs, run.config.precision, run.config.model.name) == (3, "bf16", "resnet20")
    variants = f"{{a: {{experiment: {short}}}, b: {{experiment: {other}}}}}"
    text = f"{{question: Q, base: {{train.epochs: 3}}, variants: {variants}}}"
    a, b = read(tmp_path, text, "teacher.checkpoint=hf_hub:a/x").runs
    assert a.config == run.config
    assert (b.config.train.epochs, b.config.losses.relation.name, b.config.model.name) == (3, "sp", "vgg8")


def test_keys_of_one_name_are_distinguished_in_labels(tmp_path: Path) -> None:
    text = "{question: Q, base: {scheme: offline}, grid: {losses.feature.weight: [1], losses.response.weight: [2]}}"
    (run,) = read(tmp_path, text + "\n", "losses.feature=at").runs
    assert run.label == "losses.feature.weight=1 losses.response.weight=2 seed=0"


def test_shared_keys_are_left_out_where_a_scheme_does_not_use_them(tmp_path: Path) -> None:
    text = """
        question: Does a teacher help?
        base: {scheme: offline, teacher: resnet20, losses.response.temperature: 8}
        variants: {kd: {}, ce: {scheme: supervised}}
    """
    kd, ce = read(tmp_path, text, "teacher.epochs=1").runs
    assert (kd.config.teacher.name, kd.config.teacher.epochs) == ("resnet20", 1)
    assert ce.overrides == ("scheme=offline", "scheme=supervised", "seed=0")
    assert "teacher" not in to_tree(ce.config)
    message = error(tmp_path, "{question: Q, base: {scheme: supervised, teacher: resnet20}}")
    assert "teacher.name has no effect with scheme=supervised" in message
    message = error(tmp_path, text.replace("scheme: supervised", "scheme: supervised, teacher.seed: 1"))
    assert message.startswith("run 'ce seed=0': teacher.seed has no effect with scheme=supervised")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: {scheme: self}", ["question is missing"]),
        ("question: ''", ["question is missing"]),
        ("[1]", ["the file has no keys"]),
        ("question: [", ["the file is not YAML (line 1)"]),
        ("{question: Q, gird: {}}", ["unknown key 'gird'", "did you mean 'grid'?"]),
        ("{question: Q, base: [a]}", ["base must hold keys", "[a]"]),
        ("{question: Q, base: {seed: 1}}", ["base holds seed", "give seeds: [...]"]),
        ("{question: Q, base: {method: byot, scheme: {method: ce}}}", ["base sets scheme.method twice"]),
        ("{question: Q, variants: {}}", ["variants is empty"]),
        ("{question: Q, variants: {a: 3}}", ["variants.a must hold keys", "not 3"]),
        ("{question: Q, variants: {false: {}}}", ["variants: false is not a name", "quotes"]),
        ("{question: Q, variants: {a: {seed: 1}}}", ["variants.a holds seed"]),
        ("{question: Q, variants: {a: {output_dir: x}}}", ["variants.a holds output_dir"]),
        ("{question: Q, grid: {}}", ["grid is empty"]),
        ("{question: Q, grid: {train.epochs: 3}}", ["grid.train.epochs must be a list", "not 3"]),
        ("{question: Q, grid: {train.epochs: []}}", ["grid.train.epochs must be a list", "not []"]),
        ("{question: Q, grid: {seed: [1]}}", ["grid holds seed", "give seeds"]),
        (
            "{question: Q, grid: {scheme.method: [byot]}, variants: {a: {method: dml}}}",
            ["scheme.method is both in grid and in variants.a"],
        ),
        ("{question: Q, base: {data: digits}, grid: {data.name: [digits]}}", ["data.name is both in grid and in base"]),
        ("{question: Q, seeds: 3}", ["seeds must be a list of whole numbers", "not 3"]),
        ("{question: Q, seeds: []}", ["seeds must be a list"]),
        ("{question: Q, seeds: [true]}", ["seeds must be a list"]),
        ("{question: Q, seeds: [0, 1, 0]}", ["seeds holds 0 twice"]),
        (
            "{question: Q, grid: {optim.lr: ["
            + ",".join(map(str, range(1, 301)))
            + "], seed.x: ["
            + "1," * 300
            + "]}}",
            ["90,000 runs: a study has at most 4,000"],
        ),
        ("{question: Q, seeds: [" + "1," * 5_000 + "]}", ["5,000 seeds: a study has at most 4,000 runs"]),
        ("{question: Q, base: {" + ",".join(f"k{n}: 1" for n in range(2_000)) + "}}", ["base sets 2,000 keys"]),
        ("{question: Q, grid: {train.epochs: [1, 1]}}", ["'epochs=1 seed=0' is given twice"]),
        ("{question: Q, variants: {a: {}, b: {data: digits}}}", ["'a seed=0' and 'b seed=0' are the same run"]),
        ("{question: Q, grid: {scheme.peer: [2]}}", ["run 'peer=2 seed=0'", "scheme.peer", "did you mean"]),
        ("{question: Q, grid: {train.epochs: [0]}}", ["run 'epochs=0 seed=0'", "train.epochs=0 is not allowed"]),
        ("{question: Q, base: {experiment: cifar}}", ["unknown experiment 'cifar'"]),
        ("{question: Q, base: {precision: auto}}", ["run 'seed=0'", "precision=auto", "set precision=fp32 or bf16"]),
    ],
)
def test_mistakes_are_reported_in_one_line(text: str, words: list[str], tmp_path: Path) -> None:
    message = error(tmp_path, text)
    assert [word for word in words if word not in message] == []


def test_mistakes_on_the_command_line(tmp_path: Path) -> None:
    text = "{question: Q, grid: {data.val_fraction: [0.1, 0.2]}, variants: {a: {train.epochs: 1}}}"
    for word in ("seed=1", "seeds=[1]", "grid.model=[vgg8]"):
        assert error(tmp_path, text, word) == f"{word}: the study file sets it; copy the file and change it there"
    assert error(tmp_path, text, "data.val_fraction=0.3") == "data.val_fraction=0.3: data.val_fraction is in the grid"
    assert "unknown key 'train.epoch'" in error(tmp_path, text, "train.epoch=3")
    assert [run.config.train.epochs for run in read(tmp_path, text, "train.epochs=3").runs] == [3, 3]


def test_a_study_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert find_study_file("alpha_digits", EXPERIMENTS) == EXPERIMENTS / "studies" / "alpha_digits.yaml"
    with pytest.raises(UserError, match=r"unknown study 'alpha_digit'; did you mean 'alpha_digits'\?"):
        find_study_file("alpha_digit", EXPERIMENTS)
    with pytest.raises(UserError, match=r"study .*none\.yaml does not exist"):
        find_study_file(str(tmp_path / "none.yaml"), EXPERIMENTS)
    (tmp_path / "a b.yaml").write_text("question: Q")
    with pytest.raises(UserError, match="name the file with letters, digits"):
        find_study_file(str(tmp_path / "a b.yaml"), EXPERIMENTS)


def test_runs_that_come_first_are_found_once_and_in_order(tmp_path: Path) -> None:
    text = """
        question: Does a chain help?
        base: {scheme: offline, model: resnet20, teacher: resnet56}
        variants: {kd: {}, takd: {method: takd, "scheme.assistants": [resnet44, resnet32]}}
        seeds: [1, 2]
    """
    study = read(tmp_path, text)
    runs = with_prerequisites(study)
    first = [run for run in runs if run.earlier]
    assert [run.config.model.name for run in first] == ["resnet56", "resnet44", "resnet32"]
    teacher, assistant, last = (run.folder for run in first)
    assert [run.needs for run in first] == [(), (teacher,), (assistant,)]
    assert [run.needs for run in runs if not run.earlier] == [(teacher,), (teacher,), (last,), (last,)]
    assert [run.config for run in runs if not run.earlier] == [replace(run.config, group="mine") for run in study.runs]


def test_teachers_that_differ_in_more_than_their_names_are_distinguished(tmp_path: Path) -> None:
    study = read(tmp_path, "{question: Q, base: {scheme: offline}, grid: {teacher.optim.lr: [0.1, 0.2]}}")
    first = [run for run in with_prerequisites(study) if run.earlier]
    assert [run.config.optim.lr for run in first] == [0.1, 0.2]
    assert [run.label for run in first] == [run.folder for run in first]


def test_a_run_of_the_study_may_teach_others_of_it(tmp_path: Path) -> None:
    text = """
        question: Does a teacher help?
        base: {experiment: digits/study, scheme: offline, teacher: resnet20}
        variants: {kd: {}, teacher: {scheme: supervised, model: resnet20}}
    """
    kd, teacher = with_prerequisites(read(tmp_path, text))
    assert (kd.needs, teacher.needs, teacher.earlier) == ((teacher.folder,), (), False)


def test_an_unavailable_teacher_is_reported_with_the_run(tmp_path: Path) -> None:
    study = read(tmp_path, "{question: Q, base: {scheme: offline, method: dpkd}}")
    with pytest.raises(UserError, match=r"mine\.yaml: run 'seed=0': method=dpkd continues from a trained student"):
        with_prerequisites(study)


def test_each_peer_may_start_from_a_prerequisite(tmp_path: Path) -> None:
    text = """
        question: What do trained peers learn from each other?
        prerequisites: {a: {scheme: supervised, model: convnet}, b: {scheme: supervised, model: resnet20}}
        variants:
          both: {scheme.peers: [convnet, resnet20], model.checkpoint: [prerequisites.a, prerequisites.b]}
    """
    study = read(tmp_path, text)
    a, b = study.prerequisites
    (run,) = study.runs
    assert run.config.model.checkpoint == [a.path, b.path]
    assert study.needs(run.config) == (a.folder, b.folder)
    assert load_config(run.overrides, recipes=EXPERIMENTS) == run.config
    told = error(tmp_path, text.replace("[convnet, resnet20]", "[convnet, convnet]"))
    assert told == (
        "run 'both seed=0': model=convnet, but its weights are those of prerequisites.b, a resnet20: set model=resnet20"
    )
    assert error(tmp_path, text.replace("prerequisites.b]", "prerequisites.c]")).startswith(
        "unknown run of prerequisites in variants.both: model.checkpoint 'c'"
    )


def test_alpha_0_is_one_point_for_all_options_of_its_loss(tmp_path: Path) -> None:
    grid = "grid: {losses.response.temperature: [1, 4], scheme.alpha: [0, 0.5]}, seeds: [0, 1]}"
    study = read(tmp_path, f"{{question: Q, base: {{scheme: offline}}, baseline: alpha=0, {grid}")
    assert [run.point for run in study.runs if run.seed == 0] == [
        *("alpha=0", "temperature=1 alpha=0.5", "temperature=4 alpha=0.5")
    ]
    assert dict(study.runs[0].grid) == {"scheme.alpha": 0}
    assert study.runs[0].config.losses.response.temperature == 1, "the first: runs of earlier versions still count"
    both_ways = "{question: Q, base: {scheme: offline, method: partial_teacher}, "
    assert len(read(tmp_path, both_ways + grid).runs) == 8, "the student's soft term has no weight, the teacher's has"


def test_comparisons_are_planned_between_points(tmp_path: Path) -> None:
    text = "{question: Q, variants: {a: {train.epochs: 1}, b: {train.epochs: 2}}, compare: "
    assert read(tmp_path, text + "[[a, b]]}").keys.compare == (("a", "b"),)
    assert "unknown run in compare 'c'" in error(tmp_path, text + "[[a, c]]}")
    for wrong in ("{a: b}", "[a, b]", "[[a]]", "[[a, 1]]"):
        assert error(tmp_path, f"{text}{wrong}}}").startswith("compare must be a list of pairs of labels")
    assert "nothing is compared with itself" in error(tmp_path, text + "[[a, a]]}")
    assert error(tmp_path, text + "[[a, b], [a, b]]}").startswith("compare holds")
