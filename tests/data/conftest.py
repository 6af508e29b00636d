from __future__ import annotations

import pickle
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from kdschemes.data.datasets import (
    CIFAR10_FILES,
)
from tests.data.cases import NOWHERE, Server, SmallCifar, md5, names


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A web server over an empty folder that notes what it is asked for."""
    folder, requests = tmp_path / "www", []
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            requests.append(self.path)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield Server(folder, f"http://127.0.0.1:{httpd.server_port}/", requests)
        httpd.shutdown()
        thread.join()


@pytest.fixture
def small(tmp_path: Path) -> SmallCifar:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (100, 3072), np.uint8), np.arange(100) % 10
    parts = {"data_batch_1": slice(0, 40), "data_batch_2": slice(40, 80), "test_batch": slice(80, 100)}
    contents = {
        name: pickle.dumps({"data": images[part], "labels": labels[part].tolist()}) for name, part in parts.items()
    }
    contents["batches.meta"] = pickle.dumps({"label_names": names(10)})
    source = tmp_path / "small.tar.gz"
    with tarfile.open(source, "w:gz") as tar:
        for name, data in contents.items():
            path = tmp_path / name
            path.write_bytes(data)
            tar.add(path, f"cifar-10-batches-py/{name}")
    sums = {name: md5(data) for name, data in contents.items()}
    files = replace(
        CIFAR10_FILES,
        url=NOWHERE + "small.tar.gz",
        archive_md5=md5(source.read_bytes()),
        train={name: sums[name] for name in ("data_batch_1", "data_batch_2")},
        test={"test_batch": sums["test_batch"]},
        meta={"batches.meta": sums["batches.meta"]},
    )
    return SmallCifar(files, source.read_bytes(), contents, images.reshape(-1, 3, 32, 32), labels)
