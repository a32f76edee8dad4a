"""A hub of one's own: serves folders as repositories, over the few endpoints that the hub's client asks for.

With `HF_ENDPOINT` at its address, `huggingface_hub`, `datasets` and `transformers` load from it, without a mock:

    with MiniHub(folder) as hub:
        subprocess.run(..., env={**os.environ, **hub.environment(cache)})

`folder/datasets/owner/name` is the dataset `owner/name`, `folder/models/owner/name` the model.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|refs)(?:/([^/]+)(?:/(.+))?)?)?")
FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class MiniHub:
    """Runs in a thread while it is entered.

    Args:
        folder: what it serves; files may change while it runs, and with them the commit.

    Attributes:
        asked: method and path of every request, in order.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, cache):
        """The variables with which a process asks this hub, and keeps what it gets in `cache`."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def repository(self, kind, name):
        """The folder of a repository, or None."""
        folder = self.folder / kind / name
        return folder if folder.is_dir() else None

    def commit(self, kind, name):
        """The commit that a repository is at: a digest of its files."""
        digest = hashlib.sha1(f"{kind}/{name}".encode())
        for file in files_of(self.repository(kind, name)):
            digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()


def files_of(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: MiniHub

    def do_HEAD(self):
        self._serve()

    def do_GET(self):
        self._serve()

    def do_POST(self):
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, *_):
        pass

    def _serve(self, body=b""):
        self.hub.asked.append(f"{self.command} {self.path}")
        split = urlsplit(self.path)
        path = unquote(split.path)
        if found := API.fullmatch(path):
            self._api(*found.groups(), body=body, recursive="recursive" in parse_qs(split.query))
        elif found := FILE.fullmatch(path):
            self._file(found[1] or "models", *found.groups()[1:])
        else:
            self._missing("EntryNotFound")

    def _api(self, kind, name, what, revision, below, *, body, recursive):
        folder = self._at(kind, name, revision)
        if folder is None:
            return
        commit = self.hub.commit(kind, name)
        paths = {file.relative_to(folder).as_posix(): file for file in files_of(folder)}
        if what == "tree":
            start = f"{below}/" if below else ""
            inside = [path for path in paths if path.startswith(start)]
            if below and not inside:
                self._missing("EntryNotFound")
                return
            folders = {parent.as_posix() for path in inside for parent in list(Path(path).parents)[:-1]}
            folders = {one for one in folders if one.startswith(start)}
            kept = inside
            if not recursive:
                folders = {one for one in folders if "/" not in one[len(start) :]}
                kept = [path for path in inside if "/" not in path[len(start) :]]
            self._json([*(_folder(path) for path in sorted(folders)), *(_entry(path, paths[path]) for path in kept)])
        elif what == "paths-info":
            self._json([entry for path in _asked_paths(body, self.headers) for entry in _info(path, paths)])
        elif what == "refs":
            self._json({"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": commit}], "tags": []})
        else:
            siblings = [{"rfilename": path} for path in paths]
            self._json({"_id": commit[:24], "id": name, "sha": commit, "siblings": siblings, "private": False})

    def _file(self, kind, name, revision, path):
        folder = self._at(kind, name, revision)
        if folder is None:
            return
        file = folder / path
        if not file.is_file():
            self._missing("EntryNotFound")
            return
        content = file.read_bytes()
        headers = {"X-Repo-Commit": self.hub.commit(kind, name), "ETag": f'"{_oid(file)}"', "Accept-Ranges": "bytes"}
        wanted = RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted is None:
            self._send(200, content, headers)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        self._send(206, content[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"})

    def _at(self, kind, name, revision):
        """The repository's folder, if it is there and at this revision."""
        folder = self.hub.repository(kind, name)
        if folder is None:
            self._missing("RepoNotFound")
            return None
        if revision not in (None, "main", self.hub.commit(kind, name)):
            self._missing("RevisionNotFound")
            return None
        return folder

    def _missing(self, code):
        self._send(404, json.dumps({"error": code}).encode(), {"X-Error-Code": code, "X-Error-Message": code})

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status, content, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(file):
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _entry(path, file):
    return {"type": "file", "path": path, "size": file.stat().st_size, "oid": _oid(file)}


def _folder(path):
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _info(path, paths):
    if path in paths:
        return [_entry(path, paths[path])]
    return [_folder(path)] if any(one.startswith(f"{path}/") for one in paths) else []


def _asked_paths(body, headers):
    as_json = "json" in headers.get("Content-Type", "")
    paths = json.loads(body)["paths"] if as_json else parse_qs(body.decode())["paths"]
    return [paths] if isinstance(paths, str) else paths
