"""What prepared corpora really hold: counts, lengths of texts, damage, and pictures that they share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from tqdm.auto import tqdm

from .processes import map_in_processes
from .protocols import PROTOCOLS
from .shard_reading import ReadingJob, ShardContent, read_content
from .shards import PreparedCorpus

MAX_SENTENCES = 20
"""Damages that are listed of a split."""


@dataclass(frozen=True)
class CheckedSplit:
    """A split as it was found.

    Attributes:
        location: Of its corpus.
        corpus: Name of the corpus.
        split: Name of the split.
        rows: Number of rows.
        images: Number of distinct pictures, by their pixels.
        texts: Number of texts.
        mean_length: Of the texts, in word pieces, special tokens excluded.
        std_length: Standard deviation of the lengths (of all texts, hence divided by their number).
        problems: What is damaged.
    """

    location: str
    corpus: str
    split: str
    rows: int
    images: int
    texts: int
    mean_length: float
    std_length: float
    problems: tuple[str, ...]


@dataclass(frozen=True)
class SharedPictures:
    """What two splits have in common.

    Attributes:
        first: Location and name of a split.
        second: Likewise of the other.
        images: Distinct pictures that are in both, pixel by pixel.
        image_ids: Image ids of the same source that are in both.
        contaminated: Whether one is trained and the other tested on, by their protocols or names. Of two
            corpora it matters only to a model that sees both.
    """

    first: str
    second: str
    images: int
    image_ids: int
    contaminated: bool


@dataclass(frozen=True)
class CheckReport:
    """All that `check` found."""

    splits: tuple[CheckedSplit, ...]
    shared: tuple[SharedPictures, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is damaged and no two splits are contaminated."""
        damaged = any(split.problems for split in self.splits)
        return not damaged and not any(pair.contaminated for pair in self.shared)


def check(
    locations: Sequence[str], tokenizer: str | None = None, num_workers: int | None = None
) -> CheckReport:
    """Read all shards of prepared corpora, decode every picture, and compare every split with every other.

    A picture that is stored again at another size or quality counts as another one: near duplicates are not
    looked for. In memory are 16 bytes a picture and its id, never a picture.

    Args:
        locations: Folders, or `hf://datasets/<user>/<name>@<commit>`.
        tokenizer: Folder of the tokenizer that measures texts; None: the packaged vocabulary.
        num_workers: Processes; None: one per processor.

    Raises:
        FileNotFoundError: If a location is no prepared corpus, or there is no such tokenizer.
    """
    corpora = [PreparedCorpus(location) for location in dict.fromkeys(locations)]
    if tokenizer is not None and not Path(tokenizer).is_dir():
        raise FileNotFoundError(
            f"There is no folder {tokenizer} with a tokenizer; give one that `save_pretrained` wrote, "
            "such as that of bert-base-uncased."
        )
    owners = [(corpus, split) for corpus in corpora for split in corpus.manifest.splits]
    contents = {(corpus.location, split): ShardContent() for corpus, split in owners}
    jobs, keys = [], []
    for corpus, split in owners:
        manifest = corpus.manifest
        for shard, address in zip(corpus.split(split).shards, corpus.files(split), strict=True):
            jobs.append(
                ReadingJob(manifest.corpus, manifest.task, manifest.format, address, shard, tokenizer)
            )
            keys.append((corpus.location, split))
    read = map_in_processes(read_content, jobs, num_workers)
    for key, content in zip(keys, tqdm(read, total=len(jobs), desc="check", unit="shard"), strict=True):
        contents[key].add(content)
    checked = tuple(
        _checked_split(corpus, split, contents[corpus.location, split]) for corpus, split in owners
    )
    return CheckReport(checked, tuple(_shared_pictures(checked, contents)))


def describe_check(report: CheckReport) -> list[str]:
    """The report as a table, what splits share, and what is damaged."""
    lines = [
        "| corpus | split | rows | pictures | texts | length in word pieces | damages |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {split.corpus} | {split.split} | {split.rows:,} | {split.images:,} | {split.texts:,} | "
        f"{split.mean_length:.2f} ± {split.std_length:.2f} | {len(split.problems):,} |"
        for split in report.splits
    ]
    lines += ["", "Pictures are told apart by their pixels; lengths are without special tokens."]
    for pair in report.shared:
        verdict = (
            " A MODEL THAT TRAINS ON THE ONE MUST NOT BE TESTED ON THE OTHER." if pair.contaminated else ""
        )
        lines.append(
            f"- {pair.first} and {pair.second} share {pair.images:,} pictures and {pair.image_ids:,} image "
            f"ids.{verdict}"
        )
    if not report.shared:
        lines.append("- No two splits share a picture or an image id; near duplicates were not looked for.")
    for split in report.splits:
        lines += [f"- {problem}" for problem in split.problems[:MAX_SENTENCES]]
        if (more := len(split.problems) - MAX_SENTENCES) > 0:
            lines.append(f"- {more:,} more damages in {split.location} {split.split}.")
    return lines


def _checked_split(corpus: PreparedCorpus, split: str, content: ShardContent) -> CheckedSplit:
    mean = content.pieces / max(content.texts, 1)
    variance = content.squared_pieces / max(content.texts, 1) - mean**2
    return CheckedSplit(
        corpus.location,
        corpus.manifest.corpus,
        split,
        content.rows,
        len(content.pictures),
        content.texts,
        mean,
        math.sqrt(max(variance, 0.0)),
        tuple(content.problems),
    )


def _shared_pictures(
    splits: Sequence[CheckedSplit], contents: dict[tuple[str, str], ShardContent]
) -> list[SharedPictures]:
    shared = []
    for first, second in combinations(splits, 2):
        ours, theirs = contents[first.location, first.split], contents[second.location, second.split]
        images = len(ours.pictures & theirs.pictures)
        image_ids = len(ours.image_ids & theirs.image_ids)
        if images or image_ids:
            roles = {_role(first.corpus, first.split), _role(second.corpus, second.split)}
            shared.append(
                SharedPictures(
                    f"{first.location} {first.split}",
                    f"{second.location} {second.split}",
                    images,
                    image_ids,
                    roles == {"train", "test"},
                )
            )
    return shared


def _role(corpus: str, split: str) -> str:
    """Whether a split is trained or tested on in the clean protocol; by its name if that does not have it."""
    for protocol in PROTOCOLS:
        if (protocol.name, protocol.corpus) == ("clean", corpus):
            for role in ("train", "validation", "test"):
                if split in getattr(protocol, role):
                    return role
    return next((role for role in ("train", "test") if split.startswith(role)), "validation")
