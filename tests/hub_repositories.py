"""What the loopback Hub keeps: users, repositories, their commits, branches, tags and pull requests.

Part of `loopback_hub.py`, which puts it behind HTTP. A commit is the whole list of files, so that every old
revision stays readable; contents lie once each under the hash of what they hold.
"""

import codecs
import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

LARGE = 10 * 1024 * 1024  # bytes; the Hub takes larger files through LFS only
LFS_SUFFIXES = {".arrow", ".bin", ".gz", ".h5", ".onnx", ".parquet", ".safetensors", ".tar", ".zip"}
REPO_TYPES = ("model", "dataset", "space")


class HubError(Exception):
    """A refusal: HTTP status, the Hub's error code for the client ("" if none), and what went wrong."""

    def __init__(self, status, message, code="", details=None):
        super().__init__(message)
        self.status, self.code, self.details = status, code, details or {}


@dataclass(frozen=True)
class File:
    """An entry of a commit: SHA-1 as Git's, or SHA-256 if `lfs`; size in bytes."""

    oid: str
    size: int
    lfs: bool

    def entry(self, path):
        """What listings tell; `oid` of a large file is that of the pointer which Git keeps in its place."""
        entry = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\nsize {self.size}\n"
            entry["oid"] = git_sha1(pointer.encode())
            entry["lfs"] = {"oid": self.oid, "size": self.size, "pointerSize": len(pointer)}
        return entry


@dataclass
class Commit:
    oid: str
    parents: list[str]
    title: str
    message: str
    author: str
    date: str
    files: dict[str, File]


@dataclass
class Discussion:
    """A discussion, or a pull request if `base`, the commit that it starts from, is given.

    Its status is "draft" (a pull request without a commit of its own), "open", "closed" or "merged".
    """

    num: int
    title: str
    author: str
    created_at: str
    base: str = ""
    status: str = "open"
    merge_commit: str | None = None
    events: list[dict] = field(default_factory=list)

    @property
    def is_open(self):
        return self.status in ("draft", "open")


@dataclass
class Repository:
    repo_type: str
    name: str
    private: bool
    sdk: str | None
    created_at: str
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)  # refs/pr/<num> -> commit
    discussions: list[Discussion] = field(default_factory=list)

    @property
    def owner(self):
        return self.name.split("/")[0]

    def resolve(self, revision):
        """The commit that a branch, tag, refs/pr/<num>, refs/heads/<branch> or (short) commit hash names."""
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        for refs in (self.branches, self.tags, self.pull_requests):
            if revision in refs:
                return self.commits[refs[revision]]
        found = [oid for oid in self.commits if oid.startswith(revision)]
        if re.fullmatch("[0-9a-f]{7,40}", revision) and len(found) == 1:
            return self.commits[found[0]]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def head_of(self, revision):
        """The dictionary and key of a branch or an open pull request, to which one may commit."""
        revision = revision.removeprefix("refs/heads/")
        if revision in self.branches:
            return self.branches, revision
        if revision in self.pull_requests and self.discussion(revision.split("/")[-1]).is_open:
            return self.pull_requests, revision
        self.resolve(revision)  # unknown: 404
        raise HubError(
            400, f"{revision} is neither a branch nor an open pull request: nothing can be committed to it"
        )

    def history(self, revision):
        """Commits from this revision to the first one."""
        commit = self.resolve(revision)
        while commit:
            yield commit
            commit = self.commits.get(commit.parents[0]) if commit.parents else None

    def discussion(self, num):
        if not str(num).isdigit() or not 1 <= int(num) <= len(self.discussions):
            raise HubError(404, f"Discussion {num} not found")
        return self.discussions[int(num) - 1]

    def add_commit(self, refs, ref, files, author, title, message="", other_parent=None):
        parents = [oid for oid in (refs.get(ref), other_parent) if oid]
        date = now()
        content = [self.name, parents, title, message, author, date]
        content += sorted((path, file.oid) for path, file in files.items())
        oid = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.commits[oid] = Commit(oid, parents, title, message, author, date, dict(sorted(files.items())))
        refs[ref] = oid
        return self.commits[oid]

    def open_discussion(self, author, title, description, base="", status="open"):
        num = len(self.discussions) + 1
        discussion = Discussion(num, title, author, now(), base, status)
        self.discussions.append(discussion)
        if base:
            self.pull_requests[f"refs/pr/{num}"] = base
        self.add_event(discussion, author, "comment", comment(description))
        return discussion

    def add_event(self, discussion, author, kind, data):
        event = {"id": f"{discussion.num:04x}{len(discussion.events):04x}", "type": kind, "createdAt": now()}
        discussion.events.append({**event, "author": {"name": author}, "data": data})
        return discussion.events[-1]

    def conflicts_of(self, discussion):
        """Paths that both the pull request and main changed since it was opened, to different contents."""
        base, ours = self.commits[discussion.base].files, self.resolve("main").files
        theirs = self.resolve(f"refs/pr/{discussion.num}").files
        paths = {path for path in {*base, *theirs} if base.get(path) != theirs.get(path)}
        return sorted(path for path in paths if ours.get(path) not in (base.get(path), theirs.get(path)))

    def merge(self, discussion, author):
        if not discussion.base or discussion.status != "open":
            raise HubError(
                409, f"Discussion {discussion.num} is no open pull request, but {discussion.status}"
            )
        if conflicts := self.conflicts_of(discussion):
            raise HubError(409, f"The pull request conflicts with main in {', '.join(conflicts)}")
        base, theirs = self.commits[discussion.base].files, self.resolve(f"refs/pr/{discussion.num}")
        files = dict(self.resolve("main").files)
        for path in {*base, *theirs.files}:
            if path not in theirs.files:
                files.pop(path, None)
            elif base.get(path) != theirs.files[path]:
                files[path] = theirs.files[path]
        title = f"{discussion.title} (#{discussion.num})"
        merged = self.add_commit(self.branches, "main", files, author, title, other_parent=theirs.oid)
        discussion.status, discussion.merge_commit = "merged", merged.oid
        self.add_event(discussion, author, "status-change", {"status": "merged"})


class Hub:
    """All repositories, by (type, "user/name"), and the contents of their files.

    With a `folder` everything is written there after each change and read back at the start.
    """

    def __init__(self, folder=None):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # by SHA-256 for LFS, else by Git's SHA-1
        self.users: dict[str, tuple[str, str]] = {}  # token -> (name, role)
        self.folder = folder and Path(folder)
        if self.folder and (self.folder / "hub.json").exists():
            self._load()

    def token(self, user, role="write"):
        """The token of a user, who is created if need be; `role` is "write" or "read"."""
        token = "hf_" + hashlib.sha256(f"{user} {role}".encode()).hexdigest()[:34]
        self.users[token] = (user, role)
        self.save()
        return token

    def create(self, repo_type, name, private, sdk):
        if repo_type not in REPO_TYPES:
            raise HubError(400, f'"type" must be one of {", ".join(REPO_TYPES)}, not {repo_type}')
        repository = Repository(repo_type, name, private, sdk, now())
        attributes = "".join(
            f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES)
        )
        files = {".gitattributes": self.store(attributes.encode())}
        repository.add_commit(repository.branches, "main", files, repository.owner, "initial commit")
        self.repositories[repo_type, name] = repository
        return repository

    def store(self, content, lfs=False):
        oid = hashlib.sha256(content).hexdigest() if lfs else git_sha1(content)
        self.objects[oid] = content
        return File(oid, len(content), lfs)

    def apply(self, files, operations):
        """The files after the operations of a commit, which are {key, value} as the client sends them."""
        files = dict(files)
        for operation in operations:
            value = operation["value"]
            path = value["path"]
            check_path(path)
            match operation["key"]:
                case "file":
                    files[path] = self.store(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.objects:
                        raise HubError(400, f"LFS object {value['oid']} of {path} was never uploaded")
                    files[path] = File(value["oid"], len(self.objects[value["oid"]]), lfs=True)
                case "deletedFile" if path in files:
                    del files[path]
                case "deletedFolder" if inside := [
                    name for name in files if name.startswith(path.rstrip("/") + "/")
                ]:
                    for name in inside:
                        del files[name]
                case key:
                    raise HubError(400, f"cannot apply {key} to {path}: no such operation or no such file")
        return files

    def save(self):
        if not self.folder:
            return
        (self.folder / "objects").mkdir(parents=True, exist_ok=True)
        for oid, content in self.objects.items():
            if not (self.folder / "objects" / oid).exists():
                (self.folder / "objects" / oid).write_bytes(content)
        state = {
            "users": self.users,
            "repositories": [asdict(repository) for repository in self.repositories.values()],
        }
        (self.folder / "hub.json.new").write_text(json.dumps(state))
        (self.folder / "hub.json.new").replace(self.folder / "hub.json")

    def _load(self):
        state = json.loads((self.folder / "hub.json").read_text())
        self.users = {token: tuple(user) for token, user in state["users"].items()}
        self.objects = {path.name: path.read_bytes() for path in (self.folder / "objects").iterdir()}
        for fields in state["repositories"]:
            for commit in fields["commits"].values():
                commit["files"] = {path: File(**file) for path, file in commit["files"].items()}
            fields["commits"] = {oid: Commit(**commit) for oid, commit in fields["commits"].items()}
            fields["discussions"] = [Discussion(**discussion) for discussion in fields["discussions"]]
            repository = Repository(**fields)
            self.repositories[repository.repo_type, repository.name] = repository


def upload_mode(path, sample, size):
    """Whether the Hub wants this file through LFS: by its name, its first bytes, or its size."""
    if size == 0:
        return "regular"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # the sample may end inside a character
        text = b"\0" not in sample
    except UnicodeDecodeError:
        text = False
    return "regular" if text and size <= LARGE and Path(path).suffix not in LFS_SUFFIXES else "lfs"


def check_path(path):
    parts = path.split("/")
    if not path or {"", ".", "..", ".git"} & set(parts):
        raise HubError(400, f"{path!r} is no path inside a repository")


def comment(text):
    return {"edited": False, "hidden": False, "latest": {"raw": text}, "history": []}


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
