"""Links that are right on GitHub are right on the site."""

from __future__ import annotations

import pytest

from links import GITHUB, rewrite


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("models", "[a](decisions/defaults.md)", "[a](decisions/defaults.md)"),
        ("models", "[a](concepts.md#the-total-loss)", "[a](concepts.md#the-total-loss)"),
        ("decisions/losses", "[a](../several_processes.md)", "[a](../several_processes.md)"),
        ("models", "[a](losses.md)", "[a](methods/index.md)"),
        ("decisions/losses", "[a](../../README.md#studies)", "[a](../index.md)"),
        ("concepts", "[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
        ("contributing", "[a](docs/gpu_session.md)", "[a](gpu_session.md)"),
        ("slurm_scripts", "[a](../docs/decisions/run_folder.md)", "[a](decisions/run_folder.md)"),
        ("models", "[a](../kdschemes/cards/losses/kd.md)", "[a](losses/kd.md)"),
        ("methods/ban", "[a](../losses/kd.md)", "[a](../losses/kd.md)"),
        ("models", "[a](../slurm/site.example.sh)", f"[a]({GITHUB}/blob/main/slurm/site.example.sh)"),
        ("contributing", "[a](tests/reference/README.md)", f"[a]({GITHUB}/blob/main/tests/reference/README.md)"),
        ("models", "[a](../experiments)", f"[a]({GITHUB}/tree/main/experiments)"),
        ("results/README", "![a](../curves.png)", "![a](../curves.png)"),
        (
            "models",
            "[a](https://example.org/x.md) and [b](#weights)",
            "[a](https://example.org/x.md) and [b](#weights)",
        ),
        ("models", "[a](nowhere.md)", "[a](nowhere.md)"),
    ],
)
def test_a_link(page: str, text: str, expected: str) -> None:
    assert rewrite(text, page) == expected
