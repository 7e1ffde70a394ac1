"""What the card says of each class of the package: what it is for, how it is loaded and used."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Head:
    """One class.

    Attributes:
        auto_class: The Auto class that loads it.
        purpose: Half a sentence, after "A ViLT encoder".
        pipeline: The Transformers pipeline that runs it; None if no pipeline takes its inputs.
        pipeline_tag: How the Hub files it; None if the Hub has no such task.
        call: How the pipeline is called with a picture.
    """

    auto_class: str
    purpose: str
    pipeline: str | None = None
    pipeline_tag: str | None = None
    call: str = ""


HEADS = {
    "RMCLViltModel": Head(
        "AutoModel",
        "without a head: it gives the joint representation of a picture and a text",
        pipeline_tag="feature-extraction",
    ),
    "RMCLViltForPreTraining": Head(
        "AutoModelForPreTraining",
        "with the heads of its pre-training: masked words, matching of picture and text, and projections",
        pipeline_tag="feature-extraction",
    ),
    "RMCLViltForMaskedLM": Head(
        "AutoModelForMaskedLM", "with a head that fills in a masked word of a text about a picture"
    ),
    "RMCLViltForQuestionAnswering": Head(
        "AutoModelForVisualQuestionAnswering",
        "with a head that answers questions about a picture, out of a fixed list of answers",
        "visual-question-answering",
        "visual-question-answering",
        'answer(picture, "what colour is it?")',
    ),
    "RMCLViltForImagesAndTextClassification": Head(
        "AutoModelForSequenceClassification",
        "with a head that classifies a sentence about one or two pictures",
    ),
    "RMCLViltForImageAndTextRetrieval": Head(
        "AutoModelForZeroShotImageClassification",
        "with a head that scores how well a text describes a picture, to rank the one for the other",
        "zero-shot-image-classification",
        "zero-shot-image-classification",
        'rank(picture, candidate_labels=["a red apple", "a dog"], hypothesis_template="{}")',
    ),
}
"""Class to head."""


def head_of(folder: Path) -> Head:
    """The head of a saved model.

    Raises:
        FileNotFoundError: If the folder holds no model.
        ValueError: If its class is none of this package's.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no saved model: there is no config.json in it.")
    name = next(iter(json.loads(path.read_text(encoding="utf-8")).get("architectures") or ()), None)
    if name not in HEADS:
        raise ValueError(f"{path} names the class {name!r}; cards are written for {', '.join(HEADS)}.")
    return HEADS[name]


def digest_as(folder: Path, class_name: str) -> str:
    """`provenance.model_digest` of a saved model when it is loaded as a class of the package.

    Raises:
        ValueError: If the package has no such class.
    """
    if class_name not in HEADS:
        raise ValueError(f"{class_name!r} is no class of this package, which has {', '.join(HEADS)}.")
    from rmcl_hub import modeling_rmcl
    from rmcl_hub.evaluation.provenance import model_digest

    return model_digest(getattr(modeling_rmcl, class_name).from_pretrained(folder))
