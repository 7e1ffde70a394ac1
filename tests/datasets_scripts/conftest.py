"""Miniature corpora in their official layouts, shards of COCO, and a Hub on this machine."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest


def write_miniatures(root, task_names):
    """Miniatures of the corpora whose task is among these, by corpus: their folders."""
    from rmcl_hub.datasets_scripts.build_miniatures import WRITERS
    from rmcl_hub.datasets_scripts.corpora import CORPORA

    names = [name for name in WRITERS if CORPORA[name].task in task_names]
    for name in names:
        WRITERS[name](root / name)
    return {name: root / name for name in names}


@pytest.fixture(scope="session")
def miniature_corpora(tmp_path_factory):
    """Folders of the caption corpora by name, 48 usable pictures each; tests leave them as they are."""
    return write_miniatures(tmp_path_factory.mktemp("corpora"), {"captions"})


@pytest.fixture
def copy_of(miniature_corpora, tmp_path):
    """Makes a copy of a miniature corpus that a test may change."""
    return lambda name: shutil.copytree(miniature_corpora[name], tmp_path / name)


@pytest.fixture
def prepare_coco(miniature_corpora, tmp_path):
    """Writes shards of the miniature COCO to a folder of the test's own; the arguments are `prepare`'s."""
    from rmcl_hub.datasets_scripts.coco_captions import CocoCaptions
    from rmcl_hub.datasets_scripts.prepare import prepare

    def prepare_there(name="prepared", rows_per_shard=10, **arguments):
        arguments = {"num_workers": 1, "unofficial": True, "rows_per_shard": rows_per_shard, **arguments}
        prepare(CocoCaptions, miniature_corpora["coco_captions"], tmp_path / name, **arguments)
        return tmp_path / name

    return prepare_there


class _HubHandler(BaseHTTPRequestHandler):
    """The calls that reading a data set makes; written after the client, not the server."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        revision = self._parts()[5]
        entries = [self._entry(revision, path) for path in paths]
        self._answer_json([entry for entry in entries if entry])

    def do_GET(self):
        parts = self._parts()
        if parts[:2] == ["api", "datasets"]:
            self._describe(parts[4:])
        else:  # datasets/user/name/resolve/<revision>/<file>
            self._send_file(parts[4], "/".join(parts[5:]))

    def _parts(self):
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def _describe(self, parts):
        what, revision = parts[:2] if parts else ("revision", "main")
        commit = self._commit(revision)
        if commit is None:
            self._refuse("RevisionNotFound")
        elif what == "revision":
            names = [path.relative_to(self.server.commits[commit]) for path in self._files(commit)]
            siblings = [{"rfilename": str(name)} for name in names]
            self._answer_json({"id": self.server.repository, "sha": commit, "siblings": siblings})
        else:  # tree/<revision>/<folder>
            folder = self.server.commits[commit].joinpath(*parts[2:])
            if not folder.is_dir():
                self._refuse("EntryNotFound")
                return
            deep = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
            found = sorted(folder.rglob("*") if deep else folder.iterdir())
            names = [path.relative_to(self.server.commits[commit]).as_posix() for path in found]
            self._answer_json([self._entry(revision, name) for name in names])

    def _commit(self, revision):
        return self.server.branches.get(revision, revision if revision in self.server.commits else None)

    def _files(self, commit):
        return sorted(path for path in self.server.commits[commit].rglob("*") if path.is_file())

    def _entry(self, revision, name):
        commit = self._commit(revision)
        path = self.server.commits[commit] / name
        if not path.exists():
            return None
        kind = (
            {"type": "directory", "size": 0}
            if path.is_dir()
            else {"type": "file", "size": path.stat().st_size}
        )
        return {**kind, "path": name, "oid": f"{commit}{name}"}

    def _send_file(self, revision, name):
        commit = self._commit(revision)
        path = commit and self.server.commits[commit] / name
        if not path or not path.is_file():
            self._refuse("EntryNotFound" if commit else "RevisionNotFound")
            return
        content, status, extra = path.read_bytes(), 200, {}
        total = len(content)
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            last = min(int(last or total - 1), total - 1)
            content, status = content[int(first) : last + 1], 206
            extra = {"Content-Range": f"bytes {first}-{last}/{total}"}
        etag = f'"{commit}-{name.replace("/", "-")}"'
        self._answer(
            status, content, {"ETag": etag, "X-Repo-Commit": commit, "Accept-Ranges": "bytes", **extra}
        )

    def _refuse(self, code):
        self._answer(404, b"{}", {"X-Error-Code": code})

    def _answer_json(self, content):
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def loopback_hub():
    """Serve folders as the commits of one data set repository; returns the address of the Hub.

    The client reads the address when it is imported: hand it to a process of its own as `HF_ENDPOINT`.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _HubHandler)

    def serve(repository: str, commits: dict[str, Path], branches: dict[str, str]) -> str:
        server.repository, server.commits, server.branches = repository, commits, branches
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def task_corpora(tmp_path_factory):
    """Folders of VQAv2, NLVR2 and SNLI-VE by name; tests leave them as they are."""
    return write_miniatures(tmp_path_factory.mktemp("tasks"), {"vqa", "nlvr2", "snli_ve"})


@pytest.fixture
def copy_of_task(task_corpora, tmp_path):
    """Makes a copy of a miniature task that a test may change."""
    return lambda name: shutil.copytree(task_corpora[name], tmp_path / name)
