"""What the tests of trackers share: rows of a log, trackers, events."""

from __future__ import annotations

import json
import struct

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from kdschemes.config.load import build_config
from kdschemes.tracking.trackers import Trackers


def train(step, **more):
    return {"kind": "train", "step": step, "epoch": step / 10, "lr": 0.1, "loss/kd/teacher->student": 1 / step, **more}


def val(step, top1):
    return {"kind": "eval", "split": "val", "epoch": step // 10, "step": step, "student/exit1/top1": top1}


def trackers(folder, *names, resume_step=0):
    folder.mkdir(parents=True, exist_ok=True)
    scheme = {"name": "offline", "method": "kd"}
    config = build_config({"scheme": scheme, "train": {"epochs": 2}, "tracker": list(names)})
    return Trackers(config, folder, primary_head="student", resume_step=resume_step)


def events(folder):
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


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
