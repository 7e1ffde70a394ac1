"""`rmcl-hub push`: stage everything that belongs to the sources, check it, show it, send it to the Hub."""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from .staged_repository import StagedRepository
    from .uploads import Changes

PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
MAX_LISTED = 12  # files of a folder that are named one by one


def main(argv: list[str] | None = None) -> int:
    """Push as the command line says.

    Returns:
        0, 1 if something was refused or failed, or 130 after Ctrl-C.

    Raises:
        SystemExit: With status 2 for arguments that cannot be meant.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from .hub_errors import HubError, clean, filter_logs
    from .push_sources import SourceError

    filter_logs()
    try:
        push(**vars(arguments))
    except SourceError as error:
        parser.error(str(error))
    except (HubError, OSError, ValueError) as error:
        sys.stderr.write(clean(f"rmcl-hub push: {error}\n"))
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("rmcl-hub push: interrupted; the same command goes on where this one ended.\n")
        return 130
    return 0


def push(
    sources: Sequence[str],
    namespace: str,
    *,
    dry_run: bool = False,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    without_pictures: bool = False,
    output_dir: str | Path = "runs/push",
) -> None:
    """Stage, check and show everything, then send it: one commit for each repository that differs.

    A push that failed half-way is repeated by the same call: what has arrived is not sent again.

    Args:
        sources: Folders or words; `push_sources.KINDS` lists them.
        namespace: User or organisation on the Hub.
        dry_run: End before anything is sent; needs no network.
        private: Create private repositories.
        revision: Branch to commit to, instead of `main`.
        tag: Name for the commits, so that others can pin them.
        without_pictures: Publish of prepared corpora what is not a picture.
        output_dir: Where the repositories are staged; they stay there and can be loaded.

    Raises:
        SourceError: If a source is nothing that can be published.
        RefusedError: If a staged file must not be published.
        HubError: If the Hub does not do what is asked.
        ValueError: If something cannot be staged, such as a card that lacks a number.
    """
    from huggingface_hub import HfApi, get_token

    from .push_sources import check_namespace, recognise_sources
    from .refusals import check
    from .staging import stage_sources
    from .uploads import check_login, check_target, compare, upload

    check_namespace(namespace)
    found, api = recognise_sources(sources), HfApi()
    if not dry_run:
        check_login(api, namespace)
    staging = stage_sources(found, output_dir, namespace, private=private, without_pictures=without_pictures)
    places = [Path.cwd(), Path(output_dir), *(Path(source) for source in sources if Path(source).is_dir())]
    for staged in staging.repositories:
        check(staged, private=private, places=places, secrets=[get_token() or ""], progress=True)
    repositories = [(staged, f"{namespace}/{staged.name}") for staged in staging.repositories]
    if dry_run:
        changes = list(_changes_if_reachable(api, repositories, revision))
    else:
        changes = [compare(api, staged, repo_id, revision) for staged, repo_id in repositories]
        for change in changes:
            check_target(api, change, private=private, tag=tag)
    _say(*_plan_lines(changes, private), *staging.notes)
    if dry_run:
        _say(
            f"Dry run: nothing was sent. The repositories are staged in {output_dir}; `from_pretrained` and "
            "`load_dataset` take their folders."
        )
        return
    for number, change in enumerate(changes, start=1):
        commit = upload(api, change, private=private, revision=revision, tag=tag)
        done = "pushed" if change.in_state("new", "changed", "deleted") else "unchanged"
        address = f"{api.endpoint}/{PREFIXES[change.staged.repo_type]}{change.repo_id}"
        _say(f"[{number}/{len(changes)}] {address}: {done}, commit {commit}")


def _changes_if_reachable(
    api: "HfApi", repositories: Sequence[tuple["StagedRepository", str]], revision: str | None
) -> "Iterator[Changes]":
    """As `compare`; from the first failure on only what is staged, for a dry run needs no Hub."""
    from .hub_errors import HubError
    from .staged_repository import manifest_text
    from .uploads import Changes, compare

    reachable = True
    for staged, repo_id in repositories:
        if reachable:
            try:
                yield compare(api, staged, repo_id, revision)
                continue
            except HubError as error:
                _say(f"The Hub was not asked what it has: {error}")
                reachable = False
        yield Changes(staged, repo_id, manifest=manifest_text(staged.manifest))


def _plan_lines(changes: "Sequence[Changes]", private: bool) -> Iterator[str]:
    """What goes where, repository by repository, and the total."""
    from .staged_repository import MANIFEST

    total = to_send = 0
    for change in changes:
        staged = change.staged
        sizes = {path: entry["size"] for path, entry in staged.files.items()}
        sizes[MANIFEST] = len(change.manifest.encode())
        total += sum(sizes.values())
        kinds = [staged.repo_type, f"licence {staged.licence}", *(["private"] if private else [])]
        counts = f"{len(sizes)} files, {_size(sum(sizes.values()))}"
        place = f"{PREFIXES[staged.repo_type]}{change.repo_id}"
        yield f"{place} ({', '.join(kinds)}): {counts}, {_summary(change)}"
        yield from _file_lines(change, sizes)
        to_send += sum(sizes[path] for path in change.in_state("new", "changed"))
    compared = all(change.states is not None for change in changes)
    sent = f"; {_size(to_send)} of it to send" if compared else ""
    yield f"In all {len(changes)} repositories, {_size(total)}{sent}."


def _summary(change: "Changes") -> str:
    if change.states is None:
        return "not compared with the Hub"
    if change.head is None:
        return "a new repository"
    counts = {state: len(change.in_state(state)) for state in ("new", "changed", "deleted")}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "unchanged"


def _file_lines(change: "Changes", sizes: dict[str, int]) -> Iterator[str]:
    """A line for each file; folders of many files get one line, so that a long list hides nothing."""
    states = {path: (change.states or {}).get(path, "") for path in sizes}
    states |= dict.fromkeys(change.in_state("deleted"), "deleted")
    folders: dict[str, list[str]] = {}
    for path in sorted(states):
        folders.setdefault(path.rpartition("/")[0], []).append(path)
    for folder, paths in folders.items():
        if len(paths) > MAX_LISTED and folder:
            found = sorted({states[path] for path in paths})
            size = _size(sum(sizes.get(path, 0) for path in paths))
            yield f"  {' and '.join(found):10}{size:>10}  {folder}/ ({len(paths)} files)"
        else:
            yield from (f"  {states[path]:10}{_size(sizes.get(path, 0)):>10}  {path}" for path in paths)


def _size(num_bytes: int) -> str:
    size, units = float(num_bytes), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while size >= 1000 and unit != "GB":
        size, unit = size / 1000, next(units)
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _say(*lines: str) -> None:
    from .hub_errors import clean

    sys.stdout.writelines(f"{clean(line)}\n" for line in lines)
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rmcl-hub push",
        description="Publish models, data, metrics and results on the Hub, with the token of HF_TOKEN or of "
        "`hf auth login`. Everything is checked before anything is sent; a repeated push sends only what is "
        "missing.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a run folder of an experiment, a trained model, an evaluation, prepared shards, a staged "
        "folder; or openpairs, metrics, leaderboard",
    )
    parser.add_argument("--namespace", required=True, metavar="USER", help="user or organisation on the Hub")
    parser.add_argument("--dry-run", action="store_true", help="list what would go where, and send nothing")
    parser.add_argument("--private", action="store_true", help="create private repositories")
    parser.add_argument("--revision", metavar="BRANCH", help="commit to this branch instead of main")
    parser.add_argument("--tag", help="name for the commits, by which others can load them")
    parser.add_argument(
        "--without-pictures",
        action="store_true",
        help="of prepared shards publish what is not a picture, where the licence of the texts allows it",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs/push"),
        help="where the repositories are staged, and stay (default: runs/push)",
    )
    return parser
