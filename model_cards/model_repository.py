"""A trained model as the repository that readers load by its id: weights, code, processor and card."""

import ast
import json
import shutil
from pathlib import Path
from typing import Any

from .card_sources import SOURCES_FILE, written_files
from .dataset_repository import empty_folder
from .model_heads import head_of
from .staged_repository import CARD, StagedRepository

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SHARDED_WEIGHTS = "model.safetensors.index.json"
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
"""Transformers 5 writes the first, Transformers 4 the second; each reads both."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
MORE_OF_TOKENIZER = ("vocab.txt", "special_tokens_map.json", "added_tokens.json")
SAVE_AGAIN = "Load it by its class and call save_pretrained on an empty folder"


def stage_model(
    model_folder: str | Path, output_dir: str | Path, *, name: str | None = None, card: str | None = None
) -> StagedRepository:
    """Copy what readers of a model need out of the folder that its training left.

    These are the configuration, weights in safetensors, the code that it names (`auto_map`), the processor,
    and the card with the files that belong to it. Checkpoints, optimizer and trainer state stay; momentum
    encoder and queue may have a repository of their own, see `stage_training_state`.

    Args:
        model_folder: Saved by `save_pretrained` of a class of this package, the processor beside it.
        output_dir: Folder of the repository, empty or not there yet.
        name: Name on the Hub; by default that of the folder.
        card: Text of `README.md`; by default what `rmcl-hub card` has written into the model's folder, if it
            has.

    Raises:
        FileNotFoundError: If a file is missing.
        FileExistsError: If `output_dir` holds anything.
        ValueError: If the class is none of this package's, or the weights are not all of its parameters.
    """
    source = Path(model_folder)
    head_of(source)  # refuses other folders
    wanted = [CONFIG, *_weights(source), *_code(source), *_processor(source)]
    identity = _identity(source)
    folder = empty_folder(output_dir)
    for path in [*wanted, *(_card_files(source) if card is None else ())]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, folder / path)
    if card is not None:
        (folder / CARD).write_text(card, encoding="utf-8")
    return StagedRepository.seal(name or source.resolve().name, "model", folder, identity)


def _weights(folder: Path) -> list[str]:
    index = folder / SHARDED_WEIGHTS
    names = [WEIGHTS]
    if index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = [SHARDED_WEIGHTS, *sorted(set(shards))]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        instead = f", but {pickles[0]}, a pickle, which can run code where it is loaded" if pickles else ""
        raise FileNotFoundError(f"{folder} holds no {missing[0]}{instead}. {SAVE_AGAIN}.")
    return names


def _code(folder: Path) -> list[str]:
    """The modules that `auto_map` and `custom_pipelines` name, and those that they import from the folder."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    pipelines = config.get("custom_pipelines", {}).values()
    references = [*config.get("auto_map", {}).values(), *(entry["impl"] for entry in pipelines)]
    if not references:
        raise FileNotFoundError(
            f"{folder / CONFIG} names no code (auto_map): readers without rmcl-hub could not load the model. "
            f"{SAVE_AGAIN}."
        )
    found, waiting = set[str](), {f"{reference.split('.')[0]}.py" for reference in references}
    while waiting:
        name = waiting.pop()
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}, which its model's code needs. {SAVE_AGAIN}.")
        found.add(name)
        waiting |= _imported_from(folder / name) - found
    return sorted(found)


def _imported_from(module: Path) -> set[str]:
    nodes = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    return {f"{node.module}.py" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1}


def _processor(folder: Path) -> list[str]:
    present = [name for name in (*PROCESSORS, *TOKENIZER, *MORE_OF_TOKENIZER) if (folder / name).is_file()]
    if not set(PROCESSORS) & set(present) or not set(TOKENIZER) <= set(present):
        raise FileNotFoundError(
            f"{folder} holds no processor ({' or '.join(PROCESSORS)}, and {' and '.join(TOKENIZER)}); save "
            "the one that the model was trained with there: processor.save_pretrained(folder)."
        )
    return present


def _card_files(folder: Path) -> list[str]:
    if not (folder / CARD).is_file():
        return []
    written = [path for path in (*written_files(folder), SOURCES_FILE) if (folder / path).is_file()]
    return list(dict.fromkeys([CARD, *written]))


def _identity(folder: Path) -> dict[str, Any]:
    """Class and digest of the parameters, by which measurements know the model, if all of them are there."""
    from rmcl_hub import modeling_rmcl
    from rmcl_hub.evaluation.provenance import model_digest

    (class_name,) = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["architectures"]
    model_class = getattr(modeling_rmcl, class_name)
    model, info = model_class.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    for kind in ("mismatched_keys", "missing_keys", "unexpected_keys"):
        # Of a mismatch Transformers tells the two shapes, too.
        if names := sorted(key if isinstance(key, str) else key[0] for key in info[kind]):
            raise ValueError(
                f"The weights are not those of a {class_name}: {len(names)} {kind.replace('_', ' ')}, such "
                f"as {names[0]}. {SAVE_AGAIN}."
            )
    return {"class": class_name, "digest": model_digest(model)}
