"""A Hub on this machine, for tests and for trying a push by hand: `python tests/loopback_hub.py --port 8011`.

It is a test double written from the requests that huggingface_hub 0.36 and 2.4, Transformers, Datasets and
Evaluate make. It proves our calls, not the behaviour of the real Hub: there is no Xet, no quota, and of the
checks of YAML only those of `hub_yaml_checks.py`.

Tests make it fail on purpose: POST a list of faults to /__faults__, each with

- `method` and `path`, a regular expression searched in the path and query: which requests (default: all);
- `skip` (default 0) and `count` (default 1): let so many of them pass first, then fail so many;
- `kind`: a status such as 401, 409, 412, 429, 500 or 503, answered before anything is done; "cut", which
  closes the connection in the middle of the body that comes in or else goes out; or "lost", which does the
  work and closes the connection without an answer.

DELETE /__faults__ forgets them. GET /__requests__ tells what came: method, path, status (null if the
connection was closed), how many bytes of its body were received, and the user. Large files go through PUT
/__lfs__/<sha256>. Standard library and PyYAML only.
"""

import argparse
import base64
import contextlib
import hashlib
import json

from hub_connection import FaultyServer, route
from hub_contents import PAGE, Contents
from hub_repositories import Hub, HubError, comment, upload_mode
from hub_yaml_checks import check_card, check_file, front_matter


class Endpoints(Contents):
    """All that the Hub does: what `Contents` shows, and what changes it."""

    # Repositories

    @route("POST", "/api/repos/create")
    def create_repository(self):
        wanted = self.json()
        owner = wanted.get("organization") or self.user
        self.must_write(owner)
        repo_type, name = wanted.get("type") or "model", f"{owner}/{wanted['name']}"
        exists = (repo_type, name) in self.hub.repositories
        if not exists:
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.hub.create(repo_type, name, bool(private), wanted.get("sdk"))
            self.hub.save()
        content = {"url": self.address(repo_type, name), "id": name, "name": name}
        if exists:
            return 409, {**content, "error": f"You already created this {repo_type} repo: {name}"}
        return 200, content

    @route("DELETE", "/api/repos/delete")
    def delete_repository(self):
        wanted = self.json()
        name = f"{wanted.get('organization') or self.user}/{wanted['name']}"
        repository = self.find_to_write(wanted.get("type") or "model", name)
        del self.hub.repositories[repository.repo_type, name]
        self.hub.save()
        return 200, {}

    def address(self, repo_type, name):
        return f"{self.endpoint}/{'' if repo_type == 'model' else repo_type + 's/'}{name}"

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        wanted = self.json()
        problems = list(check_card(wanted["content"], wanted.get("repoType", "model")))
        warnings = [] if front_matter(wanted["content"]) else ["empty or missing yaml metadata in repo card"]
        messages = {"errors": problems, "warnings": warnings}
        content = {key: [{"message": text} for text in texts] for key, texts in messages.items()}
        return (400 if problems else 200), content

    # Uploading

    @route("POST", "/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)")
    def preupload(self, kind, name, revision):
        repository = self.find(kind, name)
        self.must_log_in()
        present = repository.resolve(revision).files
        files = []
        for file in self.json()["files"]:
            mode = upload_mode(file["path"], base64.b64decode(file.get("sample", "")), file.get("size", 0))
            known = present.get(file["path"])
            oid = {"oid": known.oid} if known and known.lfs == (mode == "lfs") else {}
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        return 200, {"files": files}

    @route("POST", r"/((?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
    def lfs_batch(self, kind, name):
        self.find(kind or "models", name)
        self.must_log_in()
        answer = []
        for wanted in self.json()["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                entry["actions"] = {"upload": {"href": f"{self.endpoint}/__lfs__/{wanted['oid']}"}}
            answer.append(entry)
        return 200, {"transfer": "basic", "objects": answer}

    @route("PUT", "/__lfs__/(?P<oid>[0-9a-f]{64})")
    def put_object(self, oid):
        if (sha256 := hashlib.sha256(self.body).hexdigest()) != oid:
            raise HubError(400, f"The content has the SHA-256 {sha256}, not {oid}")
        self.hub.store(self.body, lfs=True)
        self.hub.save()
        return 200, b"", {"ETag": f'"{oid}"'}

    @route("POST", "/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)")
    def commit(self, kind, name, revision):
        repository = self.find(kind, name)
        operations = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = operations.pop(0)["value"]
        base = repository.resolve(revision)
        wants_pull_request = self.query.get("create_pr") == "1"
        if wants_pull_request:
            self.must_log_in()
        else:
            self.must_commit(repository, revision)
        if header.get("parentCommit") not in (None, base.oid):
            raise HubError(412, f"{revision} is at {base.oid} by now, not at {header['parentCommit']}")
        files = self.changed_files(repository, base, operations)
        title, message = header["summary"], header.get("description", "")
        if wants_pull_request:
            discussion = repository.open_discussion(self.user, title, message, base=base.oid)
            revision = f"refs/pr/{discussion.num}"
        commit = repository.add_commit(*repository.head_of(revision), files, self.user, title, message)
        if revision in repository.pull_requests:
            discussion = repository.discussion(revision.split("/")[-1])
            repository.add_event(discussion, self.user, "commit", {"subject": title, "oid": commit.oid})
        self.hub.save()
        address = self.address(repository.repo_type, repository.name)
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{address}/commit/{commit.oid}"}
        if wants_pull_request:
            answer["pullRequestUrl"] = f"{address}/discussions/{discussion.num}"
        return 200, answer

    def must_commit(self, repository, revision):
        """Owners may commit everywhere, others to pull requests of their own."""
        repository.head_of(revision)
        own = (
            revision in repository.pull_requests
            and repository.discussion(revision.split("/")[-1]).author == self.user
        )
        self.must_write(self.user if own else repository.owner)

    def changed_files(self, repository, base, operations):
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                decode = base64.b64decode if value.get("encoding") == "base64" else str.encode
                value["content"] = decode(value["content"])
        files = self.hub.apply(base.files, operations)
        for operation in operations:
            path, content = operation["value"]["path"], operation["value"].get("content")
            problems = check_file(path, content, repository.repo_type) if content is not None else []
            if problems:
                errors = {"errors": [{"message": f"{path}: {text}"} for text in problems]}
                raise HubError(400, f"Invalid metadata in {path}: {'; '.join(problems)}", details=errors)
        return files

    # Branches, tags and pull requests

    @route("POST", "/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/branch/(?P<branch>[^/]+)")
    def create_branch(self, kind, name, branch):
        repository = self.find_to_write(kind, name)
        if branch in repository.branches:
            raise HubError(409, f"Branch {branch} already exists")
        repository.branches[branch] = repository.resolve(self.json().get("startingPoint") or "main").oid
        self.hub.save()
        return 200, {}

    @route("DELETE", "/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/branch/(?P<branch>[^/]+)")
    def delete_branch(self, kind, name, branch):
        repository = self.find_to_write(kind, name)
        if branch == "main":
            raise HubError(403, "The branch main cannot be deleted")
        if repository.branches.pop(branch, None) is None:
            raise HubError(404, f"Branch {branch} not found", "RevisionNotFound")
        self.hub.save()
        return 200, {}

    @route("POST", "/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/tag/(?P<revision>[^/]+)")
    def create_tag(self, kind, name, revision):
        repository = self.find_to_write(kind, name)
        tag = self.json()["tag"]
        if tag in repository.tags:
            raise HubError(409, f"Tag {tag} already exists")
        repository.tags[tag] = repository.resolve(revision).oid
        self.hub.save()
        return 200, {}

    @route("DELETE", "/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/tag/(?P<tag>[^/]+)")
    def delete_tag(self, kind, name, tag):
        if self.find_to_write(kind, name).tags.pop(tag, None) is None:
            raise HubError(404, f"Tag {tag} not found", "RevisionNotFound")
        self.hub.save()
        return 200, {}

    @route("GET", "/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/discussions")
    def list_discussions(self, kind, name):
        repository = self.find(kind, name)
        kinds = {"pull_request": [True], "discussion": [False]}.get(self.query.get("type", ""), [True, False])
        status = self.query.get("status", "all")
        found = [
            self.discussion_of(repository, discussion)
            for discussion in reversed(repository.discussions)
            if bool(discussion.base) in kinds
            and (status == "all" or discussion.is_open == (status == "open"))
            and self.query.get("author", discussion.author) == discussion.author
        ]
        start = int(self.query.get("p", 0)) * PAGE
        return 200, {"count": len(found), "start": start, "discussions": found[start : start + PAGE]}

    def discussion_of(self, repository, discussion):
        return {
            "num": discussion.num,
            "title": discussion.title,
            "author": {"name": discussion.author},
            "createdAt": discussion.created_at,
            "status": discussion.status,
            "isPullRequest": bool(discussion.base),
            "repo": {"name": repository.name, "type": repository.repo_type},
        }

    @route("POST", "/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/discussions")
    def create_discussion(self, kind, name):
        repository = self.find(kind, name)
        self.must_log_in()
        wanted = self.json()
        base, status = (
            (repository.resolve("main").oid, "draft") if wanted.get("pullRequest") else ("", "open")
        )
        discussion = repository.open_discussion(
            self.user, wanted["title"], wanted.get("description", ""), base, status
        )
        self.hub.save()
        return 200, {"num": discussion.num, "pullRequest": bool(base)}

    @route("GET", r"/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/discussions/(?P<num>\d+)")
    def discussion_details(self, kind, name, num):
        repository = self.find(kind, name)
        discussion = repository.discussion(num)
        details = {**self.discussion_of(repository, discussion), "events": discussion.events}
        if discussion.base:
            conflicts = repository.conflicts_of(discussion) if discussion.is_open else []
            details["filesWithConflicts"] = conflicts
            details["changes"] = {"base": "refs/heads/main", "mergeCommitId": discussion.merge_commit}
        return 200, details

    @route("POST", r"/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/discussions/(?P<num>\d+)/comment")
    def comment_discussion(self, kind, name, num):
        repository = self.find(kind, name)
        self.must_log_in()
        text = comment(self.json()["comment"])
        event = repository.add_event(repository.discussion(num), self.user, "comment", text)
        self.hub.save()
        return 200, {"newMessage": event}

    @route("POST", r"/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/discussions/(?P<num>\d+)/status")
    def change_status(self, kind, name, num):
        repository = self.find(kind, name)
        discussion = repository.discussion(num)
        self.must_write(self.user if discussion.author == self.user else repository.owner)
        discussion.status = self.json()["status"]
        event = repository.add_event(discussion, self.user, "status-change", {"status": discussion.status})
        self.hub.save()
        return 200, {"newStatus": event}

    @route("POST", r"/api/(?P<kind>[a-z]+)/(?P<name>[^/]+/[^/]+)/discussions/(?P<num>\d+)/merge")
    def merge(self, kind, name, num):
        repository = self.find_to_write(kind, name)
        repository.merge(repository.discussion(num), self.user)
        self.hub.save()
        return 200, {}


class LoopbackHub(FaultyServer):
    """The server; `hub` holds its repositories. Nothing is answered before `serve_forever`."""

    def __init__(self, port=0, folder=None):
        super().__init__(port, Endpoints)
        self.hub = Hub(folder)
        self.token = self.hub.token


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=8011, help="0 takes a free one")
    parser.add_argument("--folder", help="keep everything there; without it all is gone at the end")
    parser.add_argument("--user", action="append", help="who may write, again for more (default: user)")
    arguments = parser.parse_args()
    server = LoopbackHub(arguments.port, arguments.folder)
    print(f"export HF_ENDPOINT={server.endpoint} HF_HUB_DISABLE_XET=1", flush=True)  # noqa: T201
    for user in arguments.user or ["user"]:
        print(f"export HF_TOKEN={server.token(user)}  # {user}", flush=True)  # noqa: T201
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
