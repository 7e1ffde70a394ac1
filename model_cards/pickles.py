"""Files that run code when they are loaded: pickles, under any name and inside archives."""

import bz2
import gzip
import io
import lzma
import pickletools
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

SUFFIXES = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
HEAD = 1 << 20  # bytes that are looked at
EXECUTABLE = {"GLOBAL", "INST", "MARK", "OBJ", "REDUCE"}  # what a text that happens to parse does not have
COMPRESSED: dict[bytes, Callable[[IO[bytes]], bytes]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file).read(HEAD),
    b"BZh": lambda file: bz2.BZ2File(file).read(HEAD),
    b"\xfd7zXZ": lambda file: lzma.LZMADecompressor().decompress(file.read(HEAD), HEAD),
    b"\x78": lambda file: zlib.decompressobj().decompress(file.read(HEAD), HEAD),
}


def find_pickles(path: Path) -> Iterator[str]:
    """Reasons why a file is, or holds, a pickle.

    PyTorch's checkpoints, joblib's files (compressed ones too) and NumPy's arrays of objects are pickles; the
    members of ZIP archives and of WebDataset's tar files are looked at one by one.
    """
    if path.suffix.lower() in SUFFIXES:
        yield f"files that end in {path.suffix} are loaded as pickles"
        return
    try:
        with path.open("rb") as file:
            yield from _reasons(file)
            file.seek(0)
            if zipfile.is_zipfile(file):
                yield from _zip_reasons(file)
        if path.suffix == ".tar":
            with tarfile.open(path) as archive:
                for entry in archive:
                    if member := archive.extractfile(entry):
                        yield from _member_reasons(entry.name, member)
    except (tarfile.TarError, zipfile.BadZipFile, RuntimeError) as error:  # RuntimeError: it has a password
        yield f"this archive cannot be looked into ({error})"


def _zip_reasons(file: IO[bytes]) -> Iterator[str]:
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                yield from _member_reasons(name, member)


def _member_reasons(name: str, member: IO[bytes]) -> Iterator[str]:
    if name.lower().endswith((*SUFFIXES, ".pyd")):
        yield f"its member {name} is loaded as a pickle"
    else:
        yield from (f"its member {name}: {reason}" for reason in _reasons(member))


def _reasons(file: IO[bytes]) -> Iterator[str]:
    head = file.read(HEAD)
    if _is_pickle(head):
        yield "its content is a pickle"
    elif head.startswith(b"\x93NUMPY") and _holds_objects(head):
        yield "it is a NumPy array of Python objects, which are pickled"
    for magic, decompress in COMPRESSED.items():
        if head.startswith(magic):
            try:
                content = decompress(io.BytesIO(head))
            except (EOFError, OSError, lzma.LZMAError, zlib.error):
                continue  # it only begins like that
            if _is_pickle(content):
                yield "its compressed content is a pickle"


def _is_pickle(head: bytes) -> bool:
    """Whether bytes are a pickle, or begin one: a loader runs what stands before the place where it fails."""
    found = set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of escapes in what is no pickle
            for opcode, argument, _ in pickletools.genops(head):
                if opcode.name == "PROTO" and not 2 <= int(argument or 0) <= 5:
                    return False
                found.add(opcode.name)
    except (OverflowError, UnicodeDecodeError, ValueError):
        # Text often begins with a letter that is an opcode; only a header tells that it was meant as one.
        return "PROTO" in found and len(found) > 1
    return "PROTO" in found or bool(found & EXECUTABLE)


def _holds_objects(head: bytes) -> bool:
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, dtype = read(file)
    return dtype.hasobject
