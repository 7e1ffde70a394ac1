"""`--dry-run`: what a recipe would do and need, told without data and without training."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .pretrain import check_text_length, load_data
from .recipe import FinetuneRecipe, PretrainRecipe, recipe_from_command_line
from .recipe_places import RunRecipe, find_places, splits_of
from .run_cost import LONGEST, forward_flops, memory_bytes, passes_per_example, row_tokens, rows_per_example

FLAG = "--dry-run"
# Of splits whose size is not documented.
ROWS_ELSEWHERE = {("visual_genome", "train"): (86_000, "thesis Table 3.1")}
VQA_ANSWERS = 3129  # of the usual rule (ViLT, thesis section 3.4), until a prepared corpus says how many
PHOTOGRAPH = 4 / 3  # ratio of the sides


@dataclass(frozen=True)
class Schedule:
    """How long a run is, as `Trainer` counts it."""

    rows: int
    micro_batch: int
    accumulation: int
    processes: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int

    @property
    def batch(self) -> int:
        """Examples of an optimiser step on all processes."""
        return self.micro_batch * self.accumulation * self.processes


def dry_run(cls: type[Any], command: str, description: str, words: Sequence[str]) -> int:
    """Check a recipe's fields and paths, and write what its run would do and need to standard output.

    Args:
        cls: `PretrainRecipe` or `FinetuneRecipe`.
        command: Such as `rmcl-hub pretrain`; shown in the help, with `description`.
        description: One sentence.
        words: Those after the command, `--dry-run` among them; `--processes N` says on how many processes the
            run will be (default 1).

    Returns:
        0, also if data or starting weights are not there yet; 2 if a field or a path can never work.
    """
    try:
        words, processes = _take_processes([word for word in words if word != FLAG])
        recipe = recipe_from_command_line(cls, command, description, words)
        lines, status = report(recipe, processes)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{command}: {error}\n")
        return 2
    sys.stdout.write("\n".join(lines) + "\n")
    return status


def report(recipe: RunRecipe, processes: int = 1) -> tuple[list[str], int]:
    """Lines of the report, and the exit status.

    Raises:
        ValueError: If a value of `training` or `model` is not allowed.
    """
    places = list(find_places(recipe))
    lines = ["dry run: nothing is trained or written", "", "paths"]
    lines += [f"  {place.name:24}{place.state}: {place.note}" for place in places]
    if any(place.state == "wrong" for place in places):
        return [*lines, "", "This recipe cannot run: correct what is wrong above."], 2
    model = build_on_meta(recipe)
    check_text_length(recipe.data, model.config)
    rows, source = count_rows(recipe)
    schedule = plan(recipe, rows, processes)
    return [
        *lines,
        *_describe_schedule(schedule, source),
        *_describe_work(recipe, model, schedule),
        *_describe_memory(recipe, model, schedule),
    ], 0


def _take_processes(words: list[str]) -> tuple[list[str], int]:
    """The words without `--processes N` or `--processes=N`, and N."""
    for place, word in enumerate(words):
        name, equals, number = word.partition("=")
        if name == "--processes":
            end = place + (1 if equals else 2)
            number = number if equals else "".join(words[place + 1 : end])
            if not number.isdigit() or int(number) < 1:
                raise ValueError(f"--processes must be a number of at least 1, got {number!r}.")
            return words[:place] + words[end:], int(number)
    return words, 1


def count_rows(recipe: RunRecipe) -> tuple[int, str]:
    """Rows of an epoch, and where the numbers come from."""
    if not recipe.data.corpora:
        return len(load_data(replace(recipe.data, streaming=False))), "embedded pairs"
    counted = [
        _rows_of(name, entry.location, split)
        for name, entry in recipe.data.corpora.items()
        for split in splits_of(recipe, name, entry)[0]
    ]
    rows, limit = sum(number for number, _ in counted), recipe.data.max_examples
    if limit is not None and not recipe.data.streaming:
        rows = min(rows, limit)
    return rows, "; ".join(source for _, source in counted)


def _rows_of(name: str, location: str, split: str) -> tuple[int, str]:
    """From the manifest if it is there, else as documented."""
    from rmcl_hub.datasets_scripts.corpora import corpus_class
    from rmcl_hub.datasets_scripts.shards import MANIFEST, PreparedCorpus

    if (Path(location) / MANIFEST).is_file():
        manifest = PreparedCorpus(location).manifest
        if split in manifest.splits:
            rows = manifest.splits[split].rows
            return rows, f"{rows:,} {name} {split}, prepared"
    corpus = corpus_class(name)
    for documented, size in corpus.documented.items():
        parts = documented.split("+")
        if split in parts:
            rows = (size.images if corpus.task == "captions" else size.texts) or 0
            if split != parts[0] and len(parts) > 1:
                return 0, f"{name} {split}, counted with {parts[0]}"
            whole = "" if documented == split else f" of {documented} together"
            return rows, f"{rows:,} {name} {split}, documented{whole}"
    rows, source = ROWS_ELSEWHERE.get((name, split), (0, "unknown until it is prepared"))
    return rows, f"{rows:,} {name} {split}, {source}"


def plan(recipe: RunRecipe, rows: int, processes: int) -> Schedule:
    """Batches and steps by `Trainer`'s arithmetic.

    Raises:
        ValueError: If the training section has a value that is not allowed.
    """
    args = _arguments(recipe)
    micro_batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    on_one = rows // processes if recipe.data.streaming else -(-rows // processes)
    batches = on_one // micro_batch if args.dataloader_drop_last else -(-on_one // micro_batch)
    steps_per_epoch = max(-(-batches // accumulation), 1)
    steps = args.max_steps if args.max_steps > 0 else -int(-args.num_train_epochs * steps_per_epoch // 1)
    return Schedule(
        rows, micro_batch, accumulation, processes, steps_per_epoch, steps, args.get_warmup_steps(steps)
    )


def _arguments(recipe: RunRecipe) -> Any:
    """The run's arguments, but for half precision, which only an accelerator accepts."""
    from .arguments import GuardedArguments, RMCLArguments, training_arguments
    from .finetune import with_selection

    given = recipe.training
    if isinstance(recipe, FinetuneRecipe):
        given = with_selection(recipe)
    given = {name: value for name, value in given.items() if name not in ("fp16", "bf16", "tf32")}
    cls = RMCLArguments if isinstance(recipe, PretrainRecipe) else GuardedArguments
    return training_arguments(cls, recipe.output_dir, {**given, "use_cpu": True})


def build_on_meta(recipe: RunRecipe) -> Any:
    """The model of a run without weights: as `init_from` is where that is local, else ViLT-B/32.

    Raises:
        ValueError: If a field of the model is out of range.
    """
    import torch

    from rmcl_hub.modeling_rmcl import RMCLViltConfig, RMCLViltForPreTraining

    from .finetune import model_class

    head = _head_fields(recipe) if isinstance(recipe, FinetuneRecipe) else {}
    fields = {**head, **recipe.model}
    if recipe.init_from is not None and Path(recipe.init_from).is_dir():
        config: Any = RMCLViltConfig.from_pretrained(recipe.init_from, **fields)
    elif recipe.init_from is None and isinstance(recipe, PretrainRecipe):
        config = RMCLViltConfig(**{**_fields_from_scratch(recipe), **fields})
    else:
        config = RMCLViltConfig(**fields)
    with torch.device("meta"):
        if isinstance(recipe, PretrainRecipe):
            return RMCLViltForPreTraining(config)
        return model_class(recipe.task)(config)


def _fields_from_scratch(recipe: PretrainRecipe) -> dict[str, Any]:
    from rmcl_hub.datasets_scripts.vocabulary import vocabulary_path

    words = vocabulary_path().read_text(encoding="utf-8").splitlines()
    return {"vocab_size": len(words), "image_size": recipe.image_size}


def _head_fields(recipe: FinetuneRecipe) -> dict[str, Any]:
    if recipe.task == "nlvr2":
        return {"num_images": 2, "modality_type_vocab_size": 3, "num_labels": 2}
    if recipe.task == "snli_ve":
        return {"num_images": 1, "num_labels": 3}
    return {"num_labels": _num_answers(recipe)} if recipe.task == "vqa" else {}


def _num_answers(recipe: FinetuneRecipe) -> int:
    from .finetune_data import find_data

    try:
        return len(find_data(recipe).answers)
    except (OSError, ValueError):  # not prepared yet
        return VQA_ANSWERS


def trained_parameters(recipe: RunRecipe, model: Any) -> int:
    """Number of parameters that get a gradient."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if _is_trained(recipe, name))


def _is_trained(recipe: RunRecipe, name: str) -> bool:
    part = name.split(".")[0]
    if isinstance(recipe, FinetuneRecipe):
        return part != "vilt" or not recipe.freeze_encoder
    contrastive = recipe.stage != "vilt"
    if part == "vilt":
        return True
    if part == "projector":
        return contrastive
    if contrastive and not recipe.training.get("pretraining_weight"):
        return False
    unused = {"mlm_score": "mlm", "itm_score": "itm"}
    return unused.get(part) in (None, *recipe.objectives)


def _describe_schedule(schedule: Schedule, source: str) -> Iterator[str]:
    yield "schedule"
    yield f"  rows per epoch    {schedule.rows:,} ({source})"
    yield (
        f"  global batch      {schedule.batch:,} = {schedule.micro_batch} a process x "
        f"{schedule.accumulation} accumulated x {schedule.processes} processes"
    )
    yield (
        f"  steps             {schedule.steps:,}, of which warm-up {schedule.warmup_steps:,}; an epoch has "
        f"{schedule.steps_per_epoch:,}"
    )


def _describe_work(recipe: RunRecipe, model: Any, schedule: Schedule) -> Iterator[str]:
    examples, steps = schedule.batch, schedule.steps
    passes = passes_per_example(recipe, model.config)
    tokens, most = (_tokens(recipe, model.config, ratio) for ratio in (PHOTOGRAPH, LONGEST))
    first_token_only = isinstance(recipe, FinetuneRecipe) or recipe.stage != "vilt"
    flops = forward_flops(model.config, tokens, first_token_only) * examples
    flops *= passes.forwards + passes.backwards + 3 * passes.trained
    bound = "" if passes.exact else "at most "
    yield "work (a pass: one text with one picture through the encoder, forwards or backwards)"
    yield (
        f"  tokens a row      {tokens.text} of text, {tokens.patches} patches and 1 (texts at full length, "
        f"pictures of 4:3; at most {most.patches} patches)"
    )
    total = passes.total * examples
    yield f"  passes            {bound}{total:,} a step, {total * steps:,} in all"
    yield (
        f"    an example      {bound}{passes.total}: {passes.forwards} forwards and {passes.backwards} "
        f"backwards of keys and attacks,"
    )
    yield f"                    and {passes.trained} forwards and backwards that train"
    read = rows_per_example(recipe) * examples
    for name, number in (("text tokens", tokens.text), ("image tokens", 1 + tokens.patches)):
        yield f"  {name:18}{number * read:,} a step, {number * read * steps:,} in all, once through"
    yield f"  operations        {bound}{flops:.2g} FLOP a step, {flops * steps:.2g} in all"


def _describe_memory(recipe: RunRecipe, model: Any, schedule: Schedule) -> Iterator[str]:
    weights, trained = model.num_parameters(), trained_parameters(recipe, model)
    size = memory_bytes(
        recipe,
        model,
        trained,
        _tokens(recipe, model.config, LONGEST),
        schedule.micro_batch,
        schedule.processes,
    )
    checkpoint = 4 * weights + 8 * trained + size.get("key encoder", 0) + size.get("queue", 0)
    yield "model"
    yield f"  parameters        {weights:,}, of which trained {trained:,}"
    yield f"  on disk           {4 * weights / 1e9:.2f} GB; a checkpoint to resume {checkpoint / 1e9:.2f}"
    yield "memory of one process, estimated for the longest rows"
    for name, number in size.items():
        yield f"  {name:18}{number / 1e9:.2f} GB"
    yield f"  {'together':18}{sum(size.values()) / 1e9:.2f} GB, and 1 to 2 GB that the accelerator takes"


def _tokens(recipe: RunRecipe, config: Any, ratio: float) -> Any:
    return row_tokens(config, recipe.data.max_text_length, config.image_size, ratio)
