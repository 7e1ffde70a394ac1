"""NLVR2-like statements about two openpairs pictures; each text is as often true as false.

Three types. `tone`: how many of two drawings have a skin tone. `category`: how many of two pictures are of a
kind. `order`: what is left and what is right, about the same pictures in both orders. Statements are built
from one split only.
"""

from collections import defaultdict

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

SAME_TONE_STATEMENTS = (
    "both drawings have a {tone} skin tone",
    "the two pictures show {tone} skin",
    "in each image the skin color is {tone}",
)
ONE_TONE_STATEMENTS = (
    "exactly one of the two drawings has a {tone} skin tone",
    "only one picture shows {tone} skin",
    "the skin color is {tone} in a single image of the two",
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
# (statement, how many of the two pictures are of the kind when it is true, and when it is false). Over the
# four, two pictures of one kind are as often true as false, and so are two of different kinds: pictures alone
# tell nothing.
COUNT_STATEMENTS = (
    ("both images show {kind}", 2, 1),
    ("exactly one image shows {kind}", 1, 2),
    ("neither of the pictures shows {kind}", 0, 1),
    ("at least one picture contains {kind}", 1, 0),
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
    """Two drawings of one tone, and one of them beside another; "both" and "only one" take turns."""
    rows = one_toned(rows)
    statements = []
    for tone in TONE_WORDS:
        members = [row for row in rows if row["skin_tone"] == tone]
        strangers = [row for row in rows if row["skin_tone"] != tone]
        for i, (left, right) in enumerate(zip(members[::2], members[1::2], strict=False)):
            stranger = strangers[int(digest(left["image_id"]), 16) % len(strangers)]
            same, mixed = (left, right), ((left, stranger) if i // 2 % 2 else (stranger, right))
            templates = ONE_TONE_STATEMENTS if i % 2 else SAME_TONE_STATEMENTS
            text = choose(templates, left["image_id"]).format(tone=tone)
            statements.append(_statement(*same, "tone", text, label=templates is SAME_TONE_STATEMENTS))
            statements.append(_statement(*mixed, "tone", text, label=templates is ONE_TONE_STATEMENTS))
    return statements


def _category(rows: list[Row]) -> list[Row]:
    """For each kind and count as many true as false pairs, made from the kind and from the others in turn."""
    by_group = defaultdict(list)
    for row in first_of_each(rows, "concept"):
        if row["group"] in GROUP_NAMES:
            by_group[row["group"]].append(row)
    size = min(map(len, by_group.values()))
    statements = []
    for group, of_kind in by_group.items():
        # The other groups take turns: neighbours differ in group, and no group crowds out the rest.
        turns = zip(*(members for name, members in by_group.items() if name != group), strict=False)
        others = [row for turn in turns for row in turn]
        for template, true_count, false_count in COUNT_STATEMENTS:
            text = template.format(kind=KINDS[group])
            start = int(digest(text), 16)
            for i in range(size):
                kind = [of_kind[(start + i + k) % len(of_kind)] for k in range(2)]
                other = [others[(start + i + k) % len(others)] for k in range(2)]
                for label, count in ((True, true_count), (False, false_count)):
                    pair = ((other[0], other[1]), (kind[0], other[0]), (kind[0], kind[1]))[count]
                    left, right = reversed(pair) if i % 2 else pair  # the kind is as often left as right
                    statements.append(_statement(left, right, "category", text, label))
    return statements


def _order(rows: list[Row]) -> list[Row]:
    """The same two pictures in the stated order (true) and swapped (false)."""
    statements = []
    for row, other in with_partners(named(rows)):
        names = {"left": with_article(row["name"]), "right": with_article(other["name"])}
        text = choose(ORDER_STATEMENTS, row["image_id"]).format(**names)
        statements.append(_statement(row, other, "order", text, label=True))
        statements.append(_statement(other, row, "order", text, label=False))
    return statements
