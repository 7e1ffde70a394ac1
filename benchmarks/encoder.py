"""What the encoder costs, forward and backward, beside Transformers' ViLT with the same weights.

    OMP_NUM_THREADS=1 python benchmarks/encoder.py --json encoder.json

F is a forward without gradients, F + B_in one with the gradient of the pixels and constant weights, F + B
one with the gradients of all weights; all of a batch, down to the pooled `[CLS]`, in evaluation mode.
`padded` texts are as long as ViLT allows, `trimmed` ones as long as the longest of the batch; `full` is the
whole last block, `first` its first token alone.

The lower bound of F is its matrix products, counted in closed form for the trimmed text and the first token
of the last block, at the rate at which this process multiplies matrices of the encoder's shapes. Operations
are counted by torch, too, where attention is in plain operations, which it counts on every device.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from pairs import add_size_options, build_batch, build_config, build_model, build_tokenizer, write_texts
from timing import argument_parser, circumstances, matrix_products, medians_in_turns, show, table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViltConfig, ViltModel

from rmcl_hub.attacks.base import frozen, model_inputs
from rmcl_hub.modeling_rmcl import RMCLViltModel
from rmcl_hub.trainers.run_cost import Tokens, forward_flops

UNITS = ("F", "F + B_in", "F + B")


def main(argv: list[str] | None = None) -> int:
    """Measure and write the table; returns the exit code."""
    parser = argument_parser(__doc__)
    add_size_options(parser)
    arguments = parser.parse_args(argv)
    record = measure(arguments)
    show(record, tables(record), arguments.json)
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, JSON-ready."""
    config = build_config(arguments)
    models = _models(config)
    tokenizer = build_tokenizer()
    batch = build_batch(
        tokenizer, write_texts(tokenizer, arguments.batch, arguments.words), config.image_size
    )
    trimmed = model_inputs(batch)
    padded = _padded(trimmed, config.max_position_embeddings)
    ways = {
        "Transformers eager, full, padded": (models["Transformers"], _pooled, padded),
        "Transformers eager, full, trimmed": (models["Transformers"], _pooled, trimmed),
        "ours eager, full, padded": (models["eager"], _pooled, padded),
        "ours SDPA, full, padded": (models["SDPA"], _pooled, padded),
        "ours SDPA, first, padded": (models["SDPA"], RMCLViltModel.joint_representation, padded),
        "ours eager, first, trimmed": (models["eager"], RMCLViltModel.joint_representation, trimmed),
        "ours SDPA, first, trimmed": (models["SDPA"], RMCLViltModel.joint_representation, trimmed),
    }
    tokens = Tokens(trimmed["input_ids"].shape[1], (config.image_size // config.patch_size) ** 2)
    products, operations_of_products = matrix_products(arguments.batch * tokens.total, config)
    spent = medians_in_turns(
        {
            "products": products,
            **{
                f"{unit} of {way}": partial(_run, unit, *of_way)
                for way, of_way in ways.items()
                for unit in UNITS
            },
        },
        arguments.repetitions,
    )
    operations = forward_flops(config, tokens) * arguments.batch
    rate = operations_of_products / spent["products"].cpu_seconds
    pooled = {way: pool(model, **inputs).detach() for way, (model, pool, inputs) in ways.items()}
    reference = next(iter(pooled.values()))
    return {
        **circumstances(),
        "setting": {
            "batch": arguments.batch,
            "tokens": tokens.total,
            "tokens padded": tokens.total - tokens.text + config.max_position_embeddings,
            "image": config.image_size,
            "layers": config.num_hidden_layers,
            "width": config.hidden_size,
            "repetitions": arguments.repetitions,
            "multiplies at GFLOP/s": round(rate / 1e9, 1),
        },
        "closed form": operations,
        "bound": operations / rate,
        "ways": {
            way: {
                "counted": _count_operations(*of_way) if "SDPA" not in way else None,
                "difference": float((pooled[way] - reference).abs().max()),
                **{
                    unit: {
                        "seconds": spent[f"{unit} of {way}"].seconds,
                        "cpu_seconds": spent[f"{unit} of {way}"].cpu_seconds,
                    }
                    for unit in UNITS
                },
            }
            for way, of_way in ways.items()
        },
    }


def tables(record: dict[str, Any]) -> Iterator[str]:
    """Times in processor seconds a batch, wall-clock beside; `speed-up` is over the first row's time."""
    first = next(iter(record["ways"].values()))
    yield (
        f"closed form {record['closed form'] / 1e9:.1f} GFLOP, lower bound of F {record['bound']:.3f} s; "
        "processor seconds [wall-clock]; difference: largest, of the pooled states to the first row's\n"
    )
    rows = []
    for way, figures in record["ways"].items():
        times = [f"{figures[unit]['cpu_seconds']:.2f} [{figures[unit]['seconds']:.2f}]" for unit in UNITS]
        speed_ups = [f"{first[unit]['cpu_seconds'] / figures[unit]['cpu_seconds']:.2f}" for unit in UNITS]
        ratio = figures["F"]["cpu_seconds"] / record["bound"]
        counted = figures["counted"]
        share = "" if counted is None else f"{counted / record['closed form']:.3f}"
        rows.append([way, *times, " / ".join(speed_ups), ratio, share, f"{figures['difference']:.0e}"])
    yield from table(
        ["way", *UNITS, "speed-ups", "F over its bound", "counted over closed form", "difference"], rows
    )


def _models(config: Any) -> dict[str, nn.Module]:
    ours = build_model(config).vilt.eval()
    names = ViltConfig().to_dict().keys() & config.to_dict().keys() - {"model_type"}
    theirs = ViltModel(ViltConfig(**{name: getattr(config, name) for name in names})).eval()
    theirs.load_state_dict(ours.state_dict())
    eager = RMCLViltModel._from_config(config, attn_implementation="eager").eval()
    eager.load_state_dict(ours.state_dict())
    return {"Transformers": theirs, "SDPA": ours, "eager": eager}


def _padded(inputs: dict[str, Any], length: int) -> dict[str, Any]:
    """The same texts with padding up to `length` tokens."""
    missing = length - inputs["input_ids"].shape[1]
    text = ("input_ids", "attention_mask", "token_type_ids")
    return {
        name: nn.functional.pad(value, (0, missing)) if name in text else value
        for name, value in inputs.items()
    }


def _pooled(model: Any, **inputs: Any) -> Tensor:
    return model(**inputs).pooler_output


def _run(unit: str, model: Any, pool: Callable[..., Tensor], inputs: dict[str, Any]) -> None:
    if unit == "F":
        with torch.no_grad():
            pool(model, **inputs)
    elif unit == "F + B_in":
        pixels = inputs["pixel_values"].detach().requires_grad_()
        with frozen(model):
            torch.autograd.grad(pool(model, **{**inputs, "pixel_values": pixels}).sum(), pixels)
    else:
        pool(model, **inputs).sum().backward()
        model.zero_grad(set_to_none=True)


def _count_operations(model: Any, pool: Callable[..., Tensor], inputs: dict[str, Any]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pool(model, **inputs)
    return counter.get_total_flops()


if __name__ == "__main__":
    sys.exit(main())
