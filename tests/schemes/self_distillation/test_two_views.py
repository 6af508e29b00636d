"""Networks that see a second batch in a step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from kdschemes.core.types import Batch
from tests.losses import oracles
from tests.schemes.cases import base, batch_for, build, network_of
from tests.schemes.formulas import array
from tests.schemes.self_distillation.cases import outputs_of


def test_two_views_share_one_forward_pass_and_its_statistics() -> None:
    scheme = build(*base("self", "ddgsd")).train()
    batch = batch_for(scheme)
    out = outputs_of(scheme, batch)
    images = torch.cat([batch.images, batch.aux_batches["view1"].images])
    logits, features = network_of(build(*base("self", "ddgsd")).train(), "student").forward_stages(images)
    assert torch.equal(torch.cat([out["student"].logits, out["student/view1"].logits]), logits)
    assert torch.equal(out["student/view1"].features["layer2"], features["layer2"][6:])


@pytest.mark.parametrize("method", ["ddgsd", "dlb"])
def test_mixed_labels_count_in_every_view(method: str) -> None:
    scheme = build(*base("self", method))

    def mixed(batch: Batch) -> Batch:
        return dataclasses.replace(
            batch,
            partner_labels=(batch.labels + 1) % 10,
            mix=torch.full((len(batch),), 0.25, dtype=torch.float64),
            aux_batches={name: mixed(aux_batch) for name, aux_batch in batch.aux_batches.items()},
        )

    batch = mixed(batch_for(scheme))
    out = outputs_of(scheme, batch)
    for term in scheme.terms:
        if term.name.startswith("ce/"):
            labels = torch.cat([b.labels for b in term.batches(batch)])
            target = 0.25 * np.eye(10)[labels] + 0.75 * np.eye(10)[(labels + 1) % 10]
            rows = torch.cat([out[name].logits for name in term.reads])
            assert term(out, batch).item() == pytest.approx(oracles.cross_entropy(array(rows), target), rel=1e-10)
