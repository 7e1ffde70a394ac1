"""What is never published: secrets, local paths, pickles, files without manifest, work without licence."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from .leaked_text import find_local_paths, find_secrets
from .pickles import find_pickles
from .staged_repository import CARD, MANIFEST, StagedRepository, describe_file, files_of

# https://huggingface.co/docs/hub/storage-limits
MAX_FILE = 50 * 10**9  # bytes
MAX_FILES_OF_FOLDER = 10_000
MAX_FILES = 100_000
MAX_SHOWN = 20
HIDDEN_BUT_WANTED = re.compile(r"\.gitattributes|\.eval_results/[^/.][^/]*\.yaml")
KEY_FILES = re.compile(
    r"_netrc|id_(rsa|dsa|ecdsa|ed25519)|credentials(\.json)?|token|kaggle\.json|secrets\.[a-z]+"
    r"|.*\.(pem|key|p12|pfx|jks|keystore|kdbx|asc|gpg)",
    re.IGNORECASE,
)
REMEDY = "stage it again without that file."


class RefusedError(ValueError):
    """A staged repository holds what must not be published; the message names file, place and remedy."""


def check(
    staged: StagedRepository,
    *,
    private: bool = False,
    places: Sequence[Path] = (),
    secrets: Sequence[str] = (),
    progress: bool = False,
) -> None:
    """Refuse a staged repository that should not leave this machine.

    Args:
        staged: The repository.
        private: Whether only its owner will see it; some data may be kept on the Hub, but not published.
        places: Folders of this machine whose paths must not appear, such as the run's; the home folder, the
            folder for temporary files, and what lies below /home/<user> are always looked for.
        secrets: Strings that must not appear, such as the token in use; well-known forms are looked
            for always.
        progress: Show a bar over the files.

    Raises:
        RefusedError: With all that was found.
    """
    reason = staged.manifest["sources"].get("private_only")
    if reason and not private:
        raise RefusedError(
            f"{staged.repo_type} {staged.name} may only be private: {reason} Push it with --private."
        )
    problems = list(find_problems(staged, places=places, secrets=secrets, progress=progress))
    if problems:
        more = [f"and {len(problems) - MAX_SHOWN} more."] if len(problems) > MAX_SHOWN else []
        shown = "\n- ".join([*problems[:MAX_SHOWN], *more])
        raise RefusedError(f"{staged.repo_type} {staged.name} is not fit to be published:\n- {shown}")


def find_problems(
    staged: StagedRepository,
    *,
    places: Sequence[Path] = (),
    secrets: Sequence[str] = (),
    progress: bool = False,
) -> Iterator[str]:
    """Each reason why a repository is refused, with file, place and remedy; see `check`."""
    paths = files_of(staged.folder)
    yield from _limit_problems(staged, paths)
    yield from _card_problems(staged)
    for path in tqdm(paths, desc=f"Checking {staged.name}", unit="file", disable=None if progress else True):
        file = staged.folder / path
        if file.is_symlink():
            yield f"{path}: is a link, which the Hub does not follow; put the file itself there, stage again."
            continue
        yield from _name_problems(path)
        if path != MANIFEST:
            yield from _manifest_problems(staged, path)
        yield from _content_problems(file, path, places, secrets)
    for path in sorted(set(staged.files) - set(paths)):
        yield f"{path}: the manifest names it, but it is not there; stage again."


def _limit_problems(staged: StagedRepository, paths: list[str]) -> Iterator[str]:
    if len(paths) > MAX_FILES:
        yield f"it has {len(paths):,} files, the Hub takes {MAX_FILES:,}; put them into fewer, larger ones."
    for folder, count in Counter(str(PurePosixPath(path).parent) for path in paths).items():
        if count > MAX_FILES_OF_FOLDER:
            yield (
                f"{folder}: has {count:,} files, the Hub takes {MAX_FILES_OF_FOLDER:,} a folder; divide them "
                "among folders, or put them into fewer, larger files."
            )
    for path, entry in staged.files.items():
        if entry["size"] > MAX_FILE:
            yield (
                f"{path}: has {entry['size'] / 1e9:.1f} GB, the Hub takes {MAX_FILE / 1e9:.0f} GB a file; "
                "write smaller shards."
            )


def _card_problems(staged: StagedRepository) -> Iterator[str]:
    if not (staged.folder / CARD).is_file():
        yield f"{CARD}: is missing; every {staged.repo_type} needs a card (`rmcl-hub card` writes a model's)."
        return
    try:
        metadata = staged.card_metadata
    except ValueError as error:
        yield f"{CARD}: {error}; correct what stands between the two lines of ---."
        return
    if not metadata.get("license"):
        yield f"{CARD}: names no licence; add `license:` to its front matter."
    if metadata.get("license") == "other" and not metadata.get("license_name"):
        yield f"{CARD}: says `license: other` without `license_name:`; name it, and give `license_link:`."
    if staged.repo_type == "space" and not metadata.get("sdk"):
        yield f"{CARD}: a Space's front matter says what runs it; add `sdk:`, such as gradio."


def _name_problems(path: str) -> Iterator[str]:
    if any(part.startswith(".") for part in PurePosixPath(path).parts):
        if not HIDDEN_BUT_WANTED.fullmatch(path):
            yield f"{path}: is hidden, and hidden files hold settings and secrets; {REMEDY}"
    elif KEY_FILES.fullmatch(PurePosixPath(path).name):
        yield f"{path}: is named like a file of keys or passwords; {REMEDY}"


def _manifest_problems(staged: StagedRepository, path: str) -> Iterator[str]:
    if path not in staged.files:
        yield f"{path}: the manifest does not name it; remove it, or stage again."
    elif describe_file(staged.folder / path) != staged.files[path]:
        yield f"{path}: changed after the manifest was written; stage again."


def _content_problems(file: Path, path: str, places: Sequence[Path], secrets: Sequence[str]) -> Iterator[str]:
    try:
        for found in find_secrets(file, secrets):
            yield f"{path}, {found}; remove it, and revoke it if others may have seen it."
        for found in find_local_paths(file, places):
            yield f"{path}, {found}; give relative paths where it was made, then stage again."
        for found in find_pickles(file):
            yield (
                f"{path}: {found}, which run code on the reader's machine; save weights by "
                "`save_pretrained` (safetensors), tables as Parquet, arrays as numbers."
            )
    except (OSError, ValueError) as error:
        yield f"{path}: cannot be read ({error}); {REMEDY}"
