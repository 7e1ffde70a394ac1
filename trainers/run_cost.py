"""What a recipe costs by closed formulas: encoder passes, operations and memory, before anything runs."""

import inspect
from dataclasses import dataclass
from typing import Any

from .recipe import FinetuneRecipe, PretrainRecipe

LONGEST = 1333 / 800
"""ViLT's limit of a picture's longer side, as a multiple of the shorter one."""


@dataclass(frozen=True)
class Passes:
    """Rows through the encoder for one example of a batch.

    Attributes:
        forwards: Without gradients of the weights: keys, and what attacks send forward.
        backwards: Differentiated with respect to an input, by attacks.
        trained: Forward, and backward to the weights.
        exact: False: an upper bound, because a word attack ends when nothing is left to try.
    """

    forwards: int = 0
    backwards: int = 0
    trained: int = 0
    exact: bool = True

    @property
    def total(self) -> int:
        """Forward and backward rows, as `RMCLTrainer.encoder_passes` counts them."""
        return self.forwards + self.backwards + 2 * self.trained

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(
            self.forwards + other.forwards,
            self.backwards + other.backwards,
            self.trained + other.trained,
            self.exact and other.exact,
        )

    def __mul__(self, rows: int) -> "Passes":
        return Passes(self.forwards * rows, self.backwards * rows, self.trained * rows, self.exact)


@dataclass(frozen=True)
class Tokens:
    """Length of an encoder row."""

    text: int  # special tokens included
    patches: int

    @property
    def total(self) -> int:
        """With the image's class token."""
        return self.text + 1 + self.patches


def passes_per_example(recipe: PretrainRecipe | FinetuneRecipe, config: Any) -> Passes:
    """Encoder rows that one training example costs, attacks included.

    Args:
        recipe: Of either kind.
        config: `RMCLViltConfig` of the model; its `itc_weight` adds a pass of the two modalities alone, which
            count as one.
    """
    if isinstance(recipe, FinetuneRecipe):
        return _finetuning_passes(recipe)
    weight = recipe.training.get("pretraining_weight", 0)
    own = Passes()
    if recipe.stage == "vilt" or weight:
        own = Passes(trained=len(set(recipe.objectives)) + bool(config.itc_weight))
    if recipe.stage == "vilt":
        return own
    views = recipe.training.get("views", ["image", "text"])
    passes = own + Passes(forwards=1, trained=len(views))
    if recipe.stage == "mcl":  # its views cost the encoder nothing
        return passes
    if {"image", "both"} & set(views):
        passes += image_attack_passes(recipe)
    if {"text", "both"} & set(views):
        text = text_attack_passes(recipe)
        passes += text
        if {"image", "both"} & set(views) and _starts_from_clean_pairs(recipe):
            # PGD has passed them, forward and back; the word attack takes what it needs from there.
            passes += Passes(forwards=-1, backwards=-min(text.backwards, 1))
    return passes


def _starts_from_clean_pairs(recipe: PretrainRecipe) -> bool:
    attack = recipe.attack.image_attack()
    return attack is not None and attack.epsilon > 0 and not attack.random_start


def _finetuning_passes(recipe: FinetuneRecipe) -> Passes:
    rows = rows_per_example(recipe)
    train = Passes(forwards=1) if recipe.freeze_encoder else Passes(trained=1)
    image, text = bool(recipe.attack.image), bool(recipe.attack.text)
    if not image and not text:
        return train * rows
    passes = train * 2  # the clean and the attacked batch
    if image:
        passes += image_attack_passes(recipe)
    if text:
        passes += text_attack_passes(recipe)
    return (passes + Passes(forwards=int(image and text))) * rows  # the combination is scored once


def rows_per_example(recipe: PretrainRecipe | FinetuneRecipe) -> int:
    """Encoder rows of an example: NLVR2 has two pictures, retrieval a text and its negatives."""
    if isinstance(recipe, PretrainRecipe):
        return 1
    return {"nlvr2": 2, "retrieval": 1 + recipe.num_negatives}.get(recipe.task, 1)


def image_attack_passes(recipe: PretrainRecipe | FinetuneRecipe) -> Passes:
    """Of `PGD`, exactly; see its docstring."""
    attack = recipe.attack.image_attack()
    if attack is None or attack.epsilon == 0:
        return Passes(forwards=1 if attack else 0)
    if attack.keep == "last":
        return Passes(attack.num_steps, attack.num_steps)
    forwards = attack.restarts * (attack.num_steps + 1) + attack.random_start
    return Passes(forwards, attack.restarts * attack.num_steps)


def text_attack_passes(recipe: PretrainRecipe | FinetuneRecipe) -> Passes:
    """Upper bound of `GeometryAttack`, for a text of `max_text_length` whose words all have substitutes.

    Once forward and back for the clean text, `max_candidates` forwards per loop as if none were accepted, and
    once forward and back after each change but the last as if all were.
    """
    from rmcl_hub.attacks.geometry import GeometryAttack

    known = inspect.signature(GeometryAttack).parameters
    given = {name: recipe.attack.text.get(name, known[name].default) for name in known}
    words = recipe.data.max_text_length - 2  # at most one per piece, without [CLS] and [SEP]
    loops = min(given["max_loops"], words)
    budget = words if given["max_changed_words"] is None else given["max_changed_words"]
    share = given["max_change_share"]
    if share is not None:
        budget = min(budget, max(int(share * words + 1e-9), 1 if share > 0 else 0))
    if budget == 0:
        return Passes(forwards=1)
    again = min(loops, budget) - 1
    return Passes(1 + loops * given["max_candidates"] + again, 1 + again, exact=False)


def row_tokens(config: Any, max_text_length: int, shorter_side: int, ratio: float) -> Tokens:
    """Tokens of a row with the longest text and a picture whose sides have this ratio (at least 1).

    ViLT resizes the shorter side to `shorter_side`, the longer one to at most 1333/800 of it, and both down
    to multiples of the patch size: 384 x 608 pixels at most.
    """
    patch = config.patch_size
    longer = int(min(ratio, LONGEST) * shorter_side)
    return Tokens(max_text_length, (shorter_side // patch) * (longer // patch))


def forward_flops(config: Any, tokens: Tokens, first_token_only: bool = True) -> int:
    """Floating-point operations of one row through the encoder (a multiplication and its addition are two).

    Matrix products only, without the heads, which add about a hundredth.

    Args:
        config: `RMCLViltConfig`.
        tokens: Of the row.
        first_token_only: The last block computes the first token alone, as for joint representations.
    """
    length, hidden, inner = tokens.total, config.hidden_size, config.intermediate_size
    block = 8 * length * hidden**2 + 4 * length**2 * hidden + 4 * length * hidden * inner
    last = 4 * length * hidden**2 + 4 * hidden**2 + 4 * length * hidden + 4 * hidden * inner
    patches = 2 * tokens.patches * config.num_channels * config.patch_size**2 * hidden
    blocks = config.num_hidden_layers * block
    if first_token_only:
        blocks += last - block
    return blocks + patches + 2 * hidden**2


def activation_bytes(config: Any, tokens: Tokens, half: bool, first_token_only: bool = True) -> int:
    """What one row's forward keeps for the backward to the weights, without the pixels.

    Per block and token, with hidden size h and inner size i, 8 h + 2 i values: inputs and outputs of both
    normalisations, query, key and value, the output of attention (fused: no attention weights), and input and
    output of the activation function. In float32 they take 4 bytes each; in half precision 2, and another 8 h
    bytes for what normalisation keeps in float32. Dropout keeps a byte for each of 2 h values. The last block
    of a joint representation keeps 4 h values: input and output of its first normalisation, key and value.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    width = 2 if half else 4
    block = width * (8 * hidden + 2 * inner) + (8 * hidden if half else 0)
    if config.hidden_dropout_prob:
        block += 2 * hidden
    last = 4 * width * hidden + (4 * hidden if half else 0) if first_token_only else block
    embeddings = 3 * 4 * hidden
    return tokens.total * ((config.num_hidden_layers - 1) * block + last + embeddings)


def memory_bytes(
    recipe: PretrainRecipe | FinetuneRecipe,
    model: Any,
    trainable: int,
    tokens: Tokens,
    micro_batch: int,
    processes: int,
) -> dict[str, int]:
    """Bytes of one process by what they are for.

    Weights, gradients and AdamW's two moments are float32 (mixed precision keeps a half copy of the weights
    beside them); several processes exchange gradients in buckets as large as these. All objectives keep
    their activations until the one backward; of a step's views one at a time has any (with DeepSpeed, all).
    Left out: what the allocator cannot use, and the accelerator's own context, together often 1 to 2 GB.

    Args:
        recipe: Of either kind.
        model: Its parameters are counted; may be on the meta device.
        trainable: Parameters that get a gradient.
        tokens: Of the longest rows.
        micro_batch: Examples of a forward on one process.
        processes: Number of processes.
    """
    config, training = model.config, recipe.training
    half = bool(training.get("fp16") or training.get("bf16"))
    weights = sum(parameter.numel() for parameter in model.parameters())
    bytes_of = {
        "weights": weights * (6 if half else 4),
        "gradients": trainable * (8 if processes > 1 else 4),
        "AdamW": trainable * 8,
    }
    contrastive = isinstance(recipe, PretrainRecipe) and recipe.stage != "vilt"
    if contrastive and config.projector == "moco":
        bytes_of["key encoder"] = weights * 4
        bytes_of["queue"] = config.queue_size * config.projection_dim * 4
    trained = passes_per_example(recipe, config).trained
    if contrastive:
        trained -= len(recipe.training.get("views", ["image", "text"])) - 1
    kept = activation_bytes(config, tokens, half, contrastive or isinstance(recipe, FinetuneRecipe))
    if training.get("gradient_checkpointing"):  # of every block its input, and one block at a time in full
        kept = (
            kept // config.num_hidden_layers
            + 4 * tokens.total * config.hidden_size * config.num_hidden_layers
        )
    bytes_of["activations"] = micro_batch * (trained * kept + _output_bytes(recipe, model, tokens.text))
    pictures = micro_batch * (2 if isinstance(recipe, FinetuneRecipe) and recipe.task == "nlvr2" else 1)
    longer = tokens.patches // (config.image_size // config.patch_size) * config.patch_size
    pixels = pictures * config.num_channels * longer**2 * 4  # upright and oblong pictures share a canvas
    bytes_of["pixels"] = pixels * (8 if recipe.attack.image else 1)  # bounds, iterate, best, gradient, ...
    return bytes_of


def _output_bytes(recipe: PretrainRecipe | FinetuneRecipe, model: Any, text: int) -> int:
    """What the losses keep per example: logits and their softmax, or the projector's layers."""
    config = model.config
    if isinstance(recipe, FinetuneRecipe):
        return 2 * 4 * rows_per_example(recipe) * config.num_labels
    masked = 2 * 4 * config.vocab_size * int(0.15 * text)
    if recipe.stage == "vilt":
        return masked if "mlm" in recipe.objectives else 0
    width = config.queue_size + 1 if config.projector == "moco" else 4 * config.projection_dim
    return 2 * 4 * width + (masked if recipe.training.get("pretraining_weight") else 0)
