"""What the loopback Hub shows: users, lists and descriptions of repositories, their files and history.

Part of `loopback_hub.py`.
"""

import json
import re
from urllib.parse import parse_qs, quote, urlsplit

import yaml
from hub_connection import KINDS, Connection, route
from hub_repositories import HubError
from hub_yaml_checks import read_metadata

PAGE = 1000  # entries of a listing


class Contents(Connection):
    """Endpoints that change nothing."""

    @route("GET", "/api/whoami-v2")
    def who_am_i(self):
        self.must_log_in()
        token = {"displayName": "test", "role": self.role}
        user = {"type": "user", "id": self.user, "name": self.user, "fullname": self.user, "orgs": []}
        return 200, {**user, "auth": {"type": "access_token", "accessToken": token}}

    @route("GET", "/api/(?P<kind>models|datasets|spaces)")
    def list_repositories(self, kind):
        found = []
        wanted_tags = set(parse_qs(urlsplit(self.path).query).get("filter", []))
        for (repo_type, name), repository in self.hub.repositories.items():
            if repo_type != KINDS[kind] or (repository.private and repository.owner != self.user):
                continue
            info = self.describe(repository, repository.resolve("main"))
            if (
                self.query.get("author", repository.owner) == repository.owner
                and self.query.get("search", "").lower() in name.lower()
                and wanted_tags <= set(info["tags"])
            ):
                found.append(info)
        return self.page(found)

    def page(self, entries):
        """One page of a listing, with the address of the next in the Link header."""
        start = int(self.query.get("cursor", 0))
        headers = {}
        if start + PAGE < len(entries):
            query = "&".join(f"{key}={quote(value)}" for key, value in self.query.items() if key != "cursor")
            address = f"{self.endpoint}{urlsplit(self.path).path}?{query}&cursor={start + PAGE}"
            headers["Link"] = f'<{address}>; rel="next"'
        return 200, entries[start : start + PAGE], headers

    def describe(self, repository, commit):
        readme = commit.files.get("README.md")
        metadata = read_metadata(self.hub.objects[readme.oid].decode(errors="replace")) if readme else {}
        info = {
            "_id": f"{repository.repo_type}-{repository.name}",
            "id": repository.name,
            "author": repository.owner,
            "sha": commit.oid,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": tags_of(metadata),
            "createdAt": repository.created_at,
            "lastModified": commit.date,
            # Metadata may hold dates, which JSON has not.
            "cardData": json.loads(json.dumps(metadata, default=str)),
            "siblings": [self.sibling(path, file) for path, file in commit.files.items()],
        }
        if repository.repo_type == "model":
            info |= {"modelId": repository.name, "evalResults": self.eval_results(commit)}
            info |= {key: metadata[key] for key in ("pipeline_tag", "library_name") if key in metadata}
        if repository.repo_type == "space":
            info["sdk"] = metadata.get("sdk") or repository.sdk
        return info

    def sibling(self, path, file):
        if "blobs" not in self.query:
            return {"rfilename": path}
        entry = file.entry(path)
        lfs = {"lfs": {**entry["lfs"], "sha256": file.oid}} if file.lfs else {}
        return {"rfilename": path, "blobId": entry["oid"], "size": file.size, **lfs}

    def eval_results(self, commit):
        names = [path for path in commit.files if path.startswith(".eval_results/")]
        return [
            {"filename": path, "data": json.loads(json.dumps(entry, default=str))}
            for path in names
            for entry in yaml.safe_load(self.hub.objects[commit.files[path].oid])
        ]

    @route(
        "GET", "/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?"
    )
    def info(self, kind, name, revision):
        repository = self.find(kind, name)
        return 200, self.describe(repository, repository.resolve(revision or "main"))

    @route("GET", "/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)/auth-check")
    def check_access(self, kind, name):
        self.find(kind, name)
        return 200, {}

    @route("GET", "/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?")
    def tree(self, kind, name, revision, folder):
        commit = self.find(kind, name).resolve(revision)
        entries = entries_of(commit)
        folder = folder.strip("/")
        if folder and entries.get(folder, {}).get("type") != "directory":
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        prefix = folder + "/" if folder else ""
        inside = [path for path in entries if path.startswith(prefix)]
        if self.query.get("recursive", "").lower() not in ("true", "1"):
            inside = [path for path in inside if "/" not in path.removeprefix(prefix)]
        return self.page([self.expand(entries[path], commit) for path in inside])

    @route("POST", "/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, kind, name, revision):
        commit = self.find(kind, name).resolve(revision)
        wanted = self.json() if self.body.startswith(b"{") else parse_qs(self.body.decode())
        self.query["expand"] = str(wanted.get("expand", "")).strip("[]'")
        entries = entries_of(commit)
        paths = wanted.get("paths", [])
        paths = [paths] if isinstance(paths, str) else paths
        return 200, [
            self.expand(entries[path.strip("/")], commit) for path in paths if path.strip("/") in entries
        ]

    def expand(self, entry, commit):
        if self.query.get("expand", "").lower() in ("true", "1"):
            # The commit that was asked for, not the last one that touched this file.
            entry["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": commit.date}
        return entry

    @route("GET", "/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/refs")
    def refs(self, kind, name):
        repository = self.find(kind, name)

        def listing(refs, prefix):
            return [{"name": ref, "ref": prefix + ref, "targetCommit": oid} for ref, oid in refs.items()]

        return 200, {
            "branches": listing(repository.branches, "refs/heads/"),
            "tags": listing(repository.tags, "refs/tags/"),
            "converts": [],
            "pullRequests": listing(repository.pull_requests, ""),
        }

    @route("GET", "/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/commits/(?P<revision>[^/]+)")
    def commits(self, kind, name, revision):
        history = self.find(kind, name).history(revision)
        return self.page(
            [
                {
                    "id": commit.oid,
                    "title": commit.title,
                    "message": commit.message,
                    "authors": [{"user": commit.author}],
                    "date": commit.date,
                }
                for commit in history
            ]
        )

    @route(
        "GET", "/((?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
    )
    def resolve(self, kind, name, revision, path):
        commit = self.find(kind or "models", name).resolve(revision)
        file = commit.files.get(path)
        if file is None:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        # The real Hub redirects to another host for large files.
        headers = {"X-Linked-Size": file.size, "X-Linked-Etag": f'"{file.oid}"'} if file.lfs else {}
        headers |= {"X-Repo-Commit": commit.oid, "ETag": f'"{file.oid}"'}
        return self.slice_of(self.hub.objects[file.oid], headers)

    def slice_of(self, content, headers):
        """The whole content, or the bytes that the Range header asks for."""
        headers = {"Accept-Ranges": "bytes", **headers}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked or asked.groups() == ("", ""):
            return 200, content, headers
        first, last = asked.groups()
        if not first:
            first, last = max(len(content) - int(last), 0), len(content) - 1
        first, last = int(first), min(int(last or len(content) - 1), len(content) - 1)
        if first >= len(content):
            return 416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"}
        return (
            206,
            content[first : last + 1],
            {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"},
        )


def tags_of(metadata):
    """By what lists can be filtered: the tags of a card, and what its other fields say."""

    def values(key):
        value = metadata.get(key) or []
        return value if isinstance(value, list) else [value]

    tags = [value for key in ("pipeline_tag", "library_name", "tags", "language") for value in values(key)]
    return tags + [
        f"{key.removesuffix('s')}:{value}" for key in ("datasets", "license") for value in values(key)
    ]


def entries_of(commit):
    """Files and folders of a commit by path, in order."""
    entries = {path: file.entry(path) for path, file in commit.files.items()}
    for path in commit.files:
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": commit.oid}
    return dict(sorted(entries.items()))
