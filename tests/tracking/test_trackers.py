from __future__ import annotations

import json
import math
import os
import resource
import socket
import struct
import subprocess
import sys
import time

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from kdschemes.config.load import build_config
from kdschemes.errors import UserError
from kdschemes.tracking.metrics_log import MetricsLog, read_rows
from kdschemes.tracking.trackers import Trackers
from tests import REPOSITORY


def train(step, **more):
    return {"kind": "train", "step": step, "epoch": step / 10, "lr": 0.1, "loss/kd/teacher->student": 1 / step, **more}


def val(step, top1):
    return {"kind": "eval", "split": "val", "epoch": step // 10, "step": step, "student/exit1/top1": top1}


# metrics.jsonl


def test_lines_read_back_exactly(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    rows = [
        {"kind": "train", "step": 1, "loss/total": 0.1 + 0.2, "loss/b": 1e-300, "loss/a": 1 / 3},
        {"kind": "eval", "split": "val", "student/nll": -math.inf, "student/kl": math.inf},
        {"kind": "final", "heads": {"student": [math.nan, 1]}},
    ]
    for count, row in enumerate(rows, start=1):
        log.write(row)
        assert path.read_bytes().count(b"\n") == count  # flushed
        assert log.offset == path.stat().st_size
    log.sync()
    log.close()
    found = read_rows(path)
    assert found[:2] == rows[:2]
    assert [list(row) for row in found] == [list(row) for row in rows]
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert '["nan", 1]' in path.read_text()


def test_going_on_gives_the_bytes_of_a_run_that_was_not_stopped(tmp_path):
    whole = MetricsLog(tmp_path / "whole.jsonl")
    for step in range(1, 9):
        whole.write(train(step))
    first = MetricsLog(tmp_path / "cut.jsonl")
    for step in range(1, 5):
        first.write(train(step))
    offset = first.offset
    first.write(train(5))
    first.close()
    with (tmp_path / "cut.jsonl").open("ab") as file:
        file.write(b'{"kind": "tra')
    second = MetricsLog(tmp_path / "cut.jsonl", offset=offset)
    assert second.offset == offset == (tmp_path / "cut.jsonl").stat().st_size
    for step in range(5, 9):
        second.write(train(step))
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    whole.close()
    second.close()


def test_a_new_run_starts_an_empty_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("old\n")
    MetricsLog(path).close()
    assert path.read_bytes() == b""


def test_a_log_that_is_not_the_checkpoint_s(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="has 0 bytes, but the checkpoint recorded 4"):
        MetricsLog(path, offset=4)
    assert not path.exists()
    path.write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(UserError, match="has 18 bytes, but the checkpoint recorded 19"):
        MetricsLog(path, offset=19)
    with pytest.raises(UserError, match="byte 5 is not the end of a line"):
        MetricsLog(path, offset=5)
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n'
    MetricsLog(path, offset=9).close()
    assert path.read_text() == '{"a": 1}\n'


def test_a_log_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        MetricsLog(tmp_path / "missing" / "metrics.jsonl")
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(train(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: File too large"):
            log.write(train(2, text="x" * 300))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.close()
    assert read_rows(tmp_path / "metrics.jsonl") == [train(1)]


def test_read_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_rows(path)
    path.write_text('{"kind": "train", "a": "inf"}\n{"b": 2')
    assert read_rows(path) == [{"kind": "train", "a": math.inf}]
    for broken in ('{"a": 1}\n{"b"\n{"c": 3}\n', '{"a": 1}\n[2]\n'):
        path.write_text(broken)
        with pytest.raises(UserError, match=r"metrics\.jsonl line 2 is not a JSON object"):
            read_rows(path)


# trackers


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A user who is not logged in to W&B, with a home of their own; any use of the network but loopback fails."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")  # set here, so that it is undone
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    yield monkeypatch
    wandb.teardown()


def trackers(folder, *names, resume_step=0):
    folder.mkdir(parents=True, exist_ok=True)
    scheme = {"name": "offline", "method": "kd"}
    config = build_config({"scheme": scheme, "train": {"epochs": 2}, "tracker": list(names)})
    return Trackers(config, folder, primary_head="student", resume_step=resume_step)


def records(path):
    """The records of an offline run's file: 7 bytes of head, then LevelDB's log format in blocks of 32 KiB."""
    data, position, part, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if room < 7 or kind == 0:
            position += room
            continue
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            found.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return found


def items(found):
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in found}


def history(path):
    rows = [items(record.history.item) for record in records(path) if record.WhichOneof("record_type") == "history"]
    return [{key: value for key, value in row.items() if key not in ("_timestamp", "_runtime")} for row in rows]


def wandb_files(output):
    return sorted((output / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)


def test_wandb_offline_keeps_every_row(alone, tmp_path):
    tracker = trackers(tmp_path / "runs" / "r1", "wandb")
    for step in range(1, 11):
        tracker.log(train(step, note="text", flag=True), step)
    tracker.log(val(10, 60.0), 10)
    tracker.log(val(20, 55.0), 20)
    tracker.log({"which": "best"} | val(20, 61.0) | {"kind": "final"}, 20)  # beside the curve, not on it
    tracker.summary({"heads": {"student": {"last": {"test": {"top1": 54.0}, "val": None}}}, "run": "r1"})
    tracker.finish()

    (path,) = wandb_files(tmp_path / "runs")
    rows = history(path)
    assert [row["global_step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20]
    assert rows[1] == {
        "_step": 2,
        "global_step": 2,
        "train/epoch": 0.2,
        "train/lr": 0.1,
        "train/loss/kd/teacher->student": 0.5,
    }
    assert rows[9]["train/loss/kd/teacher->student"] == 0.1
    assert [row.get("val/student/exit1/top1") for row in rows[9:]] == [60.0, 55.0]
    assert rows[10]["final/best/val/student/exit1/top1"] == 61.0

    found = records(path)
    run = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    model = items(run.config.update)["model"]["name"]
    assert (run.project, run.job_type, run.display_name) == ("kdschemes", "offline", "r1")
    assert run.run_group == f"offline-kd-digits-{model}"
    assert list(run.tags) == ["offline", "kd", "digits", model]
    assert run.run_id == (tmp_path / "runs" / "r1" / "wandb_run_id").read_text()
    assert items(run.config.update)["train"]["epochs"] == 2
    defined = {record.metric.name or record.metric.glob_name: record.metric for record in found}
    assert {name: m.step_metric for name, m in defined.items() if name} == {
        "global_step": "",
        "final/*": "global_step",
        "train/*": "global_step",
        "val/*": "global_step",
    }
    summary = {}
    for record in found:
        if record.WhichOneof("record_type") == "summary":
            summary |= items(record.summary.update)
    assert summary["val/student/exit1/top1"] == 55.0
    assert summary["heads/student/last/test/top1"] == 54.0
    assert "heads/student/last/val" not in summary
    (end,) = [record.exit for record in found if record.WhichOneof("record_type") == "exit"]
    assert end.exit_code == 0


def test_wandb_run_that_goes_on_keeps_its_id(alone, tmp_path):
    folder = tmp_path / "runs" / "r1"
    first = trackers(folder, "wandb")
    first.log(train(1), 1)
    first.finish(preempted=True)
    name = (folder / "wandb_run_id").read_text()
    time.sleep(1.1)  # W&B names its folders by the second
    second = trackers(folder, "wandb", resume_step=1)
    second.log(train(2), 2)
    second.finish(exit_code=1)
    other = trackers(tmp_path / "runs" / "r2", "wandb")
    other.finish()

    paths = wandb_files(tmp_path / "runs")
    assert [path.stem == f"run-{name}" for path in paths] == [True, True, False]
    assert [row["global_step"] for path in paths[:2] for row in history(path)] == [1, 2]
    kinds = [[record.WhichOneof("record_type") for record in records(path)] for path in paths]
    assert ["preempting" in kind for kind in kinds] == [True, False, False]
    codes = [next(r.exit.exit_code for r in records(path) if r.HasField("exit")) for path in paths]
    assert codes == [143, 1, 0]


def test_wandb_that_cannot_be_reached_goes_on_offline(alone, tmp_path):
    with socket.socket() as closed:  # bound, never listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        alone.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        alone.setenv("WANDB_API_KEY", "0" * 40)
        alone.setattr("kdschemes.tracking.wandb_run.INIT_TIMEOUT", 2.0)
        with pytest.warns(RuntimeWarning, match="W&B cannot start online .*connection refused.*: offline"):
            tracker = trackers(tmp_path / "runs" / "r1", "wandb")
        tracker.log(train(1), 1)
        tracker.finish()
    (path,) = wandb_files(tmp_path / "runs")
    assert [row["global_step"] for row in history(path)] == [1]


def test_wandb_mode_is_the_user_s(alone, tmp_path):
    alone.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="WANDB_MODE=online, but no key is known"):
        trackers(tmp_path / "runs" / "r1", "wandb")
    alone.setenv("WANDB_API_KEY", "short")
    with pytest.raises(UserError, match="WANDB_API_KEY") as error:
        trackers(tmp_path / "runs" / "r1", "wandb")
    assert "\n" not in str(error.value)
    wandb.teardown()  # the client reads the mode once
    alone.setenv("WANDB_MODE", "disabled")
    tracker = trackers(tmp_path / "runs" / "r1", "wandb")
    tracker.log(train(1), 1)
    tracker.finish()
    assert wandb_files(tmp_path / "runs") == []


def test_a_tracker_that_fails_warns_once_and_the_training_goes_on(alone, tmp_path):
    tracker = trackers(tmp_path / "runs" / "r1", "wandb", "tensorboard")
    tracker._mirrors["wandb"]._run.finish()  # W&B refuses rows of a finished run
    with pytest.warns(RuntimeWarning, match=r"tracker wandb failed .*metrics\.jsonl continues"):
        tracker.log(train(1), 1)
    for step in (2, 3):
        tracker.log(train(step), step)  # a second warning would be an error
    tracker.finish()
    assert [e.step for e in events(tmp_path / "runs" / "r1").Scalars("train/lr")] == [1, 2, 3]


def events(folder):
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def test_tensorboard_has_every_row(tmp_path):
    tracker = trackers(tmp_path / "r1", "tensorboard")
    for step in range(1, 11):
        tracker.log(train(step), step)
    tracker.log(val(10, 60.0), 10)
    tracker.log(val(10, math.nan) | {"split": "test"}, 10)
    tracker.summary({"heads": {"student": {"top1": 54.0}}})
    tracker.finish()
    found = events(tmp_path / "r1")
    tags = {"test/student/exit1/top1", "train/lr", "train/loss/kd/teacher->student", "val/student/exit1/top1"}
    assert {tag for tag in found.Tags()["scalars"] if "epoch" not in tag} == tags
    losses = found.Scalars("train/loss/kd/teacher->student")
    assert [event.step for event in losses] == list(range(1, 11))
    assert [event.value for event in losses] == pytest.approx([1 / step for step in range(1, 11)])
    assert math.isnan(found.Scalars("test/student/exit1/top1")[0].value)
    assert b'"epochs": 2' in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert b'"heads/student/top1": 54.0' in found.Tensors("results/text_summary")[0].tensor_proto.string_val[0]


def test_tensorboard_forgets_what_came_after_the_checkpoint(tmp_path):
    first = trackers(tmp_path / "r1", "tensorboard")
    for step in range(1, 9):
        first.log(train(step), step)
    first.finish(preempted=True)
    time.sleep(1.1)  # event files are read in the order of their names, which hold the second
    second = trackers(tmp_path / "r1", "tensorboard", resume_step=4)
    for step in range(5, 7):
        second.log(train(step, lr=0.5), step)
    second.finish()
    found = [(event.step, event.value) for event in events(tmp_path / "r1").Scalars("train/lr")]
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in found] == pytest.approx([0.1] * 4 + [0.5] * 2)


def test_tensorboard_of_a_run_that_starts_again(tmp_path):
    for value in (0.1, 0.5):
        tracker = trackers(tmp_path / "r1", "tensorboard")
        tracker.log(train(1, lr=value), 1)
        tracker.finish()
        time.sleep(1.1)
    assert [event.value for event in events(tmp_path / "r1").Scalars("train/lr")] == [0.5]


def test_no_tracker_imports_neither_package(tmp_path):
    code = (
        "import sys; from pathlib import Path; from kdschemes.config.load import build_config\n"
        "from kdschemes.tracking.trackers import Trackers\n"
        "t = Trackers(build_config({}), Path('.'), primary_head='a')\n"
        "t.log({'kind': 'train', 'step': 1}, 1); t.summary({}); t.finish()\n"
        "print(sorted({'wandb', 'tensorboard', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout == "[]\n"


def test_a_missing_package_names_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['tensorboard'] = None; sys.modules['wandb'] = None\n"
        "from pathlib import Path; from kdschemes.config.load import build_config\n"
        "from kdschemes.tracking.trackers import Trackers\n"
        "for name in ('tensorboard', 'wandb'):\n"
        "    try:\n"
        "        Trackers(build_config({'tracker': [name]}), Path(sys.argv[1]), primary_head='a')\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.splitlines() == [
        'UserError tracker=tensorboard needs the package tensorboard: pip install "kdschemes[tensorboard]"',
        "UserError tracker=wandb needs the package wandb: pip install wandb",
    ]
