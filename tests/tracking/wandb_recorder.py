"""A recorder of what the installed W&B client sends: it answers as little as the client needs. It is no W&B server."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0" * 40
USER = {"id": "u", "name": "me", "username": "me", "email": "", "admin": False, "flags": "{}", "entity": "me"}
USER |= {"deletedAt": None, "apiKeys": {"edges": []}, "teams": {"edges": []}}


@dataclass
class Run:
    """What was sent of one run; `history` holds its rows in the order of their lines."""

    project: str
    upserts: list = field(default_factory=list)
    history: list = field(default_factory=list)
    config: str = "{}"
    summary: str = "{}"
    exit_code: int | None = None

    def facts(self):
        """The last value of each variable of `upsertBucket` that was ever given."""
        return {key: value for upsert in self.upserts for key, value in upsert.items() if value is not None}

    def values(self):
        return {key: entry["value"] for key, entry in json.loads(self.config).items()}


class Recorder:
    """Listens on a free port of the loopback. `refused`: ids of runs whose start is refused."""

    def __init__(self):
        self.runs, self.views, self.operations, self.heartbeats = {}, [], [], []
        self.refused, self.commands, self.sweep = set(), [], ""
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"recorder": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def environment(self):
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def graphql(self, name, variables, host):
        if name == "UpsertBucket":
            return self._upsert(variables)
        if name == "RunResumeStatus":
            found = self.runs.get(variables["name"])
            return {"model": self._project(variables["project"]) | {"bucket": found and self._bucket(variables, found)}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"http://{host}/upload/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        if name == "UpsertView2":
            self.views.append(variables)
            return {"upsertView": {"view": {"id": "view", "name": variables["name"]}, "inserted": True}}
        if name == "UpsertSweep":
            self.sweep = variables["config"]
            project = self._project(variables["projectName"])
            return {"upsertSweep": {"sweep": {"name": "s", "project": project}, "configValidationWarnings": []}}
        if name == "SweepWithRuns":
            sweep = {"id": "s", "name": variables["sweep"], "state": "RUNNING", "config": self.sweep}
            return {"project": {"sweep": sweep | {"runs": {"edges": []}}}}
        if name == "CreateAgent":
            return {"createAgent": {"agent": {"id": "agent"}}}
        if name == "Heartbeat":
            self.heartbeats.append(json.loads(variables["runState"]))
            command = self.commands.pop(0) if self.commands else None
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps([command] if command else [])}}
        return {"viewer": USER}

    def _upsert(self, variables):
        if variables["name"] in self.refused:
            return None
        found = self.runs.setdefault(variables["name"], Run(variables["project"]))
        found.upserts.append(variables)
        found.config = variables.get("config") or found.config
        return {"upsertBucket": {"bucket": self._bucket(variables, found), "inserted": len(found.upserts) == 1}}

    def _project(self, name):
        return {"id": "p", "name": name, "entity": {"id": "e", "name": "me"}}

    def _bucket(self, variables, run):
        return {
            "id": variables["name"],
            "name": variables["name"],
            "displayName": run.facts().get("displayName"),
            "description": "",
            "config": run.config,
            "sweepName": run.facts().get("sweep"),
            "project": self._project(variables["project"]),
            "summaryMetrics": run.summary,
            "historyLineCount": len(run.history),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "tags": run.facts().get("tags") or [],
            "notes": "",
            "wandbConfig": "{}",
        }

    def stream(self, name, sent):
        run, files = self.runs[name], sent.get("files") or {}
        if "wandb-history.jsonl" in files:
            part = files["wandb-history.jsonl"]
            rows = [json.loads(line) for line in part["content"]]
            run.history[part["offset"] : part["offset"] + len(rows)] = rows
        if "wandb-summary.json" in files:
            run.summary = files["wandb-summary.json"]["content"][-1]
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    recorder: Recorder

    def log_message(self, *arguments):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the client goes away without a word
            super().handle()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        status, answer = 200, {}
        with self.recorder.lock:
            if self.path == "/graphql":
                asked = json.loads(body)
                name = asked.get("operationName") or asked["query"].split("(")[0].split("{")[0].split()[-1]
                variables = asked.get("variables") or {}
                self.recorder.operations.append((name, variables.get("name")))
                data = self.recorder.graphql(name, variables, self.headers["Host"])
                status, answer = (200, {"data": data}) if data is not None else (403, {"errors": [{"message": "no"}]})
            elif self.path.endswith("/file_stream"):
                self.recorder.stream(self.path.split("/")[-2], json.loads(body))
        answer = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST
