"""A folder of files as a corpus publishes them: annotations and pictures, packed or unpacked."""

import json
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .images import UnreadableImageError

_TAR_END = 1024  # bytes of zeros that close a tar archive
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError)


class BrokenArchiveError(OSError):
    """An archive is cut off, damaged, or of a kind that pictures cannot be picked out of."""


class MissingPictureError(UnreadableImageError):
    """A picture that the annotations name is not there."""


class OfficialFolder:
    """Reads files by their published names, from the folder or from the archives in it.

    A path may also lead through a tar: `train/00000.tar/000000002.jpg`.

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
        self._tar: TarArchive | None = None

    def read_text(self, *names: str) -> str:
        """Text of the first of several alternative names, such as `captions_train2014.json`.

        Raises:
            FileNotFoundError: If none of them is in the folder or its archives.
            BrokenArchiveError: If it cannot be unpacked.
            ValueError: If it is not text.
        """
        for name in names:
            try:
                if (content := self._read(name)) is not None:
                    return content.decode("utf-8")
            except _DAMAGE as error:
                raise BrokenArchiveError(
                    f"{name} cannot be unpacked from its archive in {self.root}: {error}. Fetch that again."
                ) from error
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{self.root / name} is not UTF-8 text ({error}); is it the right file?"
                ) from error
        raise FileNotFoundError(
            f"{self.root} holds no {' or '.join(names)}, neither unpacked nor in "
            f"{', '.join(self.archives) or 'an archive'}; fetch it (datasets_scripts/CORPORA.md tells "
            "from where)."
        )

    def read_json(self, *names: str) -> Any:
        """The same as parsed JSON.

        Raises:
            FileNotFoundError, BrokenArchiveError: As `read_text`.
            ValueError: If it is not valid JSON, as a half-finished download is not.
        """
        text = self.read_text(*names)
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{' or '.join(names)} in {self.root} is not valid JSON ({error}); is the download finished? "
                "Fetch it again."
            ) from error

    def has(self, *names: str) -> bool:
        """Whether a file is there under one of its names, unpacked or packed."""
        safe = [name for name in names if is_safe_path(name)]
        return any((self.root / name).is_file() or name in self._index() for name in safe)

    def read_picture(self, name: str) -> bytes:
        """Bytes of a picture, by its path in the corpus.

        Raises:
            MissingPictureError: If it is not there.
            UnreadableImageError: If it cannot be unpacked.
            BrokenArchiveError: If its archive is cut off, or is a compressed tar.
        """
        try:
            content = self._read(name)
        except _DAMAGE as error:
            raise UnreadableImageError(f"image {name!r} cannot be unpacked: {error}") from error
        if content is None:
            self._refuse_compressed_tars()
            raise MissingPictureError(f"image {name!r} is neither in {self.root} nor in its archives")
        return content

    def _read(self, name: str) -> bytes | None:
        if not is_safe_path(name):
            return None
        unpacked = self.root / name
        if unpacked.is_file():
            return unpacked.read_bytes()
        tar, inside, member = name.rpartition(".tar/")
        if inside:
            return self._read_from_tar(self.root / f"{tar}.tar", member)
        archive = self._index().get(name)
        return None if archive is None else archive.read(name)

    def _read_from_tar(self, path: Path, member: str) -> bytes | None:
        """Rows come tar by tar, and there may be hundreds, so only the index of the latest is kept."""
        if self._tar is None or self._tar.path != path:
            if not path.is_file():
                return None
            self._tar = TarArchive(path)
        return self._tar.read(member) if member in self._tar.members else None

    def _index(self) -> dict[str, "Archive"]:
        if self._members is None:
            self._members = {}
            for path in (self.root / name for name in self.archives):
                if path.is_file():
                    archive = _open_zip(path) if path.suffix == ".zip" else TarArchive(path)
                    self._members |= dict.fromkeys(archive.namelist(), archive)
        return self._members

    def _refuse_compressed_tars(self) -> None:
        for name in self.archives:
            for packed in (self.root / f"{name}.gz", (self.root / name).with_suffix(".tgz")):
                if name.endswith(".tar") and packed.is_file() and not (self.root / name).is_file():
                    raise BrokenArchiveError(
                        f"{packed} is a compressed tar, out of which single pictures cannot be read; unpack "
                        f"it there: `tar -xzf {packed.name}`."
                    )

    def __getstate__(self) -> dict[str, Any]:
        """Open archives stay behind: every process opens its own."""
        return {**self.__dict__, "_members": None, "_tar": None}


class TarArchive:
    """Random access to an uncompressed tar.

    Args:
        path: The file.

    Attributes:
        members: First byte and length of each file in it, by name.

    Raises:
        BrokenArchiveError: If it is cut off or compressed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with tarfile.open(path, "r:") as archive:
                self.members = {
                    member.name: (member.offset_data, member.size) for member in archive if member.isreg()
                }
        except tarfile.ReadError as error:
            raise _broken(path, error) from error
        self._stream = path.open("rb")
        self._stream.seek(max(0, path.stat().st_size - _TAR_END))
        if any(self._stream.read()):  # cut where tarfile takes it for the end: in a header or before one
            raise _broken(path, "its end is missing")

    def namelist(self) -> list[str]:
        """Names of the files, as `zipfile.ZipFile.namelist` gives them."""
        return list(self.members)

    def read(self, name: str) -> bytes:
        """Content of a file."""
        start, size = self.members[name]
        self._stream.seek(start)
        return self._stream.read(size)


Archive = zipfile.ZipFile | TarArchive


def is_safe_path(name: str) -> bool:
    """Whether a relative path stays inside its folder, on any system."""
    paths = PurePosixPath(name), PureWindowsPath(name)
    return name != "" and not any(path.anchor or ".." in path.parts for path in paths)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise _broken(path, error) from error


def _broken(path: Path, reason: Exception | str) -> BrokenArchiveError:
    return BrokenArchiveError(
        f"{path} ({path.stat().st_size:,} bytes) is not a complete archive ({reason}): a half-finished "
        "download, or a compressed tar, which must be unpacked first? Fetch the rest (`curl -C -`), or "
        "remove it."
    )
