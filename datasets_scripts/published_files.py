"""Whether archives are those that a corpus publishes: first their sizes, then their checksums."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from .official_builder import OfficialBuilder
from .shard_writing import sha256_of


def check_sizes(corpus: type[OfficialBuilder], root: Path) -> None:
    """Compare the archives that are in a folder with the published sizes.

    Raises:
        ValueError: If one has another size.
    """
    for name, published in corpus.published.items():
        path = root / name
        if published.size is None or not path.is_file():
            continue
        if (size := path.stat().st_size) == published.size:
            continue
        source = f" with `curl -C - -O {published.url}`" if published.url else ""
        raise ValueError(
            f"{path} has {size:,} bytes, but {published.size:,} are published. If the download "
            f"is half-finished, fetch the rest{source}; accept another edition with --unofficial."
        )


def check_checksums(
    corpus: type[OfficialBuilder], root: Path, manifest: Path, checked: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Compare the archives that are in a folder with the published checksums; each is read once.

    Args:
        corpus: Its builder.
        root: Folder of published files.
        manifest: File that was written after `checked`: what has not changed since is not read again.
        checked: SHA-256 by name, of earlier runs.

    Yields:
        Name and SHA-256 of each archive that was read.

    Raises:
        ValueError: If one has another checksum.
    """
    written = manifest.stat().st_mtime_ns if manifest.is_file() else 0
    for name, published in corpus.published.items():
        path = root / name
        if published.sha256 is None or not path.is_file():
            continue
        # The time of the last change of the file's entry, because downloaders set the time of its content.
        changed = path.stat().st_ctime_ns > written
        if not changed and checked.get(name) == published.sha256:
            continue
        if sha256_of(path, f"check {name}") != published.sha256:
            source = f" from {published.url}" if published.url else ""
            raise ValueError(
                f"{path} has another checksum than the published {published.sha256}: fetch it again{source}, "
                "or accept it with --unofficial."
            )
        yield name, published.sha256
