"""WebDataset shards: tar files with the pictures of each row, and a JSON file of its other columns."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from .schema import Row, image_columns


def write_samples(path: Path, task: str, rows: Iterable[Row]) -> None:
    """Write rows, pictures as `{"bytes": ..., "path": ...}`, as `<key>.<column>.jpg` and `<key>.json`.

    The JSON file of a row comes last and has the pictures' paths in the corpus; a key is unique in its split.
    """
    with tarfile.open(path, "w") as tar:
        for index, row in enumerate(rows):
            key = f"{path.stem}-{index:06d}"
            plain = dict(row)
            for column in image_columns(task):
                plain[column] = row[column]["path"]
                suffix = PurePosixPath(plain[column]).suffix.lower() or ".jpg"
                _add(tar, f"{key}.{column}{suffix}", row[column]["bytes"])
            _add(tar, f"{key}.json", json.dumps(plain, ensure_ascii=False).encode("utf-8"))


def read_samples(stream: IO[bytes], task: str) -> Iterator[Row]:
    """The rows again, one after the other.

    Raises:
        OSError: If the tar file is cut off or damaged (tarfile.TarError is one).
        KeyError: If a row lacks a picture.
    """
    pictures: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                _, _, name = member.name.partition(".")
                content = tar.extractfile(member)
                assert content is not None, "only files are written"
                if name != "json":
                    pictures[name.partition(".")[0]] = content.read()
                    continue
                row = json.loads(content.read())
                for column in image_columns(task):
                    row[column] = {"bytes": pictures.pop(column), "path": row[column]}
                yield row
    except tarfile.TarError as error:
        raise OSError(str(error)) from error
    if pictures:  # a tar file that is cut off between two members looks like a whole one
        raise OSError("it ends within a row")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # owner 0, time 0: equal rows give equal bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
