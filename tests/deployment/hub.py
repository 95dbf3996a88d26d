"""A stand-in for the Hugging Face Hub: as much of its HTTP interface as creating, filling and reading a model takes."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"
"""The access tokens of the user ``someone``: one may write, the other may not."""


class Hub:
    """Repositories with their branches and files, served on a free port.

    Attributes:
        files: The files of each commit.
        repositories: For each name whether it is ``private``, and its ``branches`` with their commits.
        messages: The messages of all commits.
        fetched: The paths of the files that were downloaded.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.repositories: dict[str, dict[str, Any]] = {}
        self.messages: list[str] = []
        self.fetched: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def create(self, name: str, private: bool = False) -> None:
        self.repositories[name] = {"private": private, "branches": {"main": self.commit({})}}

    def commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{len(self.files)}".encode()).hexdigest()
        self.files[oid] = files
        return oid

    def content(self, name: str, revision: str = "main") -> dict[str, bytes]:
        return self.files[self.repositories[name]["branches"][revision]]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, document: Any = None, content: bytes | None = None, **headers: str) -> None:
        body = json.dumps(document).encode() if content is None else content
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, message: str, **headers: str) -> None:
        self.answer(status, {"error": message}, X_Error_Message=message, **headers)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def may_write(self, name: str) -> bool:
        if self.token not in (WRITER, READER):
            self.refuse(401, "Invalid username or password.")
        elif self.token == READER or not name.startswith("someone/"):
            self.refuse(403, "You don't have the rights to create a model under this namespace")
        else:
            return True
        return False

    def repository(self, name: str) -> dict[str, Any] | None:
        """The repository if it may be read; the Hub does not tell private ones from missing ones."""
        found = self.hub.repositories.get(name)
        if found is None or (found["private"] and self.token not in (WRITER, READER)):
            self.refuse(404, "Repository not found", X_Error_Code="RepoNotFound")
            return None
        return found

    def commit_of(self, repository: dict[str, Any], revision: str) -> str | None:
        commit = repository["branches"].get(revision, revision)
        if commit not in self.hub.files:
            self.refuse(404, f"Invalid rev id: {revision}", X_Error_Code="RevisionNotFound")
            return None
        return commit

    def do_POST(self) -> None:
        path, content = unquote(urlsplit(self.path).path), self.body()
        parts = path.strip("/").split("/")
        if path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create(json.loads(content))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.batch(json.loads(content))
        elif parts[:2] == ["api", "models"]:
            name, what, revision = f"{parts[2]}/{parts[3]}", parts[4], "/".join(parts[5:])
            if self.may_write(name) and (repository := self.repository(name)):
                getattr(self, what)(name, repository, revision, content)
        else:
            self.refuse(404, path)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization'] or 'someone'}/{asked['name']}"
        if not self.may_write(name):
            return
        known = name in self.hub.repositories
        if not known:
            self.hub.create(name, asked.get("visibility") == "private")
        self.answer(409 if known else 200, {"url": f"{self.hub.url}/{name}", "name": name})

    def branch(self, name: str, repository: dict[str, Any], revision: str, content: bytes) -> None:
        known = revision in repository["branches"]
        repository["branches"].setdefault(revision, repository["branches"]["main"])
        self.answer(409 if known else 200, {})

    def preupload(self, name: str, repository: dict[str, Any], revision: str, content: bytes) -> None:
        files = json.loads(content)["files"]
        modes = {True: "lfs", False: "regular"}
        self.answer(200, {"files": [
            {"path": file["path"], "uploadMode": modes[file["path"].endswith(".safetensors")], "shouldIgnore": False}
            for file in files
        ]})  # fmt: skip

    def batch(self, asked: dict[str, Any]) -> None:
        self.answer(200, {"transfer": "basic", "objects": [
            {**each, "actions": {"upload": {"href": f"{self.hub.url}/objects/{each['oid']}"}}}
            for each in asked["objects"]
        ]})  # fmt: skip

    def do_PUT(self) -> None:
        content = self.body()
        self.hub.objects[hashlib.sha256(content).hexdigest()] = content
        self.answer(200, {})

    def commit(self, name: str, repository: dict[str, Any], revision: str, content: bytes) -> None:
        files = dict(self.hub.files[repository["branches"][revision]])
        for line in content.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.hub.objects[value["oid"]]
        oid = repository["branches"][revision] = self.hub.commit(files)
        self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        first, name, *rest = parts[2:] if api else parts
        name = f"{first}/{name}"
        if (repository := self.repository(name)) is None:
            return
        what, *rest = rest or [""]
        revision = rest[0] if rest else "main"
        if (commit := self.commit_of(repository, revision)) is None:
            return
        files = self.hub.files[commit]
        if what == "tree":
            self.answer(200, [{"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
                              for path, content in files.items()])  # fmt: skip
        elif api:
            self.answer(200, {"id": name, "sha": commit, "private": repository["private"]})
        elif "/".join(rest[1:]) in files:
            path = "/".join(rest[1:])
            if self.command == "GET":
                self.hub.fetched.append(path)
            self.answer(200, content=files[path], ETag=f'"{_oid(files[path])}"', X_Repo_Commit=commit)
        else:
            self.refuse(404, "Entry not found", X_Error_Code="EntryNotFound")

    do_HEAD = do_GET


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
