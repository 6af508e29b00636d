"""Downloads from the Hugging Face Hub: announced, and not tried for long where there is no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def fetch(repository: str, names: Sequence[str]) -> Path:
    """Return the local path of the first of the named files that a repository has; it is downloaded once.

    Raises any error of the hub's client: no network, no such repository, no permission.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    for name in names:
        if isinstance(there := try_to_load_from_cache(repository, name), str):
            return Path(there)
    published = announce(repository)
    return Path(hf_hub_download(repository, next((name for name in names if name in published), names[0])))


def announce(repository: str) -> set[str]:
    """Say that a repository that is not here is downloaded, and return its files.

    Asked first, because a download without a network is tried five times, for 25 s, and timm does so four times.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE

    if any(Path(HF_HUB_CACHE, f"models--{repository.replace('/', '--')}", "snapshots").glob("*/*")):
        return set()
    print(f"downloading {repository} from the Hugging Face Hub", flush=True)
    return {file.rfilename for file in HfApi().model_info(repository, timeout=10).siblings or ()}
