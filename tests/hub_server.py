"""A stand-in for the hub's HTTP API, as far as huggingface_hub uses it to make a repository, push a folder and fetch
it: for tests, since no hub can be reached from them. Everything is kept in memory.

    with hub() as server:      # server.url for HF_ENDPOINT; server.files(repo) -> {path: bytes}
        ...

A token "reader" may read, "writer" may write, too; "org/private" is shown to neither. Files of more than 1,000 bytes
go by LFS, as large ones do on the hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 1_000  # bytes


class Hub:
    """Repositories by name, each a list of commits (revision, {path: content})."""

    def __init__(self) -> None:
        self.repos: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.url = ""

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repos.get(repo, [])
        if revision == "main":
            return commits[-1] if commits else None
        return next((commit for commit in commits if commit[0] == revision), None)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        found = self.at(repo, revision)
        return found[1] if found else {}

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> str:
        files = dict(self.files(repo))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
        told = repr((len(self.repos[repo]), sorted(files.items()))).encode()
        revision = hashlib.sha1(told).hexdigest()
        self.repos[repo].append((revision, files))
        return revision


def card_errors(content: str) -> list[dict[str, str]]:
    """What the hub would say of the metadata of a README.md: they are an object, of the types that it knows."""
    import yaml

    head = yaml.safe_load(content.split("---\n")[1])
    wrong = not isinstance(head, dict) or not isinstance(head.get("language", []), list | str)
    return [{"message": "metadata are not an object with a list of languages"}] if wrong else []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code: str) -> None:
        self.answer(404, {"error": code}, X_Error_Code=code)

    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def route(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        chunked = "chunked" in (self.headers.get("Transfer-Encoding") or "")
        body = self.chunks() if chunked else self.rfile.read(length)
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        parts = path.split("/")
        if self.command in ("POST", "PUT") and self.token() != "writer" and parts[0] != "upload":
            self.answer(401 if not self.token() else 403, {"error": "no right to write"})
        elif path == "api/repos/create":
            self.create(json.loads(body))
        elif path == "api/validate-yaml":
            self.answer(200, {"errors": card_errors(json.loads(body)["content"]), "warnings": []})
        elif parts[0] == "upload":
            self.hub.large[parts[1]] = body
            self.answer(200, {})
        elif parts[:2] == ["api", "models"]:
            self.api("/".join(parts[2:4]), parts[4:], body)
        elif path.endswith("info/lfs/objects/batch"):
            self.batch(json.loads(body))
        elif len(parts) > 4 and parts[2] == "resolve":
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.missing("EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = route

    def chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        known = repo in self.hub.repos
        if not known:
            self.hub.repos[repo] = [("0" * 40, {})]
        self.answer(409 if known else 200, {"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo})

    def api(self, repo: str, rest: list[str], body: bytes) -> None:
        if repo not in self.hub.repos:
            self.missing("RepoNotFound")
            return
        kind, revision = (rest or ["revision"])[0], rest[1] if len(rest) > 1 else "main"
        found = self.hub.at(repo, revision)
        if found is None:
            self.missing("RevisionNotFound")
        elif kind == "revision":
            names = [{"rfilename": name} for name in found[1]]
            self.answer(200, {"id": repo, "modelId": repo, "sha": found[0], "siblings": names, "private": False})
        elif kind == "tree":
            self.answer(200, [self.entry(name, content) for name, content in found[1].items()])
        elif kind == "preupload":
            files: list[dict[str, Any]] = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] > LARGE else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files, "commitOid": found[0]})
        elif kind == "commit":
            made = self.hub.commit(repo, [json.loads(line) for line in body.splitlines() if line])
            url = f"{self.hub.url}/{repo}/commit/{made}"
            self.answer(200, {"success": True, "commitOid": made, "commitUrl": url, "hookOutput": ""})
        else:
            self.missing("EntryNotFound")

    def entry(self, name: str, content: bytes) -> dict[str, Any]:
        found = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if len(content) > LARGE:
            found["lfs"] = {
                "oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130
            }  # fmt: skip
        return found

    def batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.url}/upload/{each['oid']}", "header": {}}}}
            for each in asked["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def resolve(self, repo: str, revision: str, name: str) -> None:
        found = self.hub.at(repo, revision)
        if found is None or name not in found[1]:
            self.missing("EntryNotFound" if found else "RevisionNotFound")
            return
        content = found[1][name]
        self.answer(
            200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=found[0],
            X_Linked_Size=str(len(content)),
        )  # fmt: skip


@contextmanager
def hub() -> Iterator[Hub]:
    known = Hub()
    handler = type("Bound", (Handler,), {"hub": known})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    known.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield known
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
