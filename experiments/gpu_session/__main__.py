"""One command for a machine with one GPU: correctness, speed, the ResNet-18 teacher, the studies with it.

`python -m experiments.gpu_session --minutes 13 --out DIR --data ROOT` runs the parts one after the other, each within
its share of the time that is left, and writes `session.json` and `PART.json` into DIR as it goes. The same command
resumes where it stopped and repeats nothing that is finished. ROOT holds `cifar-100-python`; without it the parts that
need it are named as not reached.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from experiments.gpu_session.carry import CARRIED, carry
from experiments.gpu_session.record import REPOSITORY, Record, Task
from kdschemes.errors import UserError
from kdschemes.storage.atomic import atomic_write

SHARES = {"correctness": 2.0, "speed": 2.0, "teacher": 5.5, "studies": 3.5}
"""Minutes of each part in a session of 13; what one leaves over goes to those after it."""

CLOSING = 0.04
"""Share of the time that is kept to save and stop."""

PATIENCE = 30.0
"""Seconds after which a part that was asked to stop is ended."""

LEAST = 5.0
"""Seconds with which a part is worth starting."""

ROUNDS = 2
"""How often a part is started at most: once for its share, once more for what the others have left over."""

CIFAR = Path("cifar-100-python") / "train"


class Session:
    """The parts in DIR, and the clock."""

    def __init__(self, out: Path, data: Path, minutes: float, *, rehearse: bool) -> None:
        self.out, self.data, self.rehearse = out, data, rehearse
        self.path = out / "session.json"
        self.tree: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        if self.tree.setdefault("rehearse", rehearse) != rehearse:
            kinds = ("a rehearsal", "a session") if rehearse else ("a session", "a rehearsal")
            raise UserError(f"{out} has {kinds[1]}, and this is {kinds[0]}: give another --out")
        self.started, self.end = time.monotonic(), time.time() + 60 * minutes * (1 - CLOSING)
        self.parts: dict[str, dict[str, Any]] = self.tree.setdefault("parts", {})
        self.calls: list[dict[str, Any]] = self.tree.setdefault("calls", [])
        self.calls.append({"started": datetime.now(UTC).isoformat(timespec="seconds"), "minutes": minutes})
        self.child: subprocess.Popen[bytes] | None = None
        self.received: int | None = None

    def run(self) -> int:
        """Run what is left of each part; return the exit code: 0 if everything is finished as it should be."""
        self._write()
        for _ in range(ROUNDS):
            todo = [part for part in SHARES if self._look(part)["state"] != "finished"]
            while todo and self.received is None:
                part, *later = todo
                share = SHARES[part] / sum(SHARES[each] for each in todo)
                todo = later
                seconds = share * (self.end - time.time())
                why = self._obstacle(part, seconds)
                if why is None:
                    why = self._start(part, time.time() + seconds)
                self.parts[part]["why"] = why
                self._write()
        print("\n".join(self._summary()), flush=True)
        if self.received is not None:
            return 128 + self.received
        return int(any(part["state"] != "finished" or part["wrong"] for part in self.parts.values()))

    def stop(self, number: int, _: FrameType | None) -> None:
        """Stop the part that runs, and start no other."""
        self.received = number
        if self.child is not None:
            self.child.terminate()

    def _obstacle(self, part: str, seconds: float) -> str | None:
        """Return why a part cannot start; None if it can."""
        if seconds < LEAST:
            return "the time is over"
        if part in ("teacher", "studies") and not self.rehearse and not (self.data / CIFAR).is_file():
            return f"no CIFAR-100: {self.data / CIFAR} is missing"
        if part == "studies" and self._look("teacher")["state"] != "finished":
            return "the teacher is not finished"
        return None

    def _start(self, part: str, until: float) -> str:
        """Run a part until it ends by itself, or for its time and the patience to save; return how it ended."""
        task = Task(out=self.out, data=self.data, until=until, rehearse=self.rehearse)
        print(f"{part}: {until - time.time():.0f} s", flush=True)
        paths = [str(CARRIED), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # read when a process first multiplies, before a run can set it
            "TORCHINDUCTOR_CACHE_DIR": str(self.out / "compiled"),
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", f"experiments.gpu_session.{part}", *task.words]
        with (self.out / f"{part}.log").open("ab") as log:
            self.child = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=log, start_new_session=True
            )
            try:
                code = self.child.wait(max(0.0, until - time.time()) + PATIENCE)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.child.pid, signal.SIGKILL)
                code = self.child.wait()
        self.child = None
        return f"{part}.log, exit code {code}"

    def _look(self, part: str) -> dict[str, Any]:
        """Return the state of a part as its record has it."""
        record = Record.read(self.out / f"{part}.json")
        found = self.parts.setdefault(part, {})
        left = record.left(gpu=self._has_gpu)
        found["state"] = "not reached" if not record.planned else "stopped" if left else "finished"
        found |= {
            "items": len(record.planned),
            "left": left,
            "wrong": [name for name, each in record.items.items() if each.get("ok") is False],
            "not_run": {name: each["not_run"] for name, each in record.items.items() if "not_run" in each},
        }
        if found["state"] == "finished":
            found.pop("why", None)
        return found

    @property
    def _has_gpu(self) -> bool:
        return any(Path("/dev").glob("nvidia[0-9]*"))

    def _summary(self) -> Iterator[str]:
        for part, found in self.parts.items():
            done = found["items"] - len(found["left"])
            why = f" ({found['why']})" if "why" in found else ""
            yield f"{part}: {found['state']}{why}" + (f", {done} of {found['items']} items" if found["items"] else "")
            yield from (f"  not reached: {name}" for name in found["left"])
            yield from (f"  NOT as it should be: {name}" for name in found["wrong"])
            yield from (f"  not run here: {name} ({why})" for name, why in found["not_run"].items())

    def _write(self) -> None:
        for part in SHARES:
            self._look(part)
        self.calls[-1]["seconds"] = round(time.monotonic() - self.started, 1)
        self.tree["not_reached"] = [
            *(part for part, found in self.parts.items() if found["state"] == "not reached"),
            *(f"{part}: {name}" for part, found in self.parts.items() for name in found["left"]),
        ]
        atomic_write(self.path, (json.dumps(self.tree, indent=1) + "\n").encode())


def main(words: list[str] | None = None) -> int:
    """Run the session, or make the folder of packages to carry; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu_session", description=__doc__)
    parser.add_argument("--minutes", type=float, default=13.0, help="how long this call may take")
    parser.add_argument("--out", type=Path, help="folder of the results, and of what the same command resumes from")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds cifar-100-python")
    parser.add_argument("--rehearse", action="store_true", help="the same on tiny networks and images, on any machine")
    parser.add_argument("--carry", type=Path, metavar="FOLDER", help=f"make the folder of packages ({CARRIED.name})")
    parser.add_argument("--python", default="3.12", help="--carry: the version of Python there")
    options = parser.parse_args(words)
    try:
        if options.carry is not None:
            print(carry(options.carry, options.python))
            return 0
        if options.out is None or options.minutes <= 0:
            raise UserError("give --out DIR, and --minutes above 0")
        if find_spec("pydantic") is None and not CARRIED.is_dir():
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise UserError(
                f"pydantic is not installed, and there is no folder {CARRIED.name}: make it where there is a network, "
                f"python -m experiments.gpu_session --carry {CARRIED.name} --python {version}"
            )
        options.out.mkdir(parents=True, exist_ok=True)
        out, data = options.out.resolve(), options.data.expanduser().resolve()
        session = Session(out, data, options.minutes, rehearse=options.rehearse)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, session.stop)
        return session.run()
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
