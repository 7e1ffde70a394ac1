"""Targets of ViLT's own objectives for a batch of pairs: masked words and matched images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, ProcessorMixin

from rmcl_hub.datasets_scripts.task_collators import Batch, PairCollator


class PretrainingCollator(PairCollator):
    """Pairs plus the targets of ViLT's own objectives: masked words, and the image each text is matched with.

    An exact half of the texts, drawn anew for every batch as in ViLT's code, is matched with the image of
    another pair of the batch; no further image is read.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        objectives: Sequence[str] = ("mlm", "itm"),
        mlm_probability: float = 0.15,
        **kwargs: Any,
    ) -> None:
        super().__init__(processor, **kwargs)
        self.objectives = objectives
        self.masking = DataCollatorForLanguageModeling(processor.tokenizer, mlm_probability=mlm_probability)

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Collate rows with `image`, `image_id` and `captions`."""
        batch = super().__call__(examples)
        draws = self._random(*[example["image_id"] for example in examples])
        generator = torch.Generator().manual_seed(draws.getrandbits(63))
        if "mlm" in self.objectives:
            self.masking.generator = generator
            special = torch.isin(batch["input_ids"], torch.tensor(self.processor.tokenizer.all_special_ids))
            masked, labels = self.masking.torch_mask_tokens(batch["input_ids"].clone(), special)
            batch |= {"mlm_input_ids": masked, "mlm_labels": labels}
        if "itm" in self.objectives:
            batch |= _match(len(examples), generator)
        return batch


def _match(size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Which image each text meets in the matching pass, and whether that is its own."""
    false = torch.randperm(size, generator=generator)[: size // 2]
    image = torch.arange(size)
    image[false] = (false + torch.randint(1, max(size, 2), (len(false),), generator=generator)) % size
    return {"itm_image_index": image, "itm_labels": (image == torch.arange(size)).long()}
