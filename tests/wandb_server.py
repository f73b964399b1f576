"""As much of a W&B server as its client needs to upload runs: answers what is asked, keeps what was said."""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from local_server import JsonHandler, serving

KEY = "0" * 40


class WandbServer(ThreadingHTTPServer):
    """runs: what each run was begun with, by its id; artifacts: ids by (name, digest); uses: (run, artifact's name)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[tuple[str, str], str] = {}
        self.uses: set[tuple[str, str]] = set()
        self.views: list[dict[str, Any]] = []

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}", "WANDB_API_KEY": KEY}

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL operation."""
        given = variables.get("input", variables)
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else ""
        if name == "Viewer":
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if name == "UpsertBucket":
            self.runs[given["name"]] = {**self.runs.get(given["name"], {}), **{k: v for k, v in given.items() if v}}
            project = {"id": "p", "name": "sttabt", "entity": {"id": "e", "name": "me"}}
            run = {"id": given["name"], "name": given["name"], "displayName": "", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": run, "inserted": True}}
        if name == "ArtifactType":
            return {"project": None}
        if name == "CreateArtifact":
            key = (given["artifactCollectionName"], given["digest"])
            found_id = self.artifacts.setdefault(key, f"artifact{len(self.artifacts)}")
            sequence = {"id": "s", "latestArtifact": {"id": found_id, "versionIndex": 0}}
            return {
                "createArtifact": {"artifact": {"id": found_id, "state": "COMMITTED", "artifactSequence": sequence}}
            }
        if name == "UseArtifact":
            (artifact,) = [own for (own, _), each in self.artifacts.items() if each == given["artifactID"]]
            self.uses.add((given["runName"], artifact))
            return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}
        if name == "UpsertView2":
            self.views.append(given)
            return {"upsertView": {"view": {"id": "v", "name": given["name"]}, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": each, "uploadUrl": f"{self.environment['WANDB_BASE_URL']}/up"} for each in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}


class _Handler(JsonHandler, BaseHTTPRequestHandler):  # which says why its methods are called so
    server: WandbServer

    def do_PUT(self) -> None:
        self.read_body()
        self.write_json({})

    def do_POST(self) -> None:
        body = self.read_body()
        if self.path != "/graphql":
            self.write_json({"exitcode": None, "limits": {}})
            return
        asked = json.loads(body)
        self.write_json({"data": self.server.answer(asked["query"], asked.get("variables") or {})})


def wandb_server() -> AbstractContextManager[WandbServer]:
    """A server on a free port of this machine."""
    return serving(WandbServer())
