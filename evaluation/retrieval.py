"""Image and text retrieval: Recall@K in both directions over a whole, declared gallery, with chance beside
it.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import comb
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from rmcl_hub.attacks.base import frozen

from .intervals import wilson_interval
from .metrics import best_ranks

RECALL_CUTOFFS = (1, 5, 10)

Picture: TypeAlias = Mapping[str, Tensor]
"""One image as a cross-encoder takes it, with a batch dimension of 1, unpadded; see `PairScorer`."""


class RecallRate(TypedDict):
    """Recall at one cut-off, its 95 % Wilson interval over the queries, and what a random ranking reaches."""

    value: float
    low: float
    high: float
    chance: float


class DirectionNumbers(TypedDict):
    """One direction: `recall` maps the cut-off (a string, for JSON) to its numbers."""

    num_queries: int
    gallery_size: int
    recall: dict[str, RecallRate]


class RetrievalNumbers(TypedDict):
    """Both directions; texts are the distinct captions of the pictures."""

    scorer: str
    forwards: int
    text_to_image: DirectionNumbers
    image_to_text: DirectionNumbers


def evaluate_retrieval(
    model: Any,
    dataset: Any,
    processor: ProcessorMixin,
    *,
    scorer: Literal["dual", "cross"],
    batch_size: int,
    max_text_length: int = 40,
) -> RetrievalNumbers:
    """Rank every caption for every picture and back.

    Equal captions (up to case and surrounding space) are one text, which is right for every picture that has
    it. The gallery is the whole data set: for a smaller one draw a seeded random subset, never the first N.

    Args:
        model: With `image_embedding(pixel_values, pixel_mask)` and `text_embedding(input_ids,
            attention_mask)` for `"dual"`; with `joint_representation` and `logits_from_joint` (logits `(B,
            1)`, or `(B, 2)` with class 1 = true pair) for `"cross"`.
        dataset: Rows with `image` (PIL) and `captions`.
        processor: Its image processor and tokenizer encode the two sides.
        scorer: `"dual"` embeds every picture and text once: texts + pictures forwards. `"cross"` sends every
            pair through the joint encoder: texts x pictures forwards; see `PairScorer`.
        batch_size: Rows per forward.
        max_text_length: Word pieces kept, special tokens included.

    Raises:
        ValueError: If the data set is empty, a picture has no caption or the scorer is unknown.
    """
    scorers = {"dual": dual_encoder_scores, "cross": cross_encoder_scores}
    if scorer not in scorers:
        raise ValueError(f"scorer is {scorer!r}; expected one of {', '.join(scorers)}.")
    rows = list(dataset)
    texts, relevant = distinct_captions([row["captions"] for row in rows])
    images = [row["image"] for row in rows]
    scores = scorers[scorer](model, images, texts, processor, batch_size, max_text_length)
    forwards = len(texts) + len(images) if scorer == "dual" else len(texts) * len(images)
    return {
        "scorer": scorer,
        "forwards": forwards,
        "text_to_image": recall_numbers(scores, relevant),
        "image_to_text": recall_numbers(scores.T, relevant.T),
    }


def distinct_captions(captions: Sequence[Sequence[str]]) -> tuple[list[str], NDArray[np.bool_]]:
    """Merge equal captions.

    Args:
        captions: Per picture, its captions.

    Returns:
        The T distinct texts, and whether each belongs to each picture, `(T, pictures)`.

    Raises:
        ValueError: If there are no pictures or one has no caption.
    """
    if not captions:
        raise ValueError("the data set is empty; retrieval needs at least one picture with a caption.")
    bare = [index for index, texts in enumerate(captions) if not texts]
    if bare:
        raise ValueError(f"picture {bare[0]} has no caption; drop such rows before the evaluation.")
    texts: dict[str, str] = {}
    for caption in (caption for of_image in captions for caption in of_image):
        texts.setdefault(_normalised(caption), caption)
    position = {key: index for index, key in enumerate(texts)}
    relevant = np.zeros((len(texts), len(captions)), dtype=bool)
    for image, of_image in enumerate(captions):
        for caption in of_image:
            relevant[position[_normalised(caption)], image] = True
    return list(texts.values()), relevant


def recall_numbers(scores: NDArray, relevant: NDArray[np.bool_]) -> DirectionNumbers:
    """Recall@1, 5 and 10, as far as the gallery is larger than that.

    Args:
        scores: Higher is better, `(queries, gallery)`.
        relevant: Which items are right, `(queries, gallery)`.
    """
    return recall_of_ranks(best_ranks(scores, relevant), relevant)


def recall_of_ranks(ranks: NDArray[np.int_], relevant: NDArray[np.bool_]) -> DirectionNumbers:
    """The same from the rank of every query's best relevant item, `(queries,)`."""
    num_queries, gallery_size = relevant.shape
    recall: dict[str, RecallRate] = {}
    for k in (k for k in RECALL_CUTOFFS if k <= gallery_size):
        hits = int((ranks <= k).sum())
        low, high = wilson_interval(hits, num_queries)
        chance = chance_recall(relevant, k)
        recall[str(k)] = {"value": hits / num_queries, "low": low, "high": high, "chance": chance}
    return {"num_queries": num_queries, "gallery_size": gallery_size, "recall": recall}


def chance_recall(relevant: NDArray[np.bool_], k: int) -> float:
    """Expected Recall@k of a random ranking: 1 - C(N - r, k) / C(N, k) for a query with r relevant items of
    N.
    """
    gallery_size = relevant.shape[1]
    counts = relevant.sum(axis=1).tolist()
    return float(np.mean([1 - comb(gallery_size - count, k) / comb(gallery_size, k) for count in counts]))


@torch.no_grad()
def dual_encoder_scores(
    model: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    processor: ProcessorMixin,
    batch_size: int,
    max_text_length: int,
) -> NDArray:
    """Dot products of text and image embeddings, `(texts, images)`."""
    device = next(model.parameters()).device
    with frozen(model):
        text_embeddings = [
            model.text_embedding(**_encode_texts(processor, chunk, max_text_length, device))
            for chunk in _chunks(texts, batch_size, "embed texts")
        ]
        image_embeddings = [
            model.image_embedding(**_encode_images(processor, chunk, device))
            for chunk in _chunks(images, batch_size, "embed images")
        ]
    return (torch.cat(text_embeddings) @ torch.cat(image_embeddings).T).cpu().numpy()


def cross_encoder_scores(
    model: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    processor: ProcessorMixin,
    batch_size: int,
    max_text_length: int,
    wanted: NDArray[np.bool_] | None = None,
) -> NDArray:
    """Log odds (or rank scores) that text and image are a pair, `(texts, images)`; NaN if not `wanted`."""
    with frozen(model):
        scorer = PairScorer(model, processor, batch_size, max_text_length)
        return scorer.scores([scorer.picture(image) for image in images], texts, wanted)


class PairScorer:
    """Scores pairs of texts and images with a cross-encoder, exactly, and counts them.

    Exact means: every pair is its own forward of the joint encoder, and its score does not depend on the
    others. Only what pairs share is not repeated: an image is processed once, and where the model offers
    `embed_image` its patches are embedded once; texts are tokenised once (a word embedding is a look-up in a
    table, which is its own cache); and one forward holds one image, which needs no padding, with texts of
    similar length, padded to the longest of them.

    Cost: one forward per pair. Memory: the image tokens `(tokens, hidden)` of every picture that the caller
    keeps; for pictures of 384 x 384 pixels and ViLT-B/32, 0.44 MB each.

    Args:
        model: With `joint_representation` and `logits_from_joint` (logits `(B, 1)`, or `(B, 2)` with class 1
            = true pair). Wrap its use in `frozen`.
        processor: Its image processor and tokenizer encode the two sides.
        batch_size: Pairs per forward.
        max_text_length: Word pieces kept, special tokens included.

    Attributes:
        forwards: Pairs sent through the joint encoder so far.
    """

    def __init__(self, model: Any, processor: ProcessorMixin, batch_size: int, max_text_length: int) -> None:
        self.model = model
        self.processor = processor
        self.batch_size = batch_size
        self.max_text_length = max_text_length
        self.forwards = 0
        self.device = next(model.parameters()).device

    def pixels(self, image: Any) -> dict[str, Tensor]:
        """`pixel_values` `(1, 3, H, W)` and `pixel_mask` `(1, H, W)` of a PIL image."""
        return _encode_images(self.processor, [image], self.device)

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, `(texts, longest)`, padded at the end."""
        return _encode_texts(self.processor, texts, self.max_text_length, self.device)

    def embed_image(self, pixel_values: Tensor, pixel_mask: Tensor) -> Picture:
        """The image side of the model's inputs; differentiable."""
        if not hasattr(self.model, "embed_image"):
            return {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        tokens, token_mask = self.model.embed_image(pixel_values, pixel_mask)
        return {"image_embeds": tokens, "pixel_mask": token_mask}

    @torch.no_grad()
    def picture(self, image: Any) -> Picture:
        """A PIL image, ready for any number of pairs."""
        return self.embed_image(**self.pixels(image))

    def joint(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Joint representations `(pairs, dim)`, in one forward; differentiable."""
        self.forwards += len(inputs["pixel_mask"])
        return self.model.joint_representation(**inputs)

    def pair_score(self, joint: Tensor) -> Tensor:
        """Scores `(pairs,)` of joint representations: the one logit, or the log odds of a true pair."""
        logits = self.model.logits_from_joint(joint)
        if logits.shape[1] == 1:
            return logits[:, 0]
        if logits.shape[1] == 2:
            return logits[:, 1] - logits[:, 0]
        raise ValueError(
            f"a matching head has 1 or 2 logits per pair, got {logits.shape[1]}; "
            "load an image-text matching or retrieval model."
        )

    @torch.no_grad()
    def aligned_scores(self, texts: Sequence[str], pictures: Sequence[Picture]) -> NDArray[np.float64]:
        """Score of text i with picture i, `(pairs,)`."""
        scores = np.empty(len(texts))
        for start in range(0, len(texts), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            joint = self.joint({**self.tokens(texts[chunk]), **stack_pictures(pictures[chunk])})
            scores[chunk] = self.pair_score(joint).double().cpu().numpy()
        return scores

    @torch.no_grad()
    def scores(
        self,
        pictures: Sequence[Picture],
        texts: Sequence[str],
        wanted: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float64]:
        """Scores of all pairs, or of the wanted ones.

        Args:
            pictures: From `picture` or `embed_image`.
            texts: The texts.
            wanted: Which pairs to score, `(texts, pictures)`; None: all.

        Returns:
            `(texts, pictures)`; NaN where a pair is not wanted.
        """
        tokens = self.tokens(texts)
        lengths = tokens["attention_mask"].sum(dim=1)  # (texts,)
        order = lengths.argsort(stable=True)
        scores = np.full((len(texts), len(pictures)), np.nan)
        for column, picture in enumerate(tqdm(pictures, desc="score pairs", unit="image")):
            rows = order if wanted is None else order[torch.from_numpy(wanted[:, column])[order.cpu()]]
            for chunk in rows.split(self.batch_size) if len(rows) else ():
                longest = int(lengths[chunk[-1]])
                text = {name: values[chunk, :longest] for name, values in tokens.items()}
                image = {name: value.expand(len(chunk), *value.shape[1:]) for name, value in picture.items()}
                score = self.pair_score(self.joint({**text, **image}))
                scores[chunk.cpu().numpy(), column] = score.double().cpu().numpy()
        return scores


def stack_pictures(pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """Pictures as one batch, padded at the end of every dimension to the largest."""
    return {name: _pad_and_cat([picture[name] for picture in pictures]) for name in pictures[0]}


def _pad_and_cat(tensors: Sequence[Tensor]) -> Tensor:
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [size - have for size, have in zip(largest, tensor.shape[1:], strict=True)]
        padding = [amount for size in reversed(missing) for amount in (0, size)]  # F.pad starts at the end
        padded.append(F.pad(tensor, padding) if any(missing) else tensor)
    return torch.cat(padded)


def _normalised(caption: str) -> str:
    return " ".join(caption.casefold().split())


def _chunks(items: Sequence[Any], size: int, description: str) -> Iterator[Sequence[Any]]:
    with tqdm(total=len(items), desc=description) as progress:
        for start in range(0, len(items), size):
            chunk = items[start : start + size]
            yield chunk
            progress.update(len(chunk))


def _encode_texts(
    processor: ProcessorMixin, texts: Sequence[str], max_text_length: int, device: torch.device
) -> dict[str, Tensor]:
    tokens = processor.tokenizer(
        list(texts),
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=max_text_length,
        return_tensors="pt",
    )
    return {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}


def _encode_images(
    processor: ProcessorMixin, images: Sequence[Any], device: torch.device
) -> dict[str, Tensor]:
    pixels = processor.image_processor([image.convert("RGB") for image in images], return_tensors="pt")
    return {name: pixels[name].to(device) for name in ("pixel_values", "pixel_mask")}
