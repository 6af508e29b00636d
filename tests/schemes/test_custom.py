"""Topologies as recipes in Python: the totals of the shipped ones, and what a recipe may and may not be."""

from __future__ import annotations

import py_compile
import re
from pathlib import Path

import pytest

from kdschemes.config.load import build_config, load_config
from kdschemes.config.naming import NOT_HASHED, to_tree
from kdschemes.errors import UserError
from kdschemes.storage.naming import run_name
from kdschemes.training.run_folder import check_same_config
from tests import REPOSITORY
from tests.losses import oracles
from tests.processes import run
from tests.schemes.cases import ARCHITECTURES, START, batch_for, build, trained
from tests.schemes.formulas import Formula, Seen, last

TOPOLOGIES = REPOSITORY / "experiments" / "topologies"


def topology(name: str, model: str = "resnet20") -> list[str]:
    """Return the overrides of a shipped topology on small networks."""
    teacher = ["teacher.name=resnet20"] if name.startswith("offline") else []
    return [f"experiment=topologies/{name}", f"model={model}", *teacher]


NAMES = sorted(path.stem for path in TOPOLOGIES.glob("*.py"))


def within(seen: Seen, network: str, *, hint: float) -> float:
    """Half CE and half KD at T = 3 of every exit from the deepest, and a hint to its map."""
    teacher, feature = last(seen.out[network])
    total = 0.0
    for name in ("exit1", "exit2"):
        student, own = last(seen.out[f"{network}/{name}"])
        labels = oracles.one_hot(seen.labels, student.shape[1])
        total += 0.5 * oracles.cross_entropy(student, labels) + 0.5 * oracles.kd(student, teacher, temperature=3.0)
        total += hint * oracles.hint(own, feature)
    return total


def offline_online(seen: Seen) -> float:
    teacher, *peers = (seen.logits(name) for name in ("teacher", "peer0", "peer1"))
    total = sum(oracles.cross_entropy(peer, oracles.one_hot(seen.labels, peer.shape[1])) for peer in peers)
    total += sum(0.5 * oracles.kd(peer, teacher, temperature=4.0) for peer in peers)
    return total + sum(0.5 * oracles.kd(a, b, temperature=4.0) for a, b in (peers, peers[::-1]))


def offline_self(seen: Seen) -> float:
    total = oracles.offline_kd(
        seen.logits("student"), [seen.logits("teacher")], [1.0], seen.labels, alpha=0.9, temperature=4.0
    )
    return total + within(seen, "student", hint=0.03)


def online_self(seen: Seen) -> float:
    peers = [seen.logits(name) for name in ("peer0", "peer1")]
    total = oracles.dml(peers, seen.labels, temperature=1.0)
    return total + sum(within(seen, name, hint=0.0) for name in ("peer0", "peer1"))


FORMULAS: dict[str, Formula] = {
    "topology-offline_online": offline_online,
    "topology-offline_self": offline_self,
    "topology-online_self": online_self,
}
EXACT = VARIANTS = {f"topology-{name}": topology(name) for name in NAMES}


MINE = """
from kdschemes.core.nodes import Network
from kdschemes.schemes.distill import Edge, distill
from kdschemes.schemes.networks import student_network

RECIPE = {"model": "resnet20", "losses.response": "kd", "losses.response.temperature": 2.0}


def topology(config, data_spec):
    nodes = {name: Network(name, student_network(config, data_spec, name)) for name in ("a", "b", "c")}
    edges = [Edge("a", "b"), Edge("b", "c"), Edge("c", "a")]
    labels = dict.fromkeys(nodes, 1.0)
    return distill(nodes, supervised=labels, edges=edges, losses=config.losses, heads="abc", data_spec=data_spec)
"""
SMALL = [
    "data.val_fraction=0.9",
    "data.train_fraction=1",
    "train.epochs=1",
    "train.batch_size=64",
    "train.num_threads=1",
]


def load(*arguments: str) -> object:
    return load_config(arguments, recipes=TOPOLOGIES.parent)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", NAMES)
def test_shipped_topologies_train_every_parameter_of_any_architecture(name: str, architecture: str) -> None:
    scheme = build(*topology(name, architecture), data_spec=ARCHITECTURES[architecture])
    scheme(batch_for(scheme, ARCHITECTURES[architecture]), START).total.backward()
    assert all(p.grad is not None for p in trained(scheme))
    assert any(node.provides[0] == scheme.heads[0] for node in scheme.nodes.values())


@pytest.mark.slow
def test_a_custom_recipe_is_found_named_and_run(tmp_path: Path) -> None:
    file = tmp_path / "ring.py"
    file.write_text(MINE)
    config = load(f"experiment={file}", "losses.response.temperature=3")
    assert (config.scheme.name, config.scheme.method, config.model.name) == ("topology", "ring", "resnet20")
    assert config.losses.response.temperature == 3.0
    assert run_name(config).startswith("topology-ring-digits-resnet20-seed0-")
    assert build_config(to_tree(config)) == config
    ended = run([f"experiment={file}", *SMALL], tmp_path / "run")
    assert (ended.code, ended.err) == (0, "")
    assert re.search(r"^\|.*\bc\b.*\|$", ended.out, flags=re.MULTILINE)
    (folder,) = (tmp_path / "run" / "runs").iterdir()
    config_file = f"experiment={folder / 'config.yaml'}"
    refused = run([config_file], tmp_path / "run")
    assert refused.code == 2
    command = refused.err.rpartition("allow it: ")[2].split()
    assert command == ["kdschemes", "train", "--allow", str(file), config_file]
    assert "this run is already finished" in run(command[2:], tmp_path / "run").out


def test_a_topology_runs_from_the_text_that_was_checked(tmp_path: Path) -> None:
    file, ran = tmp_path / "mine.py", tmp_path / "ran"
    file.write_text(f"open({str(ran)!r}, 'w').close()")
    other = Path(py_compile.compile(str(file), doraise=True))
    file.write_text(f"topology = 3  # {'x' * (len(file.read_text()) - len('topology = 3  # '))}")
    header = other.read_bytes()[:8] + int(file.stat().st_mtime).to_bytes(4, "little")
    other.write_bytes(header + file.stat().st_size.to_bytes(4, "little") + other.read_bytes()[16:])
    with pytest.raises(UserError, match="has no function topology"):
        build(f"experiment={file}")
    assert not ran.exists()


def test_another_file_is_another_run_and_another_place_is_not(tmp_path: Path) -> None:
    first, second = tmp_path / "ring.py", tmp_path / "elsewhere" / "ring.py"
    second.parent.mkdir()
    first.write_text(MINE)
    second.write_text(MINE)
    here, there = load(f"experiment={first}"), load(f"experiment={second}")
    assert run_name(here) == run_name(there)
    (tmp_path / "config.yaml").write_text(f"scheme: {to_tree(here)['scheme']}\n")
    check_same_config(tmp_path, {"scheme": to_tree(there)["scheme"]}, NOT_HASHED)
    first.write_text(MINE + "\n# changed\n")
    assert run_name(load(f"experiment={first}")) != run_name(there)
    with pytest.raises(UserError, match="has changed since this configuration was made"):
        build_config(to_tree(here))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def topology(:", "is not Python \\(line 1\\)"),
        ("RECIPE = {'seed': 1 + x}\n", "must be a dictionary of keys and plain values"),
        ("RECIPE = [1]\n", "must be a dictionary of keys and plain values"),
        ("RECIPE = {'losses.response': 'kdd'}\n", "unknown losses.response 'kdd'"),
        ("RECIPE = {'scheme.teacherr': True}\n", "unknown key 'scheme.teacherr'"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load(f"experiment={file}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("import nowhere\n", "cannot be imported .ModuleNotFoundError"), ("topology = 3\n", "has no function topology")],
)
def test_a_recipe_that_cannot_be_built_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        build(f"experiment={file}")
    assert "\n" not in str(caught.value)


def test_what_is_no_recipe_is_refused() -> None:
    for arguments, message in (
        (["scheme=topology"], "choose it with experiment="),
        (["experiment=topologies/offline_sell"], "did you mean 'topologies/offline_self'"),
        (["experiment=/nowhere.py"], "cannot be read"),
        (["experiment=topologies/online_self", "teacher=resnet20"], "teacher.name has no effect"),
    ):
        with pytest.raises(UserError, match=message):
            load(*arguments)


def test_an_edge_may_have_its_own_losses_in_place_of_the_topologys() -> None:
    scheme = build(*topology("offline_self"))
    weights = scheme(batch_for(scheme), START).weights
    assert weights["kd/teacher->student"] == 0.9
    assert weights["hint/student->student/exit1"] == 0.03
    assert "hint/teacher->student" not in weights
