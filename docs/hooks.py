"""What the site shows but no page holds: rules, commands and measured figures as the code and the files have
them, and the documents that lie beside the code.

MkDocs calls the functions `on_...`. A page asks for a table by `<!-- insert: NAME -->`.
"""

import io
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
DOCUMENTS = {
    "benchmarks.md": "benchmarks/README.md",
    "changelog.md": "CHANGELOG.md",
    "how-to/contribute.md": "CONTRIBUTING.md",
    "how-to/corpora.md": "datasets_scripts/CORPORA.md",
    "how-to/processes.md": "recipes/ACCELERATE.md",
}
"""Pages that are files of the repository, by their place in the site."""
SUBCOMMANDS = {"data": ("prepare", "check")}
_view = tempfile.TemporaryDirectory(prefix="rmcl-hub-docs-")


@event_priority(100)  # before mkdocstrings looks for the code
def on_config(config: Any) -> None:
    """Show mkdocstrings the folders as the one package that they install as."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = project["tool"]["setuptools"]["package-dir"]
    package = Path(_view.name) / "rmcl_hub"
    if not package.exists():
        package.mkdir()
        for file in (ROOT / folders.pop("rmcl_hub")).iterdir():
            (package / file.name).symlink_to(file)
        for name, folder in folders.items():
            (package / name.removeprefix("rmcl_hub.")).symlink_to(ROOT / folder)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_view.name]


def on_files(files: Any, config: Any) -> None:
    """Add the documents that lie beside the code."""
    for page, document in DOCUMENTS.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / document)))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Insert the tables that a page asks for."""
    if page.file.src_uri in DOCUMENTS:  # what their links name is no page of the site
        return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"`\1`", markdown)
    return re.sub(r"<!-- insert: (\w+) -->", lambda match: "\n".join(INSERTS[match[1]]()), markdown)


def rules_of_the_audit() -> Iterator[str]:
    """The rules with their level, what each asks, and what to do when it fails."""
    from rmcl_hub.evaluation.audit import RULES
    from rmcl_hub.evaluation.rule_explanations import EXPLANATIONS

    for number, (name, level, rule) in enumerate(RULES, start=1):
        told = EXPLANATIONS[number]
        if level != "tests":
            told = f"Asks whether {_question(rule)}<br>If it fails: {told}"
        yield f"{number}. **{name}** ({level}). {told}"


def _question(rule: Any) -> str:
    return re.sub(r"^\d+: ", "", " ".join((rule.__doc__ or "").split()))


def commands() -> Iterator[str]:
    """Help of every command, as its parser prints it."""
    from rmcl_hub.cli import COMMANDS

    for name in COMMANDS:
        yield f"## rmcl-hub {name}\n"
        yield from _help(name)
        for subcommand in SUBCOMMANDS.get(name, ()):
            yield f"### rmcl-hub {name} {subcommand}\n"
            yield from _help(name, subcommand)


def _help(*words: str) -> Iterator[str]:
    from rmcl_hub.cli import main

    printed = io.StringIO()
    with patch.dict(os.environ, COLUMNS="90"), redirect_stdout(printed), suppress(SystemExit):
        main([*words, "--help"])
    yield f"```text\n{printed.getvalue().strip()}\n```\n"


def measured_on_openpairs() -> Iterator[str]:
    """The table of the run over three seeds, from its results file."""
    from rmcl_hub.trainers.experiment_results import result_table

    results = json.loads((ROOT / "recipes/openpairs.results.json").read_text(encoding="utf-8"))
    yield result_table(results)
    yield ""
    yield from results["summary"]


def threat_models() -> Iterator[str]:
    """Every preset and what it allows."""
    from rmcl_hub.attacks.threat_model import PRESETS, ThreatModel

    yield "| name | what the attacker may do |"
    yield "|---|---|"
    yield from (f"| `{name}` | {ThreatModel.load(name)} |" for name in PRESETS)


def protocols() -> Iterator[str]:
    """Every protocol with its splits and its faults."""
    from rmcl_hub.datasets_scripts.protocols import PROTOCOLS

    yield "| corpus, task | protocol | train | select | test | what is wrong with it |"
    yield "|---|---|---|---|---|---|"
    for one in PROTOCOLS:
        splits = " | ".join(", ".join(names) for names in (one.train, one.validation, one.test))
        yield f"| {one.corpus}, {one.task} | {one.name} | {splits} | {one.contamination or 'nothing known'} |"


def redistribution() -> Iterator[str]:
    """What of each corpus may be published, and why no more."""
    from rmcl_hub.model_cards.redistribution import TERMS

    yield "| corpus | pictures | texts | why no more |"
    yield "|---|---|---|---|"
    for corpus, terms in TERMS.items():
        yield f"| {corpus} | {terms.pictures or 'no'} | {terms.texts or 'no'} | {terms.reason} |"


INSERTS = {
    "commands": commands,
    "measured_on_openpairs": measured_on_openpairs,
    "protocols": protocols,
    "redistribution": redistribution,
    "rules_of_the_audit": rules_of_the_audit,
    "threat_models": threat_models,
}
"""What a page may ask for."""
