"""A folder of files as a corpus publishes them: annotations and pictures, packed or unpacked."""

import json
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from .images import UnreadableImageError

Archive = zipfile.ZipFile | tarfile.TarFile


class BrokenArchiveError(OSError):
    """An archive is cut off or damaged."""


class MissingPictureError(UnreadableImageError):
    """A picture that the annotations name is not there."""


class OfficialFolder:
    """Reads files by their published names, from the folder or from the archives in it.

    Args:
        root: The folder that holds what was downloaded.
        archives: Names of the zip or tar files to look into for what is not unpacked. Those that are not
            there are passed over; a picture that is nowhere is reported when it is asked for.

    Attributes:
        dropped: How many rows were left out, by reason.

    Raises:
        FileNotFoundError: If there is no such folder.
    """

    def __init__(self, root: str | Path, archives: Sequence[str] = ()) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"There is no folder {self.root}; give the one with the downloaded files."
            )
        self.archives = tuple(archives)
        self.dropped: Counter[str] = Counter()
        self._members: dict[str, Archive] | None = None

    def read_text(self, *names: str) -> str:
        """Text of the first of several alternative names, such as `captions_train2014.json`.

        Raises:
            FileNotFoundError: If none of them is in the folder or its archives.
        """
        for name in names:
            if (content := self._read(name)) is not None:
                return content.decode("utf-8")
        raise FileNotFoundError(
            f"{self.root} holds no {' or '.join(names)}, neither unpacked nor in "
            f"{', '.join(self.archives) or 'an archive'}; download it there (see the README of the corpus)."
        )

    def read_json(self, *names: str) -> Any:
        """The same as parsed JSON.

        Raises:
            FileNotFoundError: As `read_text`.
            ValueError: If it is not valid JSON, as a half-finished download is not.
        """
        text = self.read_text(*names)
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{self.root / names[0]} is not valid JSON ({error}); is the download finished? Fetch it again."
            ) from error

    def has(self, name: str) -> bool:
        """Whether a file is there, unpacked or packed."""
        return (self.root / name).is_file() or name in self._index()

    def read_picture(self, name: str) -> bytes:
        """Bytes of a picture, by its path in the corpus.

        Raises:
            MissingPictureError: If it is not there.
            UnreadableImageError: If it cannot be unpacked.
        """
        try:
            content = self._read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UnreadableImageError(f"image {name!r} cannot be unpacked: {error}") from error
        if content is None:
            raise MissingPictureError(f"image {name!r} is neither in {self.root} nor in its archives")
        return content

    def _read(self, name: str) -> bytes | None:
        if not is_safe_path(name):
            return None
        unpacked = self.root / name
        if unpacked.is_file():
            return unpacked.read_bytes()
        archive = self._index().get(name)
        if archive is None:
            return None
        if isinstance(archive, zipfile.ZipFile):
            return archive.read(name)
        member: IO[bytes] | None = archive.extractfile(name)
        return None if member is None else member.read()

    def _index(self) -> dict[str, Archive]:
        if self._members is None:
            self._members = {}
            for path in (self.root / name for name in self.archives):
                if path.is_file():
                    archive = _open(path)
                    names = archive.namelist() if isinstance(archive, zipfile.ZipFile) else archive.getnames()
                    self._members |= dict.fromkeys(names, archive)
        return self._members

    def __getstate__(self) -> dict[str, Any]:
        """Open archives stay behind: every process opens its own."""
        return {**self.__dict__, "_members": None}


def is_safe_path(name: str) -> bool:
    """Whether a relative path stays inside its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and name != ""


def _open(path: Path) -> Archive:
    try:
        return zipfile.ZipFile(path) if path.suffix == ".zip" else tarfile.open(path, "r:")
    except (zipfile.BadZipFile, tarfile.ReadError) as error:
        raise BrokenArchiveError(
            f"{path} ({path.stat().st_size:,} bytes) is not a complete archive ({error}): a half-finished "
            "download, or a compressed tar, which must be unpacked first? Fetch the rest (`curl -C -`), or "
            "remove it."
        ) from error
