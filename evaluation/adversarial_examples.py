"""Adversarial examples on disk, so that anybody can score them again: `rmcl-hub rescore`.

Pixels lie in `adversarial/<threat model>-<batch>.safetensors` (`pixel_values`, normalised, as the model saw
them), the texts and all outcomes in `outcomes.parquet`; the ids of the metadata join the two.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rmcl_hub.attacks.base import Batch

from .outcomes import Outcome

FOLDER = "adversarial"


class AdversarialWriter:
    """Writes the worst attacked examples of every batch and threat model; a `keep` of `attack_examples`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder) / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob("*.safetensors"):  # of an earlier evaluation into the same folder
            stale.unlink()
        self.written: dict[str, int] = {}

    def __call__(self, threat: str, outcomes: list[Outcome], attacked: Batch) -> None:
        """Store one batch; texts are in the outcomes already."""
        number = self.written.get(threat, 0)
        self.written[threat] = number + 1
        save_file(
            {"pixel_values": attacked["pixel_values"].detach().cpu().contiguous()},
            self.folder / f"{threat}-{number:05d}.safetensors",
            metadata={"threat": threat, "ids": json.dumps([row.id for row in outcomes])},
        )


def read_adversarial(folder: str | Path, threat: str) -> Iterator[tuple[list[str], torch.Tensor]]:
    """(ids, `pixel_values`) of the stored batches of a threat model, in order.

    Raises:
        FileNotFoundError: If none are stored.
    """
    files = sorted((Path(folder) / FOLDER).glob(f"{threat}-[0-9]*.safetensors"))
    files = [file for file in files if file.stem.rsplit("-", 1)[0] == threat]
    if not files:
        raise FileNotFoundError(
            f"{Path(folder) / FOLDER} holds no adversarial examples of {threat!r}; evaluate with an "
            "output_dir."
        )
    for file in files:
        with safe_open(file, framework="pt") as stored:
            yield json.loads(stored.metadata()["ids"]), stored.get_tensor("pixel_values")
