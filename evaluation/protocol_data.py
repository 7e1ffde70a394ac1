"""What a protocol tests on: rows of the embedded set or of a prepared corpus, and how a record names them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

from rmcl_hub.datasets_scripts.protocols import Protocol, find_protocol

from .file_overlap import PreparedSplits

EMBEDDED = "openpairs"
CUSTOM = "custom"
DATA_TASKS = {"matching": "retrieval", "mlm": "retrieval"}
"""Tasks whose rows are those of another one; all others have rows of their own."""


class GalleryEntry(TypedDict):
    """Pictures that are ranked against each other, and in how many disjoint groups."""

    size: int
    count: int


class ProtocolEntry(TypedDict):
    """How a record names what its numbers are about; only numbers with equal names belong in one table.

    Attributes:
        name: `clean`, `thesis`, `openpairs`, `custom` (a gallery that is not the protocol's), or `unnamed`
            (rows that a caller passed).
        corpus: As in `corpora.CORPORA`, or `openpairs`.
        splits: What was tested on.
        galleries: Of retrieval; empty for other tasks.
        contamination: What a reader must know before comparing the numbers with others; empty if nothing.
        location: Where the rows were read; None if they were embedded or passed. Not part of the name.
    """

    name: str
    corpus: str
    splits: list[str]
    galleries: list[GalleryEntry]
    contamination: str
    location: str | None


UNNAMED: ProtocolEntry = {
    "name": "unnamed",
    "corpus": "unnamed",
    "splits": [],
    "galleries": [],
    "contamination": "",
    "location": None,
}


@dataclass(frozen=True)
class ProtocolData:
    """Rows of one protocol.

    Attributes:
        task: What is tested.
        protocol: On which splits.
        location: Folder or Hub address of the prepared corpus; None for the embedded set.
        test: `datasets.Dataset` of all its test splits, one after the other.
        train: What the weights were fitted to: rows of the embedded set, or where those of a corpus are.
    """

    task: str
    protocol: Protocol
    location: str | None
    test: Any
    train: Any

    @property
    def entry(self) -> ProtocolEntry:
        """For the record."""
        galleries = self.protocol.galleries if self.task == "retrieval" else ()
        location = self.location
        if location is not None and "://" not in location:
            location = os.path.relpath(location)  # records are published, folders of this machine are not
        return {
            "name": self.protocol.name,
            "corpus": self.protocol.corpus,
            "splits": list(self.protocol.test),
            "galleries": [{"size": gallery.size, "count": gallery.count} for gallery in galleries],
            "contamination": self.protocol.contamination,
            "location": location,
        }


def load_protocol_data(
    task: str, location: str | None = None, protocol: str | None = None, split: str | None = None
) -> ProtocolData:
    """Load what a task is tested on.

    Args:
        task: `"vqa"`, `"nlvr2"`, `"snli_ve"`, `"retrieval"`, `"matching"` or `"mlm"`.
        location: Folder of a prepared corpus, or `hf://datasets/<user>/<name>@<revision>`; None: the embedded
            set.
        protocol: `"clean"` or `"thesis"`; None: `"clean"`. Of a prepared corpus only.
        split: Of the embedded set, whose own protocol is `"openpairs"`; None: `"test"`.

    Raises:
        ValueError: If there is no such protocol or split, or the corpus is of another task.
        FileNotFoundError: If nothing is prepared at the location.
    """
    wanted = DATA_TASKS.get(task, task)
    if location is None:
        return _embedded(task, wanted, protocol, split or "test")
    if split is not None:
        raise ValueError(
            f"split {split!r} of {location}: the protocol says which splits of a corpus are tested; leave "
            "--split out."
        )
    from rmcl_hub.datasets_scripts.corpora import load_corpus
    from rmcl_hub.datasets_scripts.shards import PreparedCorpus

    prepared = PreparedCorpus(location)
    found = find_protocol(protocol or "clean", prepared.manifest.corpus)
    if found.task != wanted:
        raise ValueError(
            f"{location} holds {found.corpus}, which is for task {found.task!r}, not {task!r}; give a corpus "
            "of that task."
        )
    for name in (*found.test, *found.train):
        prepared.split(name)  # says which one is missing
    import datasets

    test: Any = [load_corpus(location, name) for name in found.test]
    return ProtocolData(
        task, found, location, datasets.concatenate_datasets(test), PreparedSplits(prepared, found.train)
    )


def _embedded(task: str, wanted: str, protocol: str | None, split: str) -> ProtocolData:
    from rmcl_hub.datasets_scripts.openpairs import SPLITS_OF_CONFIG, load_openpairs

    if protocol not in (None, EMBEDDED):
        raise ValueError(
            f"protocol {protocol!r} is one of a corpus, and none was given; add --data with the folder that "
            "`rmcl-hub data prepare` wrote."
        )
    config = "captions" if wanted == "retrieval" else wanted
    if config not in SPLITS_OF_CONFIG:
        raise ValueError(
            f"the embedded set has no rows of task {task!r}; add --data with the folder that `rmcl-hub data "
            "prepare` wrote."
        )
    found = Protocol(EMBEDDED, EMBEDDED, wanted, ("train",), ("validation",), (split,))
    return ProtocolData(task, found, None, load_openpairs(config, split), load_openpairs(config, "train"))


def describe_protocol(entry: ProtocolEntry) -> str:
    """The protocol for captions and sentences; empty for rows without one."""
    if entry["name"] == UNNAMED["name"]:
        return ""
    if entry["name"] == CUSTOM:
        return (
            f"custom gallery of {entry['corpus']}, {' + '.join(entry['splits'])}, which no protocol declares"
        )
    tainted = " (contaminated)" if entry["contamination"] else ""
    name = "embedded" if entry["name"] == EMBEDDED else f"{entry['name']} protocol of"
    return f"{name} {entry['corpus']}, {' + '.join(entry['splits'])}{tainted}"


def protocol_lines(task: str, entry: ProtocolEntry) -> Iterator[str]:
    """What stands above a table of a task's numbers."""
    yield f"{task}: {describe_protocol(entry) or 'rows without a protocol'}"
    if entry["contamination"]:
        yield f"CONTAMINATED, not to be compared with other protocols: {entry['contamination']}"


def check_same_protocol(first: ProtocolEntry, second: ProtocolEntry) -> None:
    """Refuse to put numbers of different protocols, corpora, splits or galleries side by side.

    Raises:
        ValueError: If they differ; it says in what.
    """
    names = [name for name in ProtocolEntry.__annotations__ if name != "location"]
    different = [name for name in names if first[name] != second[name]]
    if different:
        pairs = "; ".join(f"{name}: {first[name]!r} and {second[name]!r}" for name in different)
        raise ValueError(
            f"numbers of different protocols are never mixed in one table, but these differ in {pairs}. "
            "Evaluate both with the same --data and --protocol."
        )
