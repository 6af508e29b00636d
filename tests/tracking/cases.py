"""What the tests of trackers share: rows of a log, trackers, events."""

from __future__ import annotations

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdschemes.tracking.trackers import Trackers


def train(step, **more):
    return {"kind": "train", "step": step, "epoch": step / 10, "lr": 0.1, "loss/kd/teacher->student": 1 / step, **more}


def val(step, top1):
    return {"kind": "eval", "split": "val", "epoch": step // 10, "step": step, "student/exit1/top1": top1}


def trackers(folder, *names, resume_step=0, config=None):
    folder.mkdir(parents=True, exist_ok=True)
    return Trackers(
        list(names),
        run_name=folder.name,
        folder=folder,
        project="kdschemes",
        group="offline-kd",
        job_type="offline",
        tags=["kd", "digits"],
        config=config or {"train": {"epochs": 2}, "teacher": None},
        resume_step=resume_step,
    )


def events(folder):
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found
