"""What many students under one teacher cost together, and what one costs with the teacher's answers stored.

`python -m experiments.bench_students packed` and `... cached` print ratios measured in one run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path

from experiments.bench import CLASSES, OFFLINE, PRECISIONS, SIDE, bare_parts, build, timed, train_one_epoch
from kdschemes.core.frozen import Frozen
from kdschemes.teacher_cache import TeacherCache
from kdschemes.teacher_cache.cache import LOGITS
from kdschemes.training.packing import share_teachers
from kdschemes.training.run import Run

ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
TEMPERATURES = (1, 2, 4, 8)
MOST = len(ALPHAS) * len(TEMPERATURES)


def students(
    precision: str, batch_size: int, steps: int, place: Path, keys: Sequence[str] = (), count: int = MOST
) -> list[Run]:
    """Return the first `count` of 20 runs, 5 alphas x 4 temperatures, under one ResNet-18, with more `keys`."""
    runs: list[Run] = []
    for number, (alpha, temperature) in enumerate(islice(product(ALPHAS, TEMPERATURES), count)):
        grid = (f"scheme.alpha={alpha}", f"losses.response.temperature={temperature}")
        run = build(precision, batch_size, steps, place / str(number), (*OFFLINE, *grid, *keys))
        share_teachers(run.scheme, [other.scheme for other in runs])
        runs.append(run)
    return runs


def bench_packed(batch_size: int, steps: int, rounds: int) -> None:
    """Print the time of 20 students in lockstep over that of 20 single runs, and the same of bare loops."""
    print(
        f"20 students under one ResNet-18, batch {batch_size}, {SIDE}x{SIDE}, {rounds} rounds, interleaved", flush=True
    )
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            runs = students(precision, batch_size, steps, Path(folder))
            single = build(precision, batch_size, steps, Path(folder) / "single", OFFLINE)
            parts = bare_parts(single)
            ours, bare, packed_seconds = [], [], []
            for number in range(rounds + 1):
                alone = timed(partial(train_one_epoch, [single], number))
                together = timed(partial(train_one_epoch, runs, number))
                seconds = {name: sum(timed(part) for _ in range(steps)) for name, part in parts.items()}
                learning = sum(seconds.values()) - seconds["teacher forward"]
                if number:
                    ours.append(together / (len(runs) * alone))
                    bare.append(
                        (seconds["teacher forward"] + len(runs) * learning) / (len(runs) * sum(seconds.values()))
                    )
                    packed_seconds.append(together)
            print(
                f"{precision}: {100 * statistics.median(ours):.1f} % of the time of {len(runs)} single runs "
                f"(rounds {' '.join(f'{100 * ratio:.1f}' for ratio in ours)}); "
                f"a bare loop {100 * statistics.median(bare):.1f} %; "
                f"{statistics.median(packed_seconds) / steps:.2f} s a step of all",
                flush=True,
            )


def bench_cached(batch_size: int, steps: int, rounds: int) -> None:
    """Print the time of a run that stores its teacher's answers, and of one that reads them, over a plain one's."""
    print(
        f"one student under a ResNet-18 whose logits are stored, batch {batch_size}, {SIDE}x{SIDE}, {rounds} rounds, "
        f"interleaved",
        flush=True,
    )
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            names = ("plain", "stores", "reads")
            runs = {name: build(precision, batch_size, steps, Path(folder) / name, OFFLINE) for name in names}
            for name in names[1:]:
                _store_predictions(runs[name], Path(folder) / "cache")
            ratios: dict[str, list[float]] = {name: [] for name in names}
            for number in range(rounds + 1):
                seconds = {name: timed(partial(train_one_epoch, [run], number)) for name, run in runs.items()}
                for name in names if number else ():
                    ratios[name].append(seconds[name] / seconds["plain"])
            stores, reads = (statistics.median(ratios[name]) for name in names[1:])
            print(
                f"{precision}: the run that stores takes {100 * stores:.1f} % of a plain run's time "
                f"(rounds {' '.join(f'{100 * ratio:.1f}' for ratio in ratios['stores'])}), one that reads "
                f"{100 * reads:.1f} % ({' '.join(f'{100 * ratio:.1f}' for ratio in ratios['reads'])}); "
                f"20 of them, one after the other, {100 * (stores + 19 * reads) / 20:.1f} % of 20 plain ones",
                flush=True,
            )


def _store_predictions(run: Run, place: Path) -> None:
    teacher = run.scheme.node_of("teacher")
    assert isinstance(teacher, Frozen)
    key = {"teacher": {"name": teacher.network.spec.name}, "data": {"name": "random"}, "seed": run.data.seed}
    precision, wanted = run.config.precision, {LOGITS: (CLASSES,)}
    teacher.cache = TeacherCache(
        place, key, run.data, teacher.compute, precision=precision, wanted=wanted, limit=float("inf"), rebuild=""
    )


def main() -> None:
    """Read the command line and run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_students", description=__doc__)
    parser.add_argument("what", choices=("packed", "cached"))
    parser.add_argument("--batch-size", type=int, default=128, help="samples of a step")
    parser.add_argument("--steps", type=int, default=2, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one that is not counted")
    options = parser.parse_args()
    bench = {"packed": bench_packed, "cached": bench_cached}[options.what]
    bench(options.batch_size, options.steps, options.rounds)


if __name__ == "__main__":
    main()
