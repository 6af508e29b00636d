"""Checks of the zip archives that `torch.save` writes."""

from __future__ import annotations

import zipfile
from pathlib import Path

from kdschemes.errors import UserError, first_line


def check_archive(path: Path) -> None:
    """Check that a file is an intact zip archive, stored without compression as `torch.save` writes it.

    Raises:
        UserError: the file cannot be read, is no zip archive, has compressed or overlapping members, or is damaged.
    """
    if fault := archive_fault(path):
        raise UserError(f"{path} is damaged or incomplete ({fault}): restore it from a copy, or make it again")


def archive_fault(path: Path) -> str | None:
    """Return what is wrong with an archive of `torch.save`; None if it is intact.

    A compressed member could expand to any size when it is read. Every member is compared with its CRC-32, which finds
    any flipped bit; `torch.load` itself ignores them.

    Raises:
        UserError: the archive has compressed members.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                    raise UserError(
                        f"{path} contains compressed data ({member.filename[:80]!r}), which torch.save never writes: "
                        "load it where it comes from and save it again with torch.save"
                    )
            if sum(member.file_size for member in members) > path.stat().st_size:
                return "its parts are larger than the file"
            bad = archive.testzip()
            return None if bad is None else f"{bad[:80]!r} does not match its checksum"
    except UserError:
        raise
    except Exception as error:  # a damaged directory can make zipfile fail in any way
        return first_line(error)[:80]
