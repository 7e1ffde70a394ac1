"""What the makers of each corpus let others publish: its texts, its pictures, both or neither."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """Terms of a corpus, read narrowly: what nobody has licensed may not be published.

    Attributes:
        pictures: The Hub's name of the licence under which pictures may be passed on; None: they may not.
        texts: The same for captions, questions, statements and ids.
        reason: Why not, for those that may not.
    """

    pictures: str | None
    texts: str | None
    reason: str


_FLICKR = "the pictures belong to Flickr users, each under terms of its own"
TERMS = {
    "openpairs": Terms("cc-by-sa-4.0", "cc-by-sa-4.0", ""),
    "coco_captions": Terms(
        None, "cc-by-4.0", f"{_FLICKR}; COCO's makers own and license the annotations only"
    ),
    "visual_genome": Terms(
        None, "cc-by-4.0", f"{_FLICKR}; Visual Genome's makers license their descriptions of them"
    ),
    "sbu_captions": Terms(
        None, None, "pictures and captions were written by Flickr users, and its makers state no licence"
    ),
    "conceptual_captions": Terms(
        None, "other", "the pictures belong to the owners of many web sites; Google publishes addresses only"
    ),
    "flickr30k": Terms(
        None,
        None,
        f"{_FLICKR}; its makers hand it out on request, for non-commercial research and education",
    ),
    "vqav2": Terms(
        None, "cc-by-4.0", f"{_FLICKR}, as COCO's; VQA's makers license their questions and answers"
    ),
    "nlvr2": Terms(
        None,
        "cc-by-4.0",
        "the pictures belong to the owners of many web sites; NLVR2's makers license the texts",
    ),
    "snli_ve": Terms(
        None,
        "cc-by-sa-4.0",
        "the pictures are Flickr30k's, which its makers hand out for research on request",
    ),
}
"""By name in `corpora.CORPORA`, and the embedded set. `CORPORA.md` says where each is published."""

UNKNOWN = Terms(None, None, "nobody has said under which terms these rows may be published")


def terms_of(corpus: str) -> Terms:
    """Terms of a corpus; of one that is not listed, that nothing may be published."""
    return TERMS.get(corpus, UNKNOWN)


def picture_licence(corpus: str, private: bool) -> str:
    """Licence of a repository that holds a corpus's pictures.

    Args:
        corpus: Its name.
        private: Whether the repository is private, for the use of somebody who has the corpus anyway.

    Returns:
        The Hub's name of it. For a private repository of what may not be published: "other", the terms of the
        corpus's makers, or "unknown".

    Raises:
        ValueError: If the pictures may not be published.
    """
    terms = terms_of(corpus)
    if terms.pictures:
        return terms.pictures
    if private:
        return "other" if corpus in TERMS else "unknown"
    instead = "the rows without pictures (`--without-pictures`)" if terms.texts else "how they were prepared"
    raise ValueError(
        f"pictures of {corpus!r} cannot be published: {terms.reason}. Publish {instead}, or keep a copy for "
        "your own use in a private repository (`--private`)."
    )


def text_licence(corpus: str) -> str:
    """Licence of a repository that holds a corpus's rows without the pictures.

    Returns:
        The Hub's name of it; "other" where the card says it.

    Raises:
        ValueError: If the texts may not be published.
    """
    terms = terms_of(corpus)
    if terms.texts:
        return terms.texts
    raise ValueError(
        f"neither pictures nor texts of {corpus!r} can be published: {terms.reason}. Publish how they were "
        "prepared: whoever has the corpus gets the same shards by the same command."
    )


def why_private(corpus: str) -> str | None:
    """Why a repository with a corpus's pictures must stay private, as a sentence; None where it need not."""
    terms = terms_of(corpus)
    if terms.pictures:
        return None
    return f"This repository holds pictures of {corpus!r} and must stay private: {terms.reason}."
