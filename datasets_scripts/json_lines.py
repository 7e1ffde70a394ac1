"""Files with one JSON object a line, as NLVR2 and SNLI-VE publish them."""

import json
from collections.abc import Iterator

from .official_folder import OfficialFolder
from .schema import Row


def read_json_lines(folder: OfficialFolder, *names: str) -> Iterator[Row]:
    """Objects of the first of several alternative files; empty lines are passed over.

    Raises:
        FileNotFoundError, BrokenArchiveError: As `OfficialFolder.read_text`.
        ValueError: If a line is not a JSON object, as the last of a half-finished download is not.
    """
    # Not splitlines, which would also cut at the line separators of Unicode that JSON allows within strings.
    for number, line in enumerate(folder.read_text(*names).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"Line {number} of {' or '.join(names)} in {folder.root} is not valid JSON ({error}); is the "
                "download finished? Fetch it again."
            ) from error
        if not isinstance(content, dict):
            raise ValueError(
                f"Line {number} of {' or '.join(names)} in {folder.root} is {type(content).__name__}, not an "
                "object; expected the published file with one JSON object a line."
            )
        yield content
