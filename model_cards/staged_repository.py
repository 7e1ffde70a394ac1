"""A local folder that is exactly what one repository on the Hub will hold, and the manifest that says so."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from yaml import YAMLError

from rmcl_hub.evaluation.results import write_atomically

CARD = "README.md"  # the name under which the Hub shows it
MANIFEST = "hub-manifest.json"
FORMAT = "rmcl-hub-manifest/1"
RepoType = Literal["model", "dataset", "space"]


@dataclass(frozen=True)
class StagedRepository:
    """One repository before it is pushed.

    Attributes:
        name: Name on the Hub without the namespace, such as "rmcl-vilt".
        repo_type: "model", "dataset" or "space".
        folder: Holds every file that goes up, and `hub-manifest.json`, which names each, with SHA-256 and
            size. (A prepared corpus has a `manifest.json` of its own.)
    """

    name: str
    repo_type: RepoType
    folder: Path

    @classmethod
    def seal(
        cls,
        name: str,
        repo_type: RepoType,
        folder: str | Path,
        sources: Mapping[str, Any] | None = None,
        *,
        accumulates: bool = False,
    ) -> "StagedRepository":
        """Write the manifest of a finished folder.

        Args:
            name: Name on the Hub without the namespace.
            repo_type: "model", "dataset" or "space".
            folder: The finished folder.
            sources: What it was made from, such as a digest of the weights or of a results file; no paths.
            accumulates: Whether a push keeps what an earlier push brought and this one lacks, as the rows of
                a leaderboard; otherwise such files are deleted from the Hub.

        Raises:
            ValueError: If the folder is empty, the type unknown, or the name one that the Hub does not take.
        """
        if repo_type not in get_args(RepoType):
            raise ValueError(f"repo_type is {repo_type!r}; the Hub knows {', '.join(get_args(RepoType))}.")
        check_name(name)
        folder = Path(folder)
        entries = {path: describe_file(folder / path) for path in files_of(folder) if path != MANIFEST}
        if not entries:
            raise ValueError(f"{folder} holds no file: there is nothing to publish as {name!r}.")
        content = {
            "format": FORMAT,
            "name": name,
            "repo_type": repo_type,
            "accumulates": accumulates,
            "sources": dict(sources or {}),
            "files": entries,
        }
        write_atomically(folder / MANIFEST, manifest_text(content))
        return cls(name, repo_type, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "StagedRepository":
        """Read a staged folder.

        Raises:
            FileNotFoundError: If it has no manifest.
            ValueError: If the manifest is of another format.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no staged repository: it has no {MANIFEST}.")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise ValueError(f"{path} has format {content.get('format')!r}, this version reads {FORMAT!r}.")
        return cls(content["name"], content["repo_type"], Path(folder))

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """Path in the repository to SHA-256 and size in bytes, of every file but the manifest itself."""
        return self.manifest["files"]

    @property
    def licence(self) -> str | None:
        """As the card says it."""
        return self.card_metadata.get("license_name") or self.card_metadata.get("license")

    @property
    def card_metadata(self) -> dict[str, Any]:
        """The YAML in front of the card; empty without one.

        Raises:
            ValueError: If it cannot be read.
        """
        from huggingface_hub import metadata_load

        card = self.folder / CARD
        try:
            return (metadata_load(card) if card.is_file() else None) or {}
        except YAMLError as error:
            raise ValueError(f"the front matter is no YAML ({' '.join(str(error).split())})") from error

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands in the folder."""
        return json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))


def check_name(name: str) -> None:
    """Refuse what can be no name of a repository, by the Hub's own rule.

    Raises:
        ValueError: With the rule.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if "/" in name:
            raise HFValidationError("the namespace is given apart from it, by --namespace")
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"{name!r} can be no name on the Hub ({str(error).rstrip('.')}); rename it."
        ) from error


def manifest_text(content: Mapping[str, Any]) -> str:
    """A manifest as it is written: the same content gives the same bytes."""
    return json.dumps(content, indent=1) + "\n"


def files_of(folder: Path) -> list[str]:
    """Paths of all files and links below a folder, relative, with forward slashes, sorted."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def describe_file(path: Path) -> dict[str, Any]:
    """SHA-256 and size in bytes, as the manifest holds them and the Hub's LFS names a file."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": path.stat().st_size}
