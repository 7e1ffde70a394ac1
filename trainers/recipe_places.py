"""Where a recipe's starting weights, corpora and outputs are, and what makes those that are not there yet."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .recipe import FINETUNING_DATA, CorpusRecipe, FinetuneRecipe, PretrainRecipe, load_recipe

RunRecipe = PretrainRecipe | FinetuneRecipe
CONVERT = "python -m rmcl_hub.modeling_rmcl.convert_vilt_checkpoint dandelin/vilt-b32-mlm"


@dataclass(frozen=True)
class Place:
    """A file or folder that a recipe names.

    Attributes:
        name: Key of the recipe.
        note: What is there; or what is missing, with the command that makes it.
        state: `found`, `not there yet`, or `wrong`: no command makes it right.
    """

    name: str
    note: str
    state: str = "found"


def find_places(recipe: RunRecipe) -> Iterator[Place]:
    """Look up every path of a recipe; nothing is read but manifests."""
    yield _starting_weights(recipe)
    for name, corpus in recipe.data.corpora.items():
        yield _corpus(recipe, name, corpus)
    if not recipe.data.corpora:
        yield Place("data", "the embedded pairs")
    if vectors := recipe.attack.text.get("vectors"):
        yield _vectors(Path(vectors))
    yield _output(Path(recipe.output_dir))


def _starting_weights(recipe: RunRecipe) -> Place:
    name, start = "init_from", recipe.init_from
    if start is None:
        if isinstance(recipe, FinetuneRecipe):
            return Place(name, "missing: give the folder or hub id of a pre-trained encoder.", "wrong")
        return Place(name, "none, from scratch")
    folder = Path(start)
    if (folder / "config.json").is_file():
        return Place(name, start)
    if folder.exists():
        return Place(name, f"{start} holds no config.json, so it is no saved model.", "wrong")
    maker = _recipe_that_writes(start)
    command = maker or f"{CONVERT} {start}"
    return Place(name, f"{start}; `{command}` makes it (a Hub name is not looked up)", "not there yet")


def _recipe_that_writes(folder: str) -> str | None:
    """The command of the packaged recipe with this output folder."""
    for path in sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml")):
        for cls, command in ((PretrainRecipe, "pretrain"), (FinetuneRecipe, "finetune")):
            try:
                written = load_recipe(cls, path).output_dir
            except ValueError:  # a recipe of another kind
                continue
            if Path(written) == Path(folder):
                return f"rmcl-hub {command} {path.stem}"
    return None


def _corpus(recipe: RunRecipe, name: str, entry: CorpusRecipe) -> Place:
    from rmcl_hub.datasets_scripts.shards import PreparedCorpus

    if entry.location.startswith("hf://"):
        return Place(name, f"{entry.location}; the Hub is not asked", "not looked up")
    prepare = f"`rmcl-hub data prepare {name} --source <its published files> --output-dir {entry.location}`"
    try:
        training, validation = splits_of(recipe, name, entry)
    except ValueError as error:
        return Place(name, str(error), "wrong")
    try:
        corpus = PreparedCorpus(entry.location)
    except FileNotFoundError:
        return Place(name, f"{entry.location}; {prepare} makes it", "not there yet")
    except ValueError as error:
        return Place(name, str(error), "wrong")
    if wrong := _misfit(recipe, name, corpus):
        return Place(name, wrong, "wrong")
    try:
        for split in (*training, *validation):
            corpus.check_files(split)
    except (
        OSError,
        ValueError,
    ) as error:  # damaged, or a split is not prepared: the error says how
        return Place(name, str(error), "not there yet")
    return Place(name, f"{entry.location} ({', '.join((*training, *validation))})")


def splits_of(recipe: RunRecipe, name: str, entry: CorpusRecipe) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Splits of a corpus that the run trains on, and those that it selects by.

    Raises:
        ValueError: If the corpus has no such split, or no such protocol.
    """
    from rmcl_hub.datasets_scripts.corpora import corpus_class
    from rmcl_hub.datasets_scripts.protocols import find_protocol

    known = corpus_class(name).splits
    if isinstance(recipe, FinetuneRecipe):
        protocol = find_protocol(str(recipe.protocol), name)
        return protocol.train, protocol.validation
    wanted = tuple(entry.splits or ("train",))
    if unknown := [split for split in wanted if split not in known]:
        raise ValueError(f"{name} has no split {unknown[0]!r}; choose from {', '.join(known)}.")
    return wanted, ()


def _misfit(recipe: RunRecipe, name: str, corpus: Any) -> str | None:
    """Why a prepared corpus cannot serve this run; None if it can."""
    manifest = corpus.manifest
    task = "captions"
    if isinstance(recipe, FinetuneRecipe):
        task = FINETUNING_DATA[recipe.task] or recipe.task
    if manifest.corpus != name:
        return f"{corpus.location} holds {manifest.corpus}, not {name}."
    if manifest.task != task:
        return f"{corpus.location} holds rows of {manifest.task!r}; this run needs {task!r}."
    if recipe.data.streaming and manifest.format != "parquet":
        return f"{corpus.location} holds {manifest.format} shards, but streams read parquet; prepare it anew."
    return None


def _vectors(path: Path) -> Place:
    name = "attack.text.vectors"
    if path.is_file():
        return Place(name, str(path))
    if path.exists():
        return Place(name, f"{path} is no file of word vectors (a word and its numbers a line).", "wrong")
    note = f"{path}; fetch it where its authors publish it (a word and its numbers a line)"
    return Place(name, note, "not there yet")


def _output(folder: Path) -> Place:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Place("output_dir", f"{existing} is no folder that can be written; choose another.", "wrong")
    if folder.is_dir() and any(folder.iterdir()):
        return Place("output_dir", f"{folder} (not empty: a run writes over it)")
    return Place("output_dir", f"{folder} (will be written)")
