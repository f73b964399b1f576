"""As much of the Hugging Face hub as its client needs to put a repository there and to fetch files of it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from local_server import JsonHandler, serving


class HubServer(ThreadingHTTPServer):
    """repositories: contents of files by name, by id; created: what repositories were asked for; tokens: given."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.large: dict[str, bytes] = {}  # by SHA-256

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(JsonHandler, BaseHTTPRequestHandler):  # which says why its methods are called so
    server: HubServer

    def do_POST(self) -> None:
        body, path = self.read_body(), urlsplit(self.path).path
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.server.created.append({each: asked.get(each) for each in ("name", "organization", "visibility")})
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories[name] = {}
            self.write_json({"url": f"{self.server.address}/{name}"})
        elif path.endswith("/preupload/main"):
            files = [each["path"] for each in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in files}
            self.write_json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            upload = [
                {**each, "actions": {"upload": {"href": f"{self.server.address}/lfs/{each['oid']}"}}}
                for each in objects
            ]
            self.write_json({"transfer": "basic", "objects": upload})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            files = self.server.repositories[found[1]]
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    files[line["value"]["path"]] = self.server.large[line["value"]["oid"]]
            url = f"{self.server.address}/{found[1]}"
            self.write_json({"commitUrl": f"{url}/commit/{_commit(files)}", "commitOid": _commit(files)})
        else:
            self.write_json({})

    def do_PUT(self) -> None:
        body = self.read_body()
        self.server.large[hashlib.sha256(body).hexdigest()] = body
        self.write_json({})

    def do_HEAD(self) -> None:
        self._file(send=False)

    def do_GET(self) -> None:
        if urlsplit(self.path).path.startswith("/api/"):
            self.write_json({"tags": [], "siblings": [], "id": ""})
        else:
            self._file(send=True)

    def _file(self, send: bool) -> None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", urlsplit(self.path).path)
        files = self.server.repositories.get(found[1]) if found else None
        if found is None or files is None or found[3] not in files:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if files is None else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = files[found[3]]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", _commit(files))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send:
            self.wfile.write(body)


def _commit(files: dict[str, bytes]) -> str:
    """Of this state of a repository, as git's are long."""
    return hashlib.sha1(repr(sorted(files)).encode()).hexdigest()


def hub_server() -> AbstractContextManager[HubServer]:
    """A server on a free port of this machine."""
    return serving(HubServer())
