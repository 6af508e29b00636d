"""What a new loss touches: options with a table line, implementation, builder line, card, and one test file, which
`tests.losses.table` finds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPOSITORY

PACKAGE = REPOSITORY / "kdschemes"

# ------------------------------------------------------------------------------------------------------------ a loss

OPTIONS = '''
@dataclass(frozen=True, kw_only=True)
class Reverse(Ramp):
    """Divergence of the teacher's output from the student's."""

    name: Literal["reverse"] = "reverse"
    weight: Weight = 1.0
    temperature: Temperature = 2.0
    standardize: Standardize = False
'''

FUNCTION = '''
"""The divergence the other way round."""

from kdschemes.core.precision import full_precision
from kdschemes.losses.response.divergence import divergence


@full_precision
def reverse(student, teacher, *, temperature):
    """Return the mean divergence of the student's softened output from the teacher's."""
    return divergence(teacher, student, temperature=temperature).mean()
'''

CARD = """---
name: reverse
kind: response
papers: [hinton2015distilling]
equation: |
  L = mean_n KL( softmax(z_n / T) || softmax(v_n / T) )
reference: nobody's `reverse`
---
# Reverse

The student pays for what the teacher rules out.
`losses.response=reverse`

## Paper

None.

## Equation

z are the student's logits, v the teacher's.

## Convention

Ours.

## Deviations

- None.
"""

TEST = """
import sys
from pathlib import Path

import torch

import kdschemes
from kdschemes import cli
from kdschemes.cards.read import markdown
from kdschemes.config.help import help_text
from kdschemes.config.load import load_config
from kdschemes.config.losses import KINDS, RESPONSE
from kdschemes.config.naming import dump_yaml
from kdschemes.core.loss import Endpoint
from kdschemes.core.types import Batch, Output, DataSpec
from kdschemes.losses.build import MODULES, build_loss

folder = sys.argv[1]
assert kdschemes.__file__.startswith(folder), kdschemes.__file__
assert ("response", "reverse") in [(kind, name) for kind, table in KINDS.items() for name in table]
config = load_config(["scheme=offline", "losses.response=reverse", "losses.response.temperature=3"], recipes=Path())
assert RESPONSE["reverse"] in MODULES
loss = build_loss(config.losses.response, student=Endpoint(), teacher=Endpoint(), data_spec=DataSpec(3, 1, 8))
z, v = Output(torch.tensor([[1.0, -2.0, 0.5]])), Output(torch.tensor([[0.0, 1.0, -1.0]]))
batch = Batch(torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.long), torch.arange(1))
p, q = ((x.logits / 3).softmax(1) for x in (z, v))
torch.testing.assert_close(loss(z, v, batch, lambda x: x), (p * (p / q).log()).sum())
assert "Divergence of the teacher's output from the student's." in help_text(["all"])
assert "nobody's `reverse`" in markdown()
assert cli.main(["methods"]) == 0
assert cli.main(["methods", "reverse"]) == 0
open(f"{folder}/config.yaml", "w").write(dump_yaml(config))
assert cli.main(["cite", folder]) == 0
"""


def insert(path: Path, before: str, text: str) -> None:
    content = path.read_text()
    at = content.index(before)
    path.write_text(content[:at] + text + content[at:])


@pytest.mark.slow
def test_a_loss_is_five_touch_points(tmp_path: Path) -> None:
    package = tmp_path / "kdschemes"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    options = package / "config" / "losses" / "response.py"
    insert(options, "RESPONSE = by_name(", OPTIONS.lstrip() + "\n\n")
    options.write_text(options.read_text().replace("RESPONSE = by_name(", "RESPONSE = by_name(Reverse, ", 1))
    (package / "losses" / "response" / "reverse.py").write_text(FUNCTION.lstrip())
    build = package / "losses" / "build.py"
    insert(build, "from kdschemes.losses.response.soft_ce", "from kdschemes.losses.response.reverse import reverse\n")
    insert(build, "    response.SoftCE:", "    response.Reverse: partial(LogitLoss, reverse),\n")
    (package / "cards" / "losses" / "reverse.md").write_text(CARD)
    test = tmp_path / "tests" / "losses" / "response" / "test_reverse.py"
    test.parent.mkdir(parents=True)
    test.write_text(TEST)

    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}

    command = [sys.executable, str(test), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "\nreverse  " in done.stdout
    assert "| temperature | 2.0 |" in done.stdout
    assert "% loss reverse (response)\n@misc{hinton2015distilling," in done.stdout
