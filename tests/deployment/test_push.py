"""The folder of a model repository, and its upload to a local recorder that answers like the Hub."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdschemes import cli
from kdschemes.models import load_exit_model, load_model

pytestmark = pytest.mark.slow


@dataclass
class Recorder:
    """What was sent: the repository's creation, and the files of the commit by name."""

    address: str = ""
    created: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    refuses: bool = False


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Record what the Hub's client sends, as it would send it to huggingface.co."""
    recorder = Recorder()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = 200, self.answer(body)
            if recorder.refuses:
                status, answer = 403, {"error": "you may not write here"}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def answer(self, body: bytes) -> dict[str, Any]:
            if self.path.endswith("/repos/create"):
                recorder.created = json.loads(body)
                return {"url": f"{recorder.address}/me/digits", "name": "me/digits", "id": "1"}
            if "/preupload/" in self.path:
                paths = [file["path"] for file in json.loads(body)["files"]]
                return {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
            if "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        recorder.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                address = f"{recorder.address}/me/digits/commit/1"
                return {"success": True, "commitOid": "1", "commitUrl": address, "hookOutput": ""}
            return {"errors": [], "warnings": []}

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    recorder.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", recorder.address)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    yield recorder
    server.shutdown()
    thread.join()
    server.server_close()


def front_matter(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_a_dry_run_writes_the_repository(with_exits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["push", str(with_exits), "me/digits", "--dry-run", str(tmp_path / "repository"), "--license", "mit"]
    assert cli.main(words) == 0
    assert "would upload to me/digits" in capsys.readouterr().out
    names = {"model.safetensors", "config.json", "exits.safetensors", "exits.json", "README.md"}
    assert {path.name for path in (tmp_path / "repository").iterdir()} == names
    assert load_exit_model(tmp_path / "repository").exit_stages == load_exit_model(with_exits).exit_stages
    text = (tmp_path / "repository" / "README.md").read_text()
    card = front_matter(text)
    assert (card["license"], card["library_name"], card["datasets"]) == ("mit", "kdschemes", ["digits"])
    assert {"self", "byot", "knowledge-distillation"} <= set(card["tags"])
    (metric,) = card["model-index"][0]["results"][0]["metrics"]
    assert f"{metric['value']:.2f}" in text
    assert 'load_model(snapshot_download("me/digits"))' in text
    assert cli.main(words) == 2
    assert "is not empty" in capsys.readouterr().err


def test_an_upload_to_a_recorder(offline: Path, hub: Recorder, tmp_path: Path) -> None:
    assert cli.main(["push", str(offline), "me/digits", "--private"]) == 0
    assert (hub.created["name"], hub.created["organization"]) == ("digits", "me")
    assert "private" in (hub.created.get("visibility"), "private" if hub.created.get("private") else None)
    assert hub.files.keys() == {"model.safetensors", "config.json", "README.md"}
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    own, sent = load_model(offline).state_dict(), load_model(tmp_path).state_dict()
    assert all(bool((own[name] == sent[name]).all()) for name in own)


def test_what_is_refused(offline: Path, hub: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.refuses = True
    for words, message in (
        ([str(offline), "me/digits"], "log in with `hf auth login`"),
        ([str(offline), "digits"], "is no OWNER/NAME"),
        ([str(offline), "me/dig its"], "is no OWNER/NAME"),
        ([str(tmp_path), "me/digits"], "is not a run folder"),
    ):
        assert cli.main(["push", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
