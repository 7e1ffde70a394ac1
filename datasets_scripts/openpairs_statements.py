"""NLVR2-like statements about two openpairs pictures; each text is as often true as false.

Three types. `tone`: both people share a skin tone. `category`: how many of the two pictures are of a kind. `order`: what is
left and what is right, about the same two pictures in both orders. Statements are built from one split only.
"""

from collections import defaultdict
from itertools import cycle, islice

from .caption_cleaning import TONE_WORDS
from .openpairs_phrases import (
    GROUP_NAMES,
    Row,
    choose,
    digest,
    first_of_each,
    named,
    one_toned,
    usable,
    with_article,
    with_partners,
)

TONE_STATEMENTS = (
    "both people have a {tone} skin tone",
    "the two pictures show people with {tone} skin",
    "in each image the skin color is {tone}",
)
ORDER_STATEMENTS = (
    "the left picture shows {left} and the right picture shows {right}",
    "{left} appears on the left side and {right} on the right side",
    "the first drawing is {left}, the second drawing is {right}",
)
KINDS = {
    "smileys-emotion": "an emotion or a smiley",
    "people-body": "a person or a part of the body",
    "animals-nature": "an animal or a plant",
    "food-drink": "something to eat or drink",
    "travel-places": "a place, a vehicle or the weather",
    "objects": "an everyday object",
    "symbols": "a symbol or a sign",
    "flags": "a flag of a country or a region",
}
# (statement, how many of the two pictures are of the kind when it is true, and when it is false)
COUNT_STATEMENTS = (
    ("both images show {kind}", (2,), (1,)),
    ("exactly one image shows {kind}", (1,), (0, 2)),
    ("neither of the pictures shows {kind}", (0,), (1,)),
    ("at least one picture contains {kind}", (1, 2), (0,)),
)


def nlvr2_rows(metadata: list[Row]) -> list[Row]:
    """All statements about one split's OpenMoji rows (as stored), in a fixed shuffled order."""
    rows = usable(metadata)
    statements = [*_tone(rows), *_category(rows), *_order(rows)]
    return sorted(statements, key=lambda statement: digest(statement["identifier"]))


def _statement(left: Row, right: Row, statement_type: str, statement: str, label: bool) -> Row:
    pair = f"{left['image_id']}|{right['image_id']}"
    return {
        "left_image": left["image"],
        "right_image": right["image"],
        "identifier": f"{statement_type}:{digest(statement)[:8]}:{pair}",
        "statement": statement,
        "label": label,
        "statement_type": statement_type,
        "concept": f"{left['concept']}|{right['concept']}",
    }


def _tone(rows: list[Row]) -> list[Row]:
    """Neighbours of one tone (true) against the same left picture with another tone on one of the two sides (false)."""
    by_tone = {tone: [row for row in one_toned(rows) if row["skin_tone"] == tone] for tone in TONE_WORDS}
    statements = []
    for tone, members in by_tone.items():
        strangers = [row for row in one_toned(rows) if row["skin_tone"] != tone]
        for i, (left, right) in enumerate(zip(members[::2], members[1::2], strict=False)):
            text = choose(TONE_STATEMENTS, left["image_id"]).format(tone=tone)
            stranger = strangers[int(digest(text + left["image_id"]), 16) % len(strangers)]
            statements.append(_statement(left, right, "tone", text, label=True))
            false_pair = (left, stranger) if i % 2 else (stranger, right)
            statements.append(_statement(*false_pair, "tone", text, label=False))
    return statements


def _category(rows: list[Row]) -> list[Row]:
    """For each kind and each count as many true as false pairs, drawn in turn from the kind and from all others."""
    by_group = defaultdict(list)
    for row in first_of_each(rows, "concept"):
        if row["group"] in GROUP_NAMES:
            by_group[row["group"]].append(row)
    pairs_per_text = min(map(len, by_group.values()))
    statements = []
    for group, members in by_group.items():
        # The other groups in turn, so that people do not crowd out the rest.
        others = [
            row
            for rank in zip(*(m[:pairs_per_text] for g, m in by_group.items() if g != group), strict=True)
            for row in rank
        ]
        for template, true_counts, false_counts in COUNT_STATEMENTS:
            text = template.format(kind=KINDS[group])
            of_kind, of_other = cycle(_reordered(members, text)), cycle(_reordered(others, text))
            for label, counts in ((True, true_counts), (False, false_counts)):
                for i, count in enumerate(islice(cycle(counts), pairs_per_text)):
                    pair = [next(of_kind) if k < count else next(of_other) for k in range(2)]
                    if i // len(counts) % 2:  # the picture of the kind is as often left as right
                        pair.reverse()
                    statements.append(_statement(*pair, "category", text, label))
    return statements


def _reordered(rows: list[Row], key: str) -> list[Row]:
    return sorted(rows, key=lambda row: digest(key + row["image_id"]))


def _order(rows: list[Row]) -> list[Row]:
    """The same two pictures in the stated order (true) and swapped (false)."""
    statements = []
    for row, other in with_partners(named(rows)):
        names = {"left": with_article(row["name"]), "right": with_article(other["name"])}
        text = choose(ORDER_STATEMENTS, row["image_id"]).format(**names)
        statements.append(_statement(row, other, "order", text, label=True))
        statements.append(_statement(other, row, "order", text, label=False))
    return statements
