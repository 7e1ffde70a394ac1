"""Whether a record is an `evaluation.json`: the published JSON Schema, applied with errors that teach."""

import json
import re
from collections.abc import Callable, Iterator
from functools import cache, reduce
from math import isfinite
from operator import getitem
from pathlib import Path
from typing import Any, TypeAlias

SCHEMA_FILE = Path(__file__).with_name("evaluation.schema.json")
MAX_ERRORS = 5
Schema: TypeAlias = dict[str, Any]
Errors: TypeAlias = Iterator[str]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": _is_number,
    "integer": lambda value: _is_number(value) and float(value).is_integer(),
}


@cache
def evaluation_schema() -> Schema:
    """The JSON Schema (draft 2020-12) of `evaluation.json`; any validator can read it."""
    return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def check_record(record: Any) -> None:
    """Hold a record against the schema.

    Only the keywords that the schema uses are understood, so that reading a record needs no validator
    installed.

    Args:
        record: As read from `evaluation.json`.

    Raises:
        ValueError: If the record does not fit. The message has the path of each wrong field, what came and
            what was expected.
    """
    found = schema_errors(record, evaluation_schema())
    if found:
        more = f"\n- and {len(found) - MAX_ERRORS} more" if len(found) > MAX_ERRORS else ""
        raise ValueError(
            "this is no evaluation record:\n- "
            + "\n- ".join(found[:MAX_ERRORS])
            + f"{more}\nEvaluate again with this version, or see {SCHEMA_FILE.name} for the layout."
        )


def schema_errors(value: Any, schema: Schema) -> list[str]:
    """What of a value does not fit a schema, each with its path; every `$ref` leads into the schema above."""
    return list(_errors(value, schema, ""))


def _errors(value: Any, schema: Schema | bool, path: str) -> Errors:
    if isinstance(schema, bool):
        if not schema:
            yield f"{path}: is not part of the layout; remove it or correct its name"
        return
    if "$ref" in schema:
        keys = schema["$ref"].split("#/")[1].split("/")
        yield from _errors(value, reduce(getitem, keys, evaluation_schema()), path)
    expected = _expected(value, schema)
    if expected:
        meaning = f" ({schema['description'].rstrip('.')})" if "description" in schema else ""
        yield f"{path or 'the record'}: is {_shown(value)}; expected {expected}{meaning}"
    elif isinstance(value, dict):
        yield from _errors_of_object(value, schema, path)
    elif isinstance(value, list):
        yield from _errors_of_array(value, schema, path)


def _expected(value: Any, schema: Schema) -> str | None:
    """What the schema asks of the value itself, if it is something else."""
    types = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", [])
    if types and not any(_TYPES[name](value) for name in types):
        return " or ".join(types)
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if choices is not None and not any(type(value) is type(choice) and value == choice for choice in choices):
        return " or ".join(json.dumps(choice) for choice in choices)
    if isinstance(value, str):
        return _expected_of_string(value, schema)
    if _is_number(value):
        if value < schema.get("minimum", value):
            return f"at least {schema['minimum']}"
        if value > schema.get("maximum", value):
            return f"at most {schema['maximum']}"
    return None


def _expected_of_string(value: str, schema: Schema) -> str | None:
    if len(value) < schema.get("minLength", 0):
        return "a text that is not empty"
    if not re.search(schema.get("pattern", ""), value):
        return f"a text like {schema['pattern']}"
    return None


def _errors_of_object(value: dict[str, Any], schema: Schema, path: str) -> Errors:
    for name in schema.get("required", ()):
        if name not in value:
            known = schema.get("properties", {}).get(name, {}).get("description", "")
            yield f"{_join(path, name)}: is missing" + (f" ({known.rstrip('.')})" if known else "")
    if len(value) < schema.get("minProperties", 0):
        yield f"{path}: is empty; expected at least {schema['minProperties']} entry"
    for name, entry in value.items():
        rule = schema.get("properties", {}).get(name, schema.get("additionalProperties", True))
        yield from _errors(entry, rule, _join(path, name))


def _errors_of_array(value: list[Any], schema: Schema, path: str) -> Errors:
    if len(value) < schema.get("minItems", 0):
        yield f"{path}: has {len(value)} entries; expected at least {schema['minItems']}"
        return
    first = schema.get("prefixItems", [])
    for position, entry in enumerate(value):
        rule = first[position] if position < len(first) else schema.get("items", True)
        yield from _errors(entry, rule, f"{path}[{position}]")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'an array'} of {len(value)}"
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
