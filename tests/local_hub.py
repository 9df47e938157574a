"""A hub of models on this machine, as far as huggingface_hub asks one: listings with checksums, files, gates."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_a-token-that-nobody-should-see"

LARGE = (".safetensors", ".bin", ".model")
"""Files that the hub keeps in another store, listed by sha256."""


@dataclass
class HeldModel:
    """A model that the hub holds in one commit, which its branch ``main`` names.

    Attributes:
        files: Name to content.
        served: Name to what is sent instead: files that were damaged on the way.
        gated: Files are given with :data:`TOKEN` alone.
        about: Further fields of the listing.
        commit: The commit.
        answers: Commit that listings tell, if another.
    """

    files: Mapping[str, bytes]
    served: Mapping[str, bytes] = field(default_factory=dict)
    gated: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    commit: str = COMMIT
    answers: str = ""

    def listing(self, name: str) -> dict[str, Any]:
        siblings = []
        for file, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": blob}
            if file.endswith(LARGE):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        gated = "auto" if self.gated else False
        return {"id": name, "sha": self.answers or self.commit, "gated": gated, "siblings": siblings, **self.about}


@dataclass
class LocalHub:
    """What is held, and what was asked for: method, path and token of each request."""

    models: Mapping[str, HeldModel]
    url: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def downloads(self, name: str) -> set[str]:
        """Files of a model whose content was sent."""
        starts = (f"/{name}/resolve/", f"/{name}/stored/")
        sent = [path for method, path, _ in self.asked if method == "GET" and path.startswith(starts)]
        return {path.rsplit("/", 1)[-1] for path in sent}


@contextmanager
def running(models: Mapping[str, HeldModel]) -> Iterator[LocalHub]:
    """The hub on 127.0.0.1."""
    hub = LocalHub(models)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Nothing."""

        def refuse(self, code: int, reason: str) -> None:
            self.send_response(code)
            self.send_header("X-Error-Code", reason)
            self.send_header("X-Error-Message", reason)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            hub.asked.append((self.command, path, token))
            parts = path.removeprefix("/api/models/").strip("/").split("/")
            name = "/".join(parts[:2])
            held, headers = hub.models.get(name), {}
            if held is None:
                self.refuse(401, "RepoNotFound")
            elif path.startswith("/api/models/"):
                if len(parts) > 3 and parts[3] not in ("main", held.commit, "v1"):
                    self.refuse(404, "RevisionNotFound")
                    return
                self.answer(json.dumps(held.listing(name)).encode(), {"Content-Type": "application/json"})
            elif parts[2:3] == ["stored"]:  # where the hub sends for large files; the address itself is the key
                self.answer(held.served.get(parts[-1], held.files[parts[-1]]), {})
            elif held.gated and token != TOKEN:
                self.refuse(403 if token else 401, "GatedRepo")
            elif parts[2:4] == ["resolve", held.commit] and parts[-1] in held.files:
                data = held.served.get(parts[-1], held.files[parts[-1]])
                headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": held.commit}
                if parts[-1].endswith(LARGE):
                    # Under another host's name, as the hub keeps large files elsewhere.
                    place = f"{hub.url.replace('127.0.0.1', 'localhost')}/{name}/stored/{parts[-1]}"
                    headers |= {"Location": place, "X-Linked-Size": str(len(data))}
                    headers |= {"X-Linked-ETag": f'"{hashlib.sha256(held.files[parts[-1]]).hexdigest()}"'}
                    self.answer(b"", headers, 302)
                else:
                    self.answer(data, headers)
            else:
                self.refuse(404, "EntryNotFound")

        do_HEAD = do_GET

        def answer(self, body: bytes, headers: Mapping[str, str], code: int = 200) -> None:
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def files_in(folder: Path) -> dict[str, bytes]:
    """The files of a folder, for a hub to hold."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
