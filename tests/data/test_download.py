"""Downloads: once, whole, under a temporary name."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from kdschemes.data.datasets import (
    Arrays,
    read_cifar,
)
from kdschemes.data.download import fetch
from kdschemes.errors import UserError
from tests.data.cases import Server, SmallCifar, assert_whole, one_line, place


def test_cifar_is_downloaded_once(small: SmallCifar, tmp_path: Path, server: Server) -> None:
    (server.folder / "small.tar.gz").write_bytes(small.archive)
    files = replace(small.files, url=server.url + "small.tar.gz")
    for _ in range(2):
        assert_whole(small, read_cifar(tmp_path / "deep" / "data", files))
    assert server.requests == ["/small.tar.gz"]


def test_cut_archive_and_damaged_files_are_fetched_anew(small: SmallCifar, tmp_path: Path, server: Server) -> None:
    (server.folder / "small.tar.gz").write_bytes(small.archive)
    files = replace(small.files, url=server.url + "small.tar.gz")
    folder = place(small, tmp_path / "data")
    (folder / "data_batch_1").write_bytes(b"cut")
    (tmp_path / "data" / "small.tar.gz").write_bytes(small.archive[:-100])
    assert_whole(small, read_cifar(tmp_path / "data", files))
    assert server.requests == ["/small.tar.gz"]


def test_whole_archive_that_lies_there_is_unpacked(small: SmallCifar, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "small.tar.gz").write_bytes(small.archive)
    assert_whole(small, read_cifar(tmp_path / "data", small.files))


def test_cut_download_is_refused_and_leaves_nothing(small: SmallCifar, tmp_path: Path, server: Server) -> None:
    (server.folder / "small.tar.gz").write_bytes(small.archive[: len(small.archive) // 2])
    with pytest.raises(UserError, match="MD5 differs") as error:
        read_cifar(tmp_path / "data", replace(small.files, url=server.url + "small.tar.gz"))
    assert str(tmp_path / "data") in one_line(error)
    assert [path.name for path in (tmp_path / "data").iterdir() if not path.name.startswith(".")] == []


def test_processes_that_start_together_download_once(small: SmallCifar, tmp_path: Path, server: Server) -> None:
    (server.folder / "small.tar.gz").write_bytes(small.archive)
    files = replace(small.files, url=server.url + "small.tar.gz")
    results: list[Arrays] = []
    threads = [threading.Thread(target=lambda: results.append(read_cifar(tmp_path / "data", files))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for arrays in results:
        assert_whole(small, arrays)
    assert server.requests == ["/small.tar.gz"]


def test_archive_with_other_contents_is_refused(small: SmallCifar, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "small.tar.gz").write_bytes(small.archive)
    with pytest.raises(UserError, match="test_batch is damaged or incomplete after unpacking"):
        read_cifar(tmp_path / "data", replace(small.files, test={"test_batch": "0" * 32}))


def test_fetch_names_a_missing_page(tmp_path: Path, server: Server) -> None:
    with pytest.raises(UserError, match="404") as error:
        fetch(server.url + "none.gz", tmp_path / "none.gz", "0" * 32)
    assert server.url in one_line(error)
    assert not list(tmp_path.glob("none*"))
