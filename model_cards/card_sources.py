"""The results files behind a card: every number is taken from one by its path, and a missing one is named."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rmcl_hub.evaluation.evaluation_schema import check_record
from rmcl_hub.evaluation.outcomes import Rate
from rmcl_hub.evaluation.results import RESULTS_FILE, Difference, check_fields
from rmcl_hub.evaluation.retrieval_command import FORMAT as RETRIEVAL_FORMAT
from rmcl_hub.evaluation.retrieval_command import RETRIEVAL_FILE
from rmcl_hub.evaluation.robustness_record import EVALUATION_FILE

Kind: TypeAlias = Literal["results", "evaluation", "control", "retrieval"]

SOURCES_FILE = "results/sources.json"
FORMAT = "rmcl-hub-card/1"
WRITTEN_AS = {
    "results": RESULTS_FILE,
    "evaluation": EVALUATION_FILE,
    "control": EVALUATION_FILE,
    "retrieval": RETRIEVAL_FILE,
}
"""What the command that measures calls its file; in the repository the control's has a name of its own."""
COMMANDS = {
    "results": "rmcl-hub quickstart",
    "evaluation": "rmcl-hub evaluate",
    "control": "rmcl-hub evaluate",
    "retrieval": "rmcl-hub retrieve",
}


@dataclass
class ResultsFile:
    """One file of measurements.

    Attributes:
        name: Where it lies in the model's repository, such as `results/evaluation.json`.
        kind: What was measured: an experiment against its control ("results"), this model's robustness
            ("evaluation"), the control's ("control"), or its retrieval ("retrieval").
        data: The file, byte for byte.
        taken: Paths of the numbers that the card took, in its order.
    """

    name: str
    kind: Kind
    data: bytes
    taken: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.content: dict[str, Any] = json.loads(self.data)
        _check_layout(self)

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.data).hexdigest()

    def get(self, *path: str | int) -> Any:
        """What stands at a path.

        Raises:
            ValueError: If nothing does; the message names path, file and command.
        """
        value: Any = self.content
        for key in path:
            value = value[key] if _has(value, key) else None
            if value is None:
                raise ValueError(
                    f"the model card needs {dotted(path)} of {self.name}, which the file lacks; measure it "
                    f"with `{COMMANDS[self.kind]}` and render the card with the new file."
                )
        if isinstance(value, int | float):
            self.taken[dotted(path)] = None
        return value

    def rate(self, *path: str | int) -> str:
        """A share as per cent with its interval; "n/a" where its denominator is 0.

        Raises:
            ValueError: If it is missing; see `get`.
        """
        rate: Rate = self.get(*path)
        if "value" in rate and rate["value"] is None:  # a number that is missing is another matter
            return "n/a"
        value, low, high = (100 * self.get(*path, end) for end in ("value", "low", "high"))
        return f"{value:.1f} [{low:.1f}, {high:.1f}]"

    def points(self, *path: str | int) -> str:
        """A difference in points with its interval; "n/a" where it is undefined.

        Raises:
            ValueError: If it is missing; see `get`.
        """
        *parents, last = path
        difference: Difference | None = self.get(*parents).get(last, {})
        if difference is None:
            return "n/a"
        value, low, high = (100 * self.get(*path, end) for end in ("value", "low", "high"))
        return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


@dataclass(frozen=True)
class CardSources:
    """All that a card is rendered from.

    Attributes:
        repo_id: What readers load: a Hub id, or a name without namespace.
        model: Key of the model in the `models` of results.json.
        files: The measurements.
    """

    repo_id: str
    model: str
    files: Sequence[ResultsFile]

    def of(self, *kinds: Kind) -> list[ResultsFile]:
        """The files of these kinds."""
        return [file for file in self.files if file.kind in kinds]

    def to_json(self, derived: Sequence[str]) -> str:
        """`results/sources.json`: the files with their hashes, and the numbers that the card took from each.

        Args:
            derived: Other files that were rendered with the card.
        """
        content = {
            "format": FORMAT,
            "repo_id": self.repo_id,
            "model": self.model,
            "files": {
                file.name: {"kind": file.kind, "sha256": file.sha256, "taken": list(file.taken)}
                for file in self.files
            },
            "derived": list(derived),
        }
        return json.dumps(content, indent=1) + "\n"


def collect_sources(given: Mapping[Kind, Sequence[str | Path]], *, model: str, repo_id: str) -> CardSources:
    """Read measurements from where their commands wrote them.

    Args:
        given: Kind to files, or folders that hold one.
        model: Key of the model in the `models` of results.json.
        repo_id: What readers load.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If there are none, or one has another layout; the message names it.
    """
    files = []
    for kind, places in given.items():
        for number, place in enumerate(places, start=1):
            path = Path(place) / WRITTEN_AS[kind] if Path(place).is_dir() else Path(place)
            if not path.is_file():
                raise FileNotFoundError(f"{path} does not exist; measure with `{COMMANDS[kind]}` first.")
            stem, suffix = WRITTEN_AS[kind].rsplit(".", 1)
            stem = f"control-{stem}" if kind == "control" else stem
            name = f"results/{stem}.{suffix}" if number == 1 else f"results/{stem}-{number}.{suffix}"
            files.append(ResultsFile(name, kind, path.read_bytes()))
    if not {file.kind for file in files} - {"control"}:
        raise ValueError(
            "a card is written from measurements and there are none; give it a results.json, or the folder "
            "of an evaluation or of a retrieval."
        )
    return CardSources(repo_id, model, files)


def recorded_sources(folder: Path) -> CardSources:
    """The measurements that the card of a folder was rendered from, unchanged.

    Raises:
        FileNotFoundError: If the folder's card was not rendered by this package.
        ValueError: If a file is gone, with the first number that is then missing, or has changed.
    """
    path = folder / SOURCES_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, so nothing says what the card was measured with; write the card with "
            "`rmcl-hub card` and its results files."
        )
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("format") != FORMAT:
        raise ValueError(f"{path} has format {record.get('format')!r}, this version reads {FORMAT!r}.")
    files = [_recorded_file(folder, name, entry) for name, entry in record["files"].items()]
    return CardSources(record["repo_id"], record["model"], files)


def written_files(folder: Path) -> list[str]:
    """What a former card of the folder was rendered into beside README.md; nothing without one."""
    path = folder / SOURCES_FILE
    if not path.is_file():
        return []
    record = json.loads(path.read_text(encoding="utf-8"))
    return [*record.get("files", ()), *record.get("derived", ())]


def dotted(path: Sequence[str | int]) -> str:
    """A path as messages show it: `numbers.galleries[0].size`."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return "".join(parts).removeprefix(".")


def _recorded_file(folder: Path, name: str, entry: Mapping[str, Any]) -> ResultsFile:
    remedy = f"put the file of SHA-256 {entry['sha256']} back, or render the card with other measurements."
    if not (folder / name).is_file():
        first = next(iter(entry["taken"]), "everything")
        raise ValueError(f"the model card needs {first} of {name}, but that file is gone; {remedy}")
    data = (folder / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ValueError(f"{name} has changed since the model card was rendered from it; {remedy}")
    return ResultsFile(name, entry["kind"], data)


def _check_layout(file: ResultsFile) -> None:
    try:
        if file.kind == "results":
            check_fields(file.content)  # type: ignore[arg-type]
        elif file.kind in ("evaluation", "control"):
            check_record(file.content)
        elif file.content.get("format") != RETRIEVAL_FORMAT:
            raise ValueError(
                f"format is {file.content.get('format')!r}, expected {RETRIEVAL_FORMAT!r}; rank again with "
                "this version."
            )
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error


def _has(value: Any, key: str | int) -> bool:
    return key in value if isinstance(value, dict) else isinstance(key, int) and key < len(value)
