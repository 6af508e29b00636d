"""`kdschemes cache list`: the existing caches and their sizes."""

from __future__ import annotations

from pathlib import Path

from kdschemes.errors import UserError
from kdschemes.teacher_cache.files import SUFFIX
from kdschemes.teacher_cache.folder import KEY, in_words, read_key, taken
from kdschemes.tracking.tables import text_table

COLUMNS = ("cache", "teacher", "data", "seed", "precision", "images", "epochs", "stored", "size")


def listing(root: Path) -> str:
    """Return a table of the caches in a folder, with their total size.

    Raises:
        UserError: the folder does not exist, or a cache in it is damaged.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give the folder of the caches (teacher.cache_dir)")
    folders = sorted(path.parent for path in root.glob(f"*/{KEY}"))
    rows = []
    for folder in folders:
        key = read_key(folder)
        names = [path.name.removesuffix(SUFFIX).partition(".") for path in sorted(folder.glob(f"epoch*{SUFFIX}"))]
        cells = (
            folder.name,
            str(key["teacher"]["name"]),
            str(key["data"]["name"]),
            str(key["seed"]),
            str(key["arithmetic"]["precision"]),
            f"{key['data']['samples']:,}",
            str(len({epoch for epoch, _, _ in names})),
            ", ".join(sorted({what for _, _, what in names})),
            in_words(taken(folder)),
        )
        rows.append(cells)
    total = f"{len(folders)} cache{'s' if len(folders) != 1 else ''} in {root}, {in_words(taken(root))}"
    table = text_table(COLUMNS, rows, left=("cache", "teacher", "data", "precision", "stored"))
    return "\n".join([table, total] if folders else [total])
