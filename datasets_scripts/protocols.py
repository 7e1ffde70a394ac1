"""Which splits train, select and test in each protocol: `clean`, and the thesis's with its faults named."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gallery:
    """How many test pictures are ranked against each other, and in how many disjoint groups of that size.

    Recall is the mean over the groups: five of 1,000 are COCO's 1K protocol, one of 5,000 is its 5K protocol.
    """

    size: int
    count: int = 1


@dataclass(frozen=True)
class Protocol:
    """Splits of one corpus in one protocol. Numbers of different protocols are never in one table.

    Attributes:
        name: `clean` or `thesis`.
        corpus: As in `corpora.CORPORA`.
        task: `vqa`, `nlvr2`, `snli_ve` or `retrieval`.
        train: Splits that the weights are fitted to.
        validation: Splits that choose the checkpoint.
        test: Splits that are reported on.
        galleries: Retrieval: what is ranked, in the fixed order of the rows' ids (`official_builder`).
        contamination: What a reader must know before comparing its numbers; empty if nothing.
    """

    name: str
    corpus: str
    task: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    galleries: tuple[Gallery, ...] = ()
    contamination: str = ""


_SELECTS_ON_TEST = "the checkpoint is chosen on the test pictures, as the thesis's code does; "
_FEW_PICTURES = (
    "500 pictures are ranked, not the whole test split, so Recall@K is higher than in the literature"
)
PROTOCOLS = (
    Protocol("clean", "vqav2", "vqa", ("train_fit",), ("train_dev",), ("trainable_val", "rest_val")),
    Protocol(
        "thesis",
        "vqav2",
        "vqa",
        ("train_fit", "train_dev", "trainable_val"),
        ("rest_val",),
        ("trainable_val", "rest_val"),
        contamination="all test questions but those on 1,000 pictures are trained on (thesis Table 4.2)",
    ),
    Protocol("clean", "nlvr2", "nlvr2", ("train",), ("dev",), ("test1",)),
    Protocol("thesis", "nlvr2", "nlvr2", ("train",), ("dev",), ("test1",)),
    Protocol("clean", "snli_ve", "snli_ve", ("train",), ("dev",), ("test",)),
    Protocol(
        "clean",
        "coco_captions",
        "retrieval",
        ("train", "restval"),
        ("validation",),
        ("test",),
        (Gallery(1000, 5), Gallery(5000)),
    ),
    Protocol(
        "thesis",
        "coco_captions",
        "retrieval",
        ("train", "restval"),
        ("test",),
        ("test",),
        (Gallery(500),),
        _SELECTS_ON_TEST + _FEW_PICTURES,
    ),
    Protocol("clean", "flickr30k", "retrieval", ("train",), ("validation",), ("test",), (Gallery(1000),)),
    Protocol(
        "thesis",
        "flickr30k",
        "retrieval",
        ("train",),
        ("test",),
        ("test",),
        (Gallery(500),),
        _SELECTS_ON_TEST + _FEW_PICTURES,
    ),
)


def find_protocol(name: str, corpus: str) -> Protocol:
    """The protocol of that name for a corpus.

    Raises:
        ValueError: If there is none; the message lists those there are.
    """
    for protocol in PROTOCOLS:
        if (protocol.name, protocol.corpus) == (name, corpus):
            return protocol
    known = ", ".join(f"{protocol.name} of {protocol.corpus}" for protocol in PROTOCOLS)
    raise ValueError(f"There is no protocol {name!r} of {corpus!r}; there are: {known}.")
