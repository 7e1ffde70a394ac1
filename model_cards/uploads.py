"""From a staged folder to its repository on the Hub: compare, send what differs in one commit, verify."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from .hub_errors import LOG_IN, OFFLINE, HubError, explained
from .staged_repository import FORMAT, MANIFEST, StagedRepository, manifest_text

RemoteFiles = dict[str, Any]  # path -> huggingface_hub.hf_api.RepoFile


@dataclass(frozen=True)
class Changes:
    """What a push would do to one repository.

    Attributes:
        staged: What is pushed.
        repo_id: Where to.
        head: Commit that was compared with; None if there is no such repository, or the Hub was not asked.
        manifest: Text of the manifest that goes up: of an accumulating repository it names older files, too.
        states: Path to "new", "changed", "unchanged" or "deleted"; None if the Hub was not asked.
        is_private: As the repository is now; None if there is none.
    """

    staged: StagedRepository
    repo_id: str
    head: str | None = None
    manifest: str = ""
    states: dict[str, str] | None = None
    is_private: bool | None = None

    def in_state(self, *states: str) -> list[str]:
        """Paths in one of these states."""
        return [path for path, state in (self.states or {}).items() if state in states]


def check_login(api: HfApi, namespace: str) -> None:
    """See that the Hub knows the user, and that the namespace is theirs, before any work is done.

    Raises:
        HubError: If not; the message says what to do.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubError(OFFLINE)
    if not get_token():
        raise HubError(f"there is no token, so nothing can be sent; {LOG_IN}. --dry-run needs none.")
    with explained("log in"):
        user = api.whoami()
    allowed = [user["name"], *(organisation["name"] for organisation in user.get("orgs", ()))]
    if namespace not in allowed:
        raise HubError(
            f"the token is {user['name']}'s, who may write to {', '.join(allowed)}, not to {namespace}; "
            "choose one of these as --namespace, or log in as somebody else."
        )
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(f"the token may only read; make one with the role `write` and {LOG_IN} to it.")


def check_target(api: HfApi, changes: Changes, *, private: bool, tag: str | None) -> None:
    """See that a repository may become what is asked, before any is touched.

    Raises:
        HubError: If it is public where private was asked, or the tag names something else already.
    """
    if private and changes.is_private is False:
        raise HubError(
            f"{changes.repo_id} is public already, so --private comes too late; make it private in its "
            "settings on the Hub, or push under another name."
        )
    tagged = tag_commit(api, changes.staged, changes.repo_id, tag) if tag and changes.head else None
    if tagged and (tagged != changes.head or changes.in_state("new", "changed", "deleted")):
        raise HubError(
            f"{changes.repo_id} has a tag {tag} already, for commit {tagged}; others may have pinned it, so "
            "choose another."
        )


def compare(api: HfApi, staged: StagedRepository, repo_id: str, revision: str | None = None) -> Changes:
    """See what is on the Hub already.

    Args:
        api: Of the Hub.
        staged: What would be pushed.
        repo_id: Where to.
        revision: Branch; a new one begins where `main` is.

    Raises:
        HubError: If the Hub cannot be asked.
    """
    with explained(f"look at {repo_id}"):
        try:
            head = _head(api, staged, repo_id, revision)
        except RepositoryNotFoundError:
            states = dict.fromkeys([*staged.files, MANIFEST], "new")
            return Changes(staged, repo_id, None, manifest_text(staged.manifest), states)
        remote = _listing(api, staged, repo_id, head.sha)
        former = _former_manifest(api, staged, repo_id, head.sha) if MANIFEST in remote else {"files": {}}
    content = staged.manifest
    gone = [path for path in former["files"] if path in remote and path not in content["files"]]
    if content["accumulates"]:
        kept = {path: former["files"][path] for path in gone}
        content["files"] = dict(sorted((kept | content["files"]).items()))
        content["sources"] = former.get("sources", {}) | content["sources"]
        gone = []
    manifest = manifest_text(content)
    states = {
        path: _state(remote.get(path), staged.folder / path, entry) for path, entry in staged.files.items()
    }
    states[MANIFEST] = _state(remote.get(MANIFEST), manifest.encode(), {})
    states |= dict.fromkeys(gone, "deleted")
    return Changes(staged, repo_id, head.sha, manifest, states, head.private)


def upload(
    api: HfApi,
    changes: Changes,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
) -> str:
    """Bring one repository to what is staged, in one commit, or in none if nothing differs; then verify.

    Args:
        api: Of the Hub.
        changes: What `compare` found.
        private: Create it private, if it does not exist.
        revision: Branch to commit to, instead of `main`; created if it is not there.
        tag: Name for the commit, so that others can pin it.

    Returns:
        The commit that holds it.

    Raises:
        HubError: If the Hub fails, or does not hold afterwards what was sent.
    """
    staged, repo_id = changes.staged, changes.repo_id
    where: dict[str, Any] = {"repo_id": repo_id, "repo_type": staged.repo_type}
    if changes.head is None:  # without `exist_ok`, which takes every 409 for a repository that is there
        with explained(f"create {repo_id}"):
            api.create_repo(**where, private=private or None, space_sdk=_space_sdk(staged))
    if revision:
        with explained(f"create the branch {revision} of {repo_id}"):
            api.create_branch(**where, branch=revision, exist_ok=True)
    commit = changes.head
    operations = list(_operations(changes))
    if operations:
        message = f"Push {staged.name} with rmcl-hub {version('rmcl-hub')}"
        with explained(f"send {repo_id}"):
            commit = api.create_commit(
                **where,
                operations=operations,
                commit_message=message,
                revision=revision,
                parent_commit=commit,
            ).oid
    if commit is None:
        raise HubError(f"the Hub names no commit of {repo_id}; repeat the push.")
    verify(api, changes, commit)
    if tag and tag_commit(api, staged, repo_id, tag) != commit:
        with explained(f"tag {repo_id} as {tag}"):
            api.create_tag(**where, tag=tag, revision=commit)
    return commit


def verify(api: HfApi, changes: Changes, commit: str) -> None:
    """Hold the listing of a commit against the manifest.

    Raises:
        HubError: If a file is missing, or its size or hash differs; the message names the files.
    """
    staged = changes.staged
    with explained(f"list {changes.repo_id}"):
        remote = _listing(api, staged, changes.repo_id, commit)
    wrong = [
        path
        for path, entry in staged.files.items()
        if _state(remote.get(path), staged.folder / path, entry) != "unchanged"
    ]
    if _state(remote.get(MANIFEST), changes.manifest.encode(), {}) != "unchanged":
        wrong.append(MANIFEST)
    if wrong:
        raise HubError(
            f"{changes.repo_id} does not hold what was sent: {', '.join(wrong[:5])} are missing or differ at "
            f"commit {commit}; was the folder changed meanwhile? Stage again and repeat the push."
        )


def tag_commit(api: HfApi, staged: StagedRepository, repo_id: str, tag: str) -> str | None:
    """The commit that a tag names; None if there is no such tag.

    Raises:
        HubError: If the Hub cannot be asked.
    """
    with explained(f"look at the tags of {repo_id}"):
        try:
            return api.repo_info(repo_id, repo_type=staged.repo_type, revision=tag).sha
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None


def _head(api: HfApi, staged: StagedRepository, repo_id: str, revision: str | None) -> Any:
    try:
        return api.repo_info(repo_id, repo_type=staged.repo_type, revision=revision)
    except RevisionNotFoundError:
        return api.repo_info(repo_id, repo_type=staged.repo_type)


def _listing(api: HfApi, staged: StagedRepository, repo_id: str, commit: str) -> RemoteFiles:
    entries = api.list_repo_tree(repo_id, repo_type=staged.repo_type, revision=commit, recursive=True)
    return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}


def _former_manifest(api: HfApi, staged: StagedRepository, repo_id: str, commit: str) -> dict[str, Any]:
    path = api.hf_hub_download(repo_id, MANIFEST, repo_type=staged.repo_type, revision=commit)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        content = {}
    return content if content.get("format") == FORMAT else {"files": {}}


def _state(remote: Any, local: Path | bytes, entry: dict[str, Any]) -> str:
    """Large files are known on the Hub by SHA-256, others by the hash that Git gives them."""
    if remote is None:
        return "new"
    if remote.lfs is not None:
        sha256 = hashlib.sha256(local).hexdigest() if isinstance(local, bytes) else entry["sha256"]
        is_same = remote.lfs.sha256 == sha256
    else:
        content = local if isinstance(local, bytes) else local.read_bytes()
        is_same = remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return "unchanged" if is_same else "changed"


def _operations(changes: Changes) -> Iterator[CommitOperationAdd | CommitOperationDelete]:
    for path in changes.in_state("new", "changed"):
        local = changes.manifest.encode() if path == MANIFEST else str(changes.staged.folder / path)
        yield CommitOperationAdd(path_in_repo=path, path_or_fileobj=local)
    for path in changes.in_state("deleted"):
        yield CommitOperationDelete(path_in_repo=path, is_folder=False)


def _space_sdk(staged: StagedRepository) -> str | None:
    return staged.card_metadata.get("sdk") if staged.repo_type == "space" else None
