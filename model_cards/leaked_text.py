"""What must not leave this machine inside a file: secrets, and paths that tell whose machine it was."""

import json
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CHUNK = 1 << 24  # bytes read at once
OVERLAP = 1 << 12  # longer than any secret that is looked for
# Each begins with a literal, which makes the search through gigabytes of weights fast.
SECRETS = [
    ("a Hugging Face token", rb"hf_[A-Za-z0-9]{30,}"),
    ("a Hugging Face token", rb"api_org_[A-Za-z0-9]{30,}"),
    ("a GitHub token", rb"gh[pousr]_[A-Za-z0-9]{36}"),
    ("a GitHub token", rb"github_pat_\w{60,}"),
    ("a GitLab token", rb"glpat-[\w-]{20}"),
    ("an AWS access key", rb"AKIA[0-9A-Z]{16}(?![0-9A-Za-z])"),
    ("an AWS access key", rb"ASIA[0-9A-Z]{16}(?![0-9A-Za-z])"),
    ("an AWS secret key", rb"aws_secret_access_key[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9/+]{40}"),
    ("an API key", rb"sk-(?<![A-Za-z0-9]sk-)(?:[a-z]+-)*(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{32,}"),
    ("a Slack token", rb"xox[abeoprs]-[0-9]+-[A-Za-z0-9-]{10,}"),
    ("a private key", rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    (
        "an authorisation header",
        rb"uthorization[\"']?\s*[:=]\s*[\"']?(?i:bearer|basic|token)\s+[\w.~+/-]{16,}",
    ),
    ("a password in an address", rb"://[^\s/:@\"'<>]+:[^\s/@\"'<>${}]{3,}@[\w.-]"),
    # Such as WANDB_API_KEY=...: random values have digits, names of other variables seldom do.
    (
        "the value of a secret variable",
        rb"_(?:TOKEN|KEY|SECRET|PASSWORD)[\"']?\s*[=:]\s*[\"']?(?=[A-Za-z_/+-]*[0-9])[\w/+-]{16,}",
    ),
]
# Unlike the paths in URLs, an absolute one follows no word, and unlike relative ones no dot, tilde or slash.
NOT_AFTER = r"[\w.~/+%\\]"
REST = r"[^\s\"'`,;:)\]<>|*]*"
ROOTS = r"home|Users|root|mnt|media|scratch|tmp|private/var|var/folders|Volumes"
LOCAL_PATHS = (
    re.compile(rf"/(?:(?<!{NOT_AFTER}/)|(?<=file:///))(?:{ROOTS})/[\w.@-]{REST}"),
    re.compile(rf":\\(?<=\b[A-Za-z]:\\)\\?\w[\w .-]+\\{{1,2}}\w{REST}"),
    re.compile(rf":/Users/(?<=\b[A-Za-z]:/Users/)[\w.@-]{REST}"),
)
MAX_EXCERPT = 80


def find_secrets(path: Path, known: Sequence[str] = ()) -> Iterator[str]:
    """Places of secrets in a file of any kind, as "line 3: a GitHub token"; never the secret itself.

    Args:
        path: The file; it is read in pieces.
        known: Secrets of this machine, such as the token of the login.
    """
    patterns = [(kind, re.compile(pattern)) for kind, pattern in SECRETS]
    patterns += [("your own token", re.compile(re.escape(item.encode()))) for item in known if item]
    if path.suffix == ".parquet":  # compressed, so that its bytes show nothing
        for place, text in _parquet_texts(path):
            content = text.encode()
            yield from (f"{place}: {kind}" for kind, pattern in patterns if pattern.search(content))
        return
    line, tail, found = 1, b"", set[tuple[int, str]]()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            content = tail + piece
            found |= {
                (line + content.count(b"\n", 0, match.start()), kind)
                for kind, pattern in patterns
                for match in pattern.finditer(content)
            }
            tail = content[-OVERLAP:]
            line += content.count(b"\n", 0, len(content) - len(tail))
    yield from (f"line {number}: {kind}" for number, kind in sorted(found))


def without_secrets(text: str, known: Sequence[str] = ()) -> str:
    """The text with every secret replaced by stars, to be shown or logged."""
    for secret in known:
        text = text.replace(secret, "***") if secret else text
    for _, pattern in SECRETS:
        text = re.sub(pattern.decode(), "***", text)
    return re.sub(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}", r"\1 ***", text)


def find_local_paths(path: Path, places: Sequence[Path] = ()) -> Iterator[str]:
    """Absolute paths of a machine in a text, in the strings of a Parquet file or in a tensor file's metadata.

    Args:
        path: The file; binary files of other kinds hold no text and are passed over.
        places: Folders of this machine whose absolute paths are looked for wherever they lie.
    """
    patterns = [*LOCAL_PATHS, *_patterns_of([*places, Path.home(), Path(tempfile.gettempdir())])]
    for place, text in _texts(path):
        found = [match.group() for pattern in patterns if (match := pattern.search(text))]
        if found:
            yield f"{place}: the local path {max(found, key=len)[:MAX_EXCERPT]}"


def _patterns_of(places: Sequence[Path]) -> Iterator[re.Pattern[str]]:
    """Paths of folders and of what lies in them; of a folder of one name, as /data, only the latter."""
    for name in sorted({str(path) for place in places for path in (place, place.resolve())}):
        if Path(name).is_absolute() and len(name) > 1:
            inside = rf"/[\w.]{REST}"
            rest = f"(?:{inside}|(?!\\w|[.-]\\w))" if name.count("/") > 1 else inside
            yield re.compile(f"{re.escape(name)}(?<!{NOT_AFTER}{re.escape(name)}){rest}")


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of everything readable in a file."""
    if path.suffix == ".parquet":
        yield from _parquet_texts(path)
    elif path.suffix == ".safetensors":
        with path.open("rb") as file:  # eight bytes of length, then JSON
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        yield "its metadata", json.dumps(header.get("__metadata__", {}), ensure_ascii=False)
    elif path.suffix == ".tar":
        with tarfile.open(path) as archive:
            for entry in archive:
                content = file.read() if (file := archive.extractfile(entry)) else b""
                if b"\0" not in content:
                    yield f"its member {entry.name}", content.decode("utf-8", errors="replace")
    else:
        with path.open("rb") as file:
            if b"\0" in file.read(CHUNK):
                return
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from ((f"line {number}", line) for number, line in enumerate(file, 1))


def _parquet_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Metadata, and the strings of a column in a row group as one text, as rows repeat what is in them."""
    with pq.ParquetFile(path) as file:
        for key, value in (file.schema_arrow.metadata or {}).items():
            yield f"metadata {key.decode()!r}", value.decode("utf-8", errors="replace")
        leaves = [file.schema.column(index) for index in range(len(file.schema))]
        strings = [leaf.path for leaf in leaves if leaf.logical_type.type == "STRING"]  # no pictures
        for group in range(file.num_row_groups if strings else 0):
            table = file.read_row_group(group, columns=strings)
            for name in table.column_names:
                text = "\n".join(value for chunk in table[name].chunks for value in _strings_of(chunk))
                yield f"column {name!r}, row group {group}", text


def _strings_of(array: Any) -> Iterator[str]:
    """All strings of an Arrow array, through lists, structs, dictionaries and extensions."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        yield from _strings_of(array.storage)
    elif isinstance(array, pa.DictionaryArray):
        yield from _strings_of(array.dictionary)
    elif isinstance(array, pa.MapArray):
        yield from _strings_of(array.keys)
        yield from _strings_of(array.items)
    elif pa.types.is_struct(kind):
        for part in array.flatten():
            yield from _strings_of(part)
    elif pa.types.is_nested(kind):
        yield from _strings_of(array.flatten())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield from (value for value in array.to_pylist() if value)
