"""How many pairs a second exact retrieval scores, beside one pair at a time with Transformers' ViLT.

    OMP_NUM_THREADS=1 python benchmarks/retrieval.py --json retrieval.json

Every text is scored with every picture, by the same weights. The usual way sends one pair at a time through
Transformers' ViLT, from pixels, with the text padded to the longest that the model takes. Ours is
`PairScorer`: a picture's patches are embedded once, texts of similar length share a forward and are padded
to its longest, and the last block is computed for the first token alone. `random order` is the same without
the sorting. `difference` is the largest to the usual way's scores.

The lower bound has the matrix products of all pairs without any padding, at the rate of this process.

The last table is a shortlist: the single-modality embeddings choose the pictures of each text that the
encoder scores. Its recall is an estimate, never exact, and comes with a 95 % interval of its error; the
weights are random here, so only the cost means something.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pairs import add_size_options, build_config, build_model, build_tokenizer, write_texts
from PIL import Image
from timing import argument_parser, circumstances, in_turns, matrix_products, median, show, table
from transformers import ViltConfig, ViltImageProcessor, ViltModel, ViltProcessor

from rmcl_hub.attacks.base import frozen
from rmcl_hub.evaluation.metrics import best_ranks
from rmcl_hub.evaluation.retrieval import PairScorer, dual_encoder_scores
from rmcl_hub.evaluation.shortlist import complete_scores, listed_items, recall_errors
from rmcl_hub.trainers.run_cost import Tokens, forward_flops

LENGTHS = (4, 6, 8, 9, 10, 10, 11, 11, 12, 12, 13, 14, 15, 17, 20, 26)  # words, about as COCO's captions


def main(argv: list[str] | None = None) -> int:
    """Measure and write the tables; returns the exit code."""
    parser = argument_parser(__doc__)
    add_size_options(parser)
    parser.add_argument("--images", type=int, default=4, help="pictures (default: 4)")
    parser.add_argument("--texts", type=int, default=16, help="texts (default: 16)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], help="default: 1 4 16")
    parser.add_argument("--shortlist", type=int, default=2, help="pictures per text (default: 2)")
    arguments = parser.parse_args(argv)
    record = measure(arguments)
    show(record, tables(record), arguments.json)
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, JSON-ready."""
    config = build_config(arguments, itc_weight=1.0)
    model, tokenizer = build_model(config).eval(), build_tokenizer()
    texts = [write_texts(tokenizer, 1, LENGTHS[row % len(LENGTHS)])[0] for row in range(arguments.texts)]
    images = _images(arguments.images, arguments.image_size)
    size = {"shortest_edge": arguments.image_size}
    processor = ViltProcessor(ViltImageProcessor(size=size), tokenizer)
    with frozen(model):
        ways = _ways(arguments, model, processor, images, texts)
        products, operations = matrix_products(4 * 159, config)
        scores: dict[str, NDArray] = {}

        def keep(name: str) -> None:
            scores[name] = ways[name]()

        runs = {"products": products, **{name: partial(keep, name) for name in ways}}
        spent = {
            name: median(of_run)
            for name, of_run in in_turns(runs, arguments.repetitions, warm_up=["products"]).items()
        }
    rate = operations / spent["products"].cpu_seconds
    reference = next(iter(scores.values()))
    exact = [name for name in ways if name != "shortlist"]
    return {
        **circumstances(),
        "setting": {
            "images": arguments.images,
            "texts": arguments.texts,
            "image": arguments.image_size,
            "layers": config.num_hidden_layers,
            "repetitions": arguments.repetitions,
            "multiplies at GFLOP/s": round(rate / 1e9, 1),
        },
        "bound": _operations(config, tokenizer, texts, arguments) / rate,
        "ways": {
            name: {**vars(spent[name]), "difference": float(np.abs(scores[name] - reference).max())}
            for name in exact
        },
        "shortlist": {**vars(spent["shortlist"]), **_errors(arguments, scores)},
    }


def tables(record: dict[str, Any]) -> Iterator[str]:
    """Exact ways, then the shortlist."""
    pairs = record["setting"]["images"] * record["setting"]["texts"]
    usual = next(iter(record["ways"].values()))
    yield f"exact, {pairs} pairs, lower bound {record['bound']:.2f} s\n"
    columns = [
        "way",
        "processor s",
        "wall s",
        "pairs per processor s",
        "speed-up",
        "over bound",
        "difference",
    ]
    yield from table(
        columns,
        (
            [
                name,
                way["cpu_seconds"],
                way["seconds"],
                pairs / way["cpu_seconds"],
                usual["cpu_seconds"] / way["cpu_seconds"],
                way["cpu_seconds"] / record["bound"],
                f"{way['difference']:.0e}",
            ]
            for name, way in record["ways"].items()
        ),
    )
    short = record["shortlist"]
    gallery = record["setting"]["images"]
    yield (
        f"ESTIMATE by a shortlist of {short['size']} of {gallery} pictures per text: "
        f"{short['pairs']} of {pairs} pairs, {short['cpu_seconds']:.2f} processor s with the embeddings"
    )
    yield from (
        f"recall@{k} minus the exact one over {error['n']} queries, gallery of {gallery}: "
        f"{error['difference']:+.3f}, 95 % interval [{error['low']:+.3f}, {error['high']:+.3f}]"
        for k, error in short["errors"].items()
    )


def _ways(
    arguments: argparse.Namespace, model: Any, processor: Any, images: list[Any], texts: list[str]
) -> dict[str, Callable[[], NDArray]]:
    config = model.config
    theirs = _transformers(model)
    longest = config.max_position_embeddings
    pixels = [PairScorer(model, processor, 1, longest).pixels(image) for image in images]
    padded = processor.tokenizer(texts, padding="max_length", max_length=longest, return_tensors="pt")
    order = np.random.default_rng(0).permutation(len(texts))

    @torch.no_grad()
    def usual(batch: int) -> NDArray:
        scores = np.empty((len(texts), len(images)))
        for column, picture in enumerate(pixels):
            for first in range(0, len(texts), batch):
                rows = slice(first, first + batch)
                text = {name: padded[name][rows] for name in ("input_ids", "attention_mask")}
                count = len(text["input_ids"])
                image = {name: value.expand(count, *value.shape[1:]) for name, value in picture.items()}
                logits = model.itm_score(theirs(**text, **image).pooler_output)
                scores[rows, column] = (logits[:, 1] - logits[:, 0]).numpy()
        return scores

    @torch.no_grad()
    def ours(batch: int, wanted: NDArray[np.bool_] | None = None) -> NDArray:
        scorer = PairScorer(model, processor, batch, longest)
        return scorer.scores([scorer.embed_image(**picture) for picture in pixels], texts, wanted)

    @torch.no_grad()
    def unsorted(batch: int) -> NDArray:
        scorer = PairScorer(model, processor, batch, longest)
        scores = np.empty((len(texts), len(images)))
        for column, picture in enumerate(scorer.embed_image(**of_image) for of_image in pixels):
            scores[order, column] = scorer.aligned_scores(
                [texts[row] for row in order], [picture] * len(texts)
            )
        return scores

    def shortlist() -> NDArray:
        cheap = dual_encoder_scores(model, images, texts, processor, max(arguments.batches), longest)
        listed = listed_items(cheap, _relevant(arguments), arguments.shortlist)
        return complete_scores(ours(max(arguments.batches), listed), listed, cheap)

    return {
        "usual, one pair at a time": partial(usual, 1),
        f"usual, batches of {max(arguments.batches)}": partial(usual, max(arguments.batches)),
        **{f"ours, batches of {batch}": partial(ours, batch) for batch in arguments.batches},
        f"ours, batches of {max(arguments.batches) // 2}, random order": partial(
            unsorted, max(arguments.batches) // 2
        ),
        f"ours, batches of {max(arguments.batches) // 2}": partial(ours, max(arguments.batches) // 2),
        "shortlist": shortlist,
    }


def _transformers(model: Any) -> Any:
    names = ViltConfig().to_dict().keys() & model.config.to_dict().keys() - {"model_type"}
    theirs = ViltModel(ViltConfig(**{name: getattr(model.config, name) for name in names})).eval()
    theirs.load_state_dict(model.vilt.state_dict())
    return theirs


def _images(number: int, side: int) -> list[Any]:
    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(256, size=(side, side, 3), dtype=np.uint8)) for _ in range(number)
    ]


def _relevant(arguments: argparse.Namespace) -> NDArray[np.bool_]:
    """Texts take turns with the pictures that they belong to; `(texts, pictures)`."""
    return np.arange(arguments.texts)[:, None] % arguments.images == np.arange(arguments.images)


def _operations(config: Any, tokenizer: Any, texts: list[str], arguments: argparse.Namespace) -> int:
    """Matrix products of all pairs, each at its own length, patches embedded once a picture."""
    patches = (arguments.image_size // config.patch_size) ** 2
    embedding = 2 * patches * config.num_channels * config.patch_size**2 * config.hidden_size
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    pairs = sum(forward_flops(config, Tokens(length, patches)) - embedding for length in lengths)
    return arguments.images * (pairs + embedding)


def _errors(arguments: argparse.Namespace, scores: dict[str, NDArray]) -> dict[str, Any]:
    relevant = _relevant(arguments)
    exact = best_ranks(scores[f"ours, batches of {max(arguments.batches)}"], relevant)
    ranks = best_ranks(scores["shortlist"], relevant)
    cutoffs = [k for k in (1, 5, 10) if k < arguments.images]
    return {
        "size": arguments.shortlist,
        "pairs": arguments.shortlist * arguments.texts,
        "errors": recall_errors(ranks, exact, cutoffs),
    }


if __name__ == "__main__":
    sys.exit(main())
