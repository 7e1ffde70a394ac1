"""A Hugging Face model card rendered from measured files and nothing else, and the check that it still is."""

import json
import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined, Template

from rmcl_hub.evaluation.pictures import PERTURBATION_GAIN
from rmcl_hub.evaluation.protocol_data import EMBEDDED
from rmcl_hub.evaluation.results import write_atomically
from rmcl_hub.evaluation.robustness_report import STATUSES

from .card_pictures import attacked_pairs
from .card_sections import (
    audited_tables,
    data_lines,
    experiment,
    makers,
    markdown,
    retrieval_tables,
    training_attacks,
)
from .card_sources import (
    SOURCES_FILE,
    CardSources,
    Kind,
    collect_sources,
    recorded_sources,
    written_files,
)
from .hub_results import EVAL_RESULTS_FILE, eval_results_yaml, model_index
from .model_heads import Head, digest_as, head_of
from .staged_repository import CARD, describe_file

TEMPLATE = "model_card.md"
TAGS = ["rmcl", "vilt", "adversarial-robustness", "contrastive-learning", "vision-and-language"]


def write_card(
    folder: str | Path,
    *,
    results: str | Path | None = None,
    model: str = "rmcl",
    evaluations: Sequence[str | Path] = (),
    control: str | Path | None = None,
    retrievals: Sequence[str | Path] = (),
    repo_id: str | None = None,
) -> Path:
    """Write the card of a saved model into its folder, with the files that its numbers come from.

    Beside `README.md` these are `results/` (the measurements, and `sources.json`, which says what was taken
    from where), `assets/` (attacked pictures) and `.eval_results/`. Without measurements the card is rendered
    again from those that the folder's `results/sources.json` names.

    Args:
        folder: The model's folder.
        results: The `results.json` of an experiment, or its folder.
        model: Which of its models this is, a key of `models`.
        evaluations: Folders of `rmcl-hub evaluate` on this model.
        control: Folder of the same evaluation of the control.
        retrievals: Folders of `rmcl-hub retrieve` on this model.
        repo_id: What readers load: a Hub id; without one as before, or the folder's name.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: If the folder holds no model, or a file of measurements is not there.
        ValueError: If a number that the card needs is missing, or measurements are of another model; the
            message names it.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder)
    head = head_of(folder)
    given: dict[Kind, Sequence[str | Path]] = {
        "results": [results] if results else [],
        "evaluation": evaluations,
        "control": [control] if control else [],
        "retrieval": retrievals,
    }
    if any(given.values()):
        sources = collect_sources(given, model=model, repo_id=repo_id or folder.resolve().name)
    else:
        former = recorded_sources(folder)
        sources = CardSources(repo_id or former.repo_id, former.model, former.files)
    _check_digests(folder, sources)
    rendered = render_card(sources, head)
    for path in set(written_files(folder)) - set(rendered):
        (folder / path).unlink(missing_ok=True)
    card = rendered.pop(CARD)
    for path, content in rendered.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return write_atomically(folder / CARD, card.decode())


def check_card(folder: str | Path) -> None:
    """Hold a card against its measurements: every number, table row, picture and machine-readable result.

    Sentences without a digit may be added or changed by hand.

    Raises:
        FileNotFoundError: If the folder holds no model, no card, or no record of its measurements.
        ValueError: If a measurement is gone, has changed or is of another model, or the card says something
            else; the message names it.
    """
    folder = Path(folder)
    head = head_of(folder)
    if not (folder / CARD).is_file():
        raise FileNotFoundError(f"{folder} has no {CARD}; write it with `rmcl-hub card`.")
    sources = recorded_sources(folder)
    _check_digests(folder, sources)
    remedy = "measure it, or render the card again with `rmcl-hub card`."
    rendered = render_card(sources, head)
    for path, content in rendered.items():
        if path == CARD:
            _check_lines((folder / path).read_text(encoding="utf-8"), content.decode(), remedy)
        elif not (folder / path).is_file() or (folder / path).read_bytes() != content:
            raise ValueError(f"{path} is not what the results files say; {remedy}")


def render_card(sources: CardSources, head: Head) -> dict[str, bytes]:
    """Everything that belongs to a card: path in the repository to content.

    Raises:
        ValueError: If a number that the card needs is missing; the message names it.
    """
    body = _body(sources, head)
    card = ModelCard(f"---\n{_metadata(sources, head).to_yaml()}\n---\n\n{body}")
    rendered = {CARD: str(card).encode()}
    for pair in attacked_pairs(sources):
        rendered |= pair.contents
    entries = eval_results_yaml(sources)
    if entries is not None:
        rendered[EVAL_RESULTS_FILE] = entries.encode()
    derived = [path for path in rendered if path != CARD]
    rendered |= {file.name: file.data for file in sources.files}
    return {**rendered, SOURCES_FILE: sources.to_json(derived).encode()}


def _check_digests(folder: Path, sources: CardSources) -> None:
    """Refuse measurements of another model."""
    for file in sources.of("results"):
        measured = file.content["models"].get(sources.model, {}).get("weights")
        if measured is None:
            continue  # older files do not say what they measured
        for path in sorted(folder.glob("*.safetensors")):
            if (found := describe_file(path)["sha256"]) not in measured:
                raise ValueError(
                    f"{file.name} is about other weights: {path.name} of {folder.name} has the SHA-256 "
                    f"{found[:16]}..., none of those measured as {sources.model!r}; give its own file."
                )
    digests: dict[str, str] = {}
    for file in sources.of("evaluation", "retrieval"):
        measured = file.get("model")
        name = measured["class"]
        if name not in digests:
            digests[name] = digest_as(folder, name)
        if measured["digest"] != digests[name]:
            raise ValueError(
                f"{file.name} is about another model: its parameters have the digest {measured['digest']}, "
                f"those of {folder.name} as {name} have {digests[name]}; measure this model."
            )


def _metadata(sources: CardSources, head: Head) -> ModelCardData:
    return ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=head.pipeline_tag,
        tags=TAGS,
        model_name=_title(sources),
        eval_results=model_index(sources) or None,
    )


def _title(sources: CardSources) -> str:
    return sources.repo_id.split("/")[-1]


def _body(sources: CardSources, head: Head) -> str:
    audited, compared = list(audited_tables(sources)), experiment(sources)
    corpora = {file.get("protocol", "corpus") for file in sources.of("evaluation", "retrieval")}
    body = _template().render(
        title=_title(sources),
        repo_id=sources.repo_id,
        head=head,
        audited=audited,
        experiment=compared,
        retrieval=list(retrieval_tables(sources)),
        config=json.dumps(compared["config"], indent=2) if compared else "",
        training_attacks=training_attacks(sources),
        statuses=list(STATUSES),
        threat_models=list(_threat_models(audited, compared)),
        data_lines=list(data_lines(sources)),
        on_openpairs=compared is not None or EMBEDDED in corpora,
        makers=list(makers(sources)),
        files=sources.files,
        pairs=attacked_pairs(sources),
        gain=PERTURBATION_GAIN,
    )
    return re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


@cache
def _template() -> Template:
    """Markdown, not HTML; what is not the project's own text goes through the filter `md`."""
    text = files("rmcl_hub.model_cards").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["md"] = markdown
    return environment.from_string(text)


def _threat_models(
    audited: list[dict[str, Any]], compared: dict[str, Any] | None
) -> Iterator[dict[str, str]]:
    shown = {
        threat["name"]: {key: threat[key] for key in ("name", "sentence", "digest")}
        for table in audited
        for threat in table["threats"]
    }
    yield from shown.values()
    for name, sentence in (compared["threat_models"] if compared else {}).items():
        yield {"name": name, "sentence": sentence, "digest": ""}


def _check_lines(card: str, rendered: str, remedy: str) -> None:
    """Both must have the same lines with numbers, in the same order."""
    here, expected = _lines_with_numbers(card), _lines_with_numbers(rendered)
    for kind, i, j, k, end in SequenceMatcher(None, here, expected, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        if i == j:
            raise ValueError(f"{CARD} lacks {expected[k]!r}, which the results files say; {remedy}")
        instead = f", but {expected[k]!r}" if k < end else ""
        raise ValueError(f"{CARD} says {here[i]!r}, which no results file says{instead}; {remedy}")


def _lines_with_numbers(card: str) -> list[str]:
    return [line.strip() for line in card.splitlines() if re.search(r"\d", line)]
