"""What a run must have in common with the one that it goes on with, if its weights are to be the same."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rmcl_hub.datasets_scripts.mixture import MixtureStream

# Arguments, by how their names begin, that say what is reported, kept or how fast, not what is computed.
_OTHER_ARGUMENTS = (
    "output_dir overwrite_output_dir resume_ save_ load_best_model_at_end metric_for_best_model "
    "greater_is_better logging_ log_ report_to run_name project trackio_ disable_tqdm skip_memory_metrics "
    "include_ hub_ push_to_hub do_ debug ddp_timeout local_rank label_names enable_jit_checkpoint "
    "per_device_eval_batch_size eval_accumulation_steps dataloader_pin_memory dataloader_persistent_workers "
    "dataloader_prefetch_factor"
).split()
# Of a recipe, what arguments and configuration say more exactly, what may move, and limits.
_OTHER_RECIPE_KEYS = ("training", "model", "output_dir", "init_from")
_LIMITS = ("data.max_unreadable", "attack.text.candidate_batch_size")
_OTHER_CONFIG_KEYS = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")


def fingerprint(trainer: Any, recipe: Any = None) -> dict[str, Any]:
    """Processes, arguments, model, data and recipe of a run: JSON values by dotted names.

    Where data lies does not count, nor which machine and which versions of the libraries compute, though the
    last bits can depend on these.

    Args:
        trainer: A `GuardedTrainer`.
        recipe: Dataclass that it was built from, if there is one.
    """
    arguments = trainer.args.to_dict()
    config = getattr(trainer.accelerator.unwrap_model(trainer.model), "config", None)
    fields = {} if config is None else config.to_dict()
    settings: dict[str, Any] = {} if recipe is None else asdict(recipe)
    for corpus in settings.get("data", {}).get("corpora", {}).values():
        corpus.pop("location")
    run = _flat({name: value for name, value in settings.items() if name not in _OTHER_RECIPE_KEYS})
    for name in _LIMITS:
        run.pop(name, None)
    run |= {"processes": trainer.args.world_size, "rows": _rows(trainer.train_dataset)}
    for name, value in arguments.items():
        if not name.startswith((*_OTHER_ARGUMENTS, "_")):
            run[f"training.{name}"] = value
    for name, value in fields.items():
        if name not in _OTHER_CONFIG_KEYS:
            run[f"model.{name}"] = value
    return json.loads(json.dumps(run, default=str))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, one phrase each.

    An argument or a field of the configuration that only one side has comes from another version of
    Transformers, and does not count.
    """
    of_versions = [name for name in before.keys() ^ now.keys() if name.startswith(("training.", "model."))]
    return [
        f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}"
        for name in sorted((before.keys() | now.keys()) - set(of_versions))
        if before.get(name) != now.get(name)
    ]


def _rows(dataset: Any) -> Any:
    """Number of rows, of a stream also a digest of the shards and shares that its order follows from."""
    if isinstance(dataset, MixtureStream):
        blocks = [[(Path(block.address).name, *block[1:]) for block in pool] for pool in dataset.pools]
        order = json.dumps([blocks, dataset.weights, dataset.buffer_size, dataset.seed])
        return f"{dataset.num_rows} in the order {hashlib.sha256(order.encode()).hexdigest()[:16]}"
    return len(dataset) if hasattr(dataset, "__len__") else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
