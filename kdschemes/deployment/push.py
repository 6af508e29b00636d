"""`kdschemes push`: a trained network on the Hugging Face Hub, with a model card from its run."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from kdschemes.deployment.card import card
from kdschemes.deployment.formats import Form
from kdschemes.deployment.opened import Trained, open_network
from kdschemes.errors import UserError, first_line, shown
from kdschemes.models import save_exits, save_weights
from kdschemes.storage.atomic import atomic_write
from kdschemes.storage.naming import HUB

DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
}
"""Names on the Hub of data sets that have one."""

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def push(
    run: Path,
    repository: str,
    *,
    head: str | None = None,
    best: bool = False,
    license_name: str = "unknown",
    private: bool = False,
    dry_run: Path | None = None,
) -> str:
    """Upload a head of a finished run to a model repository, created if it is not there; return its address.

    With `dry_run`, write what would be uploaded into that folder, and send nothing.

    Raises:
        UserError: the run has not finished, the repository's name is invalid, or the Hub refuses or is not reached.
    """
    from huggingface_hub import HfApi

    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"'{shown(repository)}' is no OWNER/NAME of the Hub: letters, digits, '-', '_' and '.'")
    trained = open_network(run, head=head, best=best)
    if trained.results is None:
        raise UserError(f"{run} has not finished, so its accuracy is unknown: finish training first")
    if dry_run is not None:
        if dry_run.exists() and any(dry_run.iterdir()):
            raise UserError(f"{dry_run} is not empty: give another folder, or remove it first")
        write_repository(trained, dry_run, repository, license_name)
        return f"{dry_run}: what kdschemes push would upload to {repository}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repository"
        write_repository(trained, folder, repository, license_name)
        api = HfApi()
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=f"{trained.head} of {trained.source.name}"
            )
        except Exception as error:  # no network, no permission, not logged in
            cure = "log in with `hf auth login`, or write a folder with --dry-run DIR"
            raise UserError(f"{repository} cannot be uploaded ({first_line(error)[:200]}): {cure}") from error
    return f"{done.commit_url}"


def write_repository(trained: Trained, folder: Path, repository: str, license_name: str) -> None:
    """Write the files of a repository: weights, exits if there are any, `config.json`, `README.md`.

    Raises:
        UserError: the folder cannot be written.
    """
    save_weights(trained.network, folder, metadata=trained.metadata)
    if trained.exits is not None:
        save_exits(trained.exits, folder)
    timms = trained.network.spec.name.startswith("timm/")
    form = Form("timm" if timms else "safetensors")
    text = card(trained, form, None, license_name, None, place=repository)
    atomic_write(folder / "README.md", f"---\n{_metadata(trained, repository, license_name)}\n---\n\n{text}".encode())


def _metadata(trained: Trained, repository: str, license_name: str) -> str:
    """Return the front matter of the model card."""
    from huggingface_hub import EvalResult, ModelCardData

    assert trained.config is not None
    config, timms = trained.config, trained.network.spec.name.startswith("timm/")
    name_of_data = str(trained.data_name)
    data = DATASETS.get(name_of_data, name_of_data)
    metrics = trained.accuracy("test") or {}
    results = [
        EvalResult("image-classification", name_of_data, data, name, metric_value=round(float(metrics[key]), 4))
        for name, key in (("accuracy", "top1"), ("mean_average_precision", "map"))
        if key in metrics
    ]
    more: dict[str, Any] = {"base_model": base} if (base := _base_model(trained)) else {}
    return str(
        ModelCardData(
            language=None,
            license=license_name,
            library_name="timm" if timms else "kdschemes",
            pipeline_tag="image-classification",
            tags=["image-classification", "knowledge-distillation", config.scheme.name, config.scheme.method],
            datasets=[data],
            metrics=["accuracy" if "top1" in metrics else "mean_average_precision"],
            model_name=repository.partition("/")[2] if results else None,
            eval_results=results or None,
            **more,
        )
    )


def _base_model(trained: Trained) -> str | None:
    """Return the Hub's name of the weights that training began with, if they are from there."""
    assert trained.config is not None
    model = trained.config.model
    if isinstance(model.checkpoint, str) and model.checkpoint.startswith(HUB):
        return model.checkpoint.removeprefix(HUB)
    if not model.pretrained or not model.name.startswith("timm/"):
        return None
    import timm

    published = timm.get_pretrained_cfg(model.name.removeprefix("timm/"))
    found: str | None = published.hf_hub_id if published is not None else None
    return found
