"""`kdschemes predict`: classes and probabilities of image files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kdschemes.deployment.images import Preparation
from kdschemes.deployment.opened import open_network
from kdschemes.errors import UserError
from kdschemes.tracking.tables import text_table


@dataclass(frozen=True)
class Predicted:
    """What `predict` found: the text to print, and a line for each image that could not be read."""

    text: str
    faults: list[str]


@torch.no_grad()
def predict(
    source: Path, images: Sequence[Path], *, head: str | None, best: bool, top: int, as_json: bool
) -> Predicted:
    """Return the `top` most probable classes of each image, as a table or JSON; images that fail do not stop others.

    Of a run with several labels per image, each class has a probability of its own.

    Raises:
        UserError: no such run, head or weights.
    """
    trained = open_network(source, head=head, best=best)
    prepare, network = Preparation(trained), trained.network
    names = trained.classes or tuple(str(number) for number in range(network.spec.num_classes))
    found, faults = [], []
    for path in images:
        try:
            logits = network(prepare(path)).double()
        except UserError as error:
            faults.append(str(error))
            continue
        several = (trained.results or {}).get("multi_label")
        probabilities = (logits.sigmoid() if several else logits.softmax(1))[0]
        best_ones = probabilities.topk(min(top, len(names)))
        ranked = zip(best_ones.indices.tolist(), best_ones.values.tolist(), strict=True)
        found.append((path, [(names[number], probability) for number, probability in ranked]))
    if as_json:
        listed = [
            {"image": str(path), "class": ranked[0][0], "probability": ranked[0][1]}
            | {"classes": [{"class": name, "probability": probability} for name, probability in ranked]}
            for path, ranked in found
        ]
        return Predicted(json.dumps(listed, indent=2), faults)
    rows = [[str(path), *(cell for name, p in ranked for cell in (name, f"{100 * p:.2f}"))] for path, ranked in found]
    count = min(top, len(names))
    titles = ["image", *(word for k in range(1, count + 1) for word in (f"class {k}", f"% of {k}"))]
    left = [title for title in titles if "%" not in title]
    return Predicted(text_table(titles, rows, left=left) if rows else "", faults)
