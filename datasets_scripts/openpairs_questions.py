"""VQA-like questions about openpairs: answers follow from metadata, and the text alone gives nothing away.

Four types. `tone`, `gender` and `presence` ask the same text about several pictures, once for each answer;
`category` asks each of its phrasings equally often about each answer. So a reader of the text alone stays at
the majority rate of the type. Questions are built from the pictures of one split only.
"""

import re
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
    spoken_name,
    usable,
    with_article,
    with_partners,
)

TONE_QUESTIONS = (
    "what is the skin tone of the {name}?",
    "which color of skin is visible on the {name} in the picture?",
    "how light or dark is the skin of the {name}?",
    "what complexion did the artist give to the small {name}?",
)
GENDER_QUESTIONS = (
    "is the {name} a man or a woman?",
    "does this {name} look like a man or a woman?",
    "which word describes the {name} in the picture, man or woman?",
    "what gender does the drawing give to the {name}?",
)
CATEGORY_QUESTIONS = (
    "what kind of thing does the picture show?",
    "which category does this drawing belong to?",
    "what sort of subject is visible in the small image?",
    "what is the general topic of this picture?",
)
PRESENCE_QUESTIONS = (
    "is there {name} in the picture?",
    "does this small image show {name}?",
    "can you see {name} in the drawing?",
    "did the artist draw {name} here?",
)


def vqa_answers() -> list[str]:
    """The fixed answer vocabulary: skin tones, sexes, categories, yes and no."""
    return [*TONE_WORDS, "man", "woman", *GROUP_NAMES.values(), "yes", "no"]


def vqa_rows(metadata: list[Row]) -> list[Row]:
    """All questions about one split's OpenMoji rows (as stored), in a fixed shuffled order."""
    rows = usable(metadata)
    questions = [*_tone(rows), *_gender(rows), *_category(rows), *_presence(rows)]
    return sorted(questions, key=lambda question: digest(question["question_id"]))


def _question(row: Row, question_type: str, question: str, answer: str, about: str) -> Row:
    return {
        "image": row["image"],
        "image_id": row["image_id"],
        "question_id": f"{question_type}:{about}:{row['image_id']}",
        "question": question,
        "question_type": question_type,
        "answers": [answer],
        "scores": [1.0],
        "concept": row["concept"],
    }


def _tone(rows: list[Row]) -> list[Row]:
    """Two texts, each about all five tones of a base form; forms with a tone missing are left out."""
    by_base = defaultdict(list)
    for row in one_toned(rows):
        by_base[row["base"]].append(row)
    questions = []
    for base, variants in by_base.items():
        name = spoken_name(variants[0]["annotation"])
        if name and len(variants) == len(TONE_WORDS):
            for turn, template in enumerate(sorted(TONE_QUESTIONS, key=lambda text: digest(base + text))[:2]):
                text = template.format(name=name)
                questions += [_question(row, "tone", text, row["skin_tone"], str(turn)) for row in variants]
    return questions


def neutral_name(row: Row) -> str:
    """Name without the sex: `woman astronaut` -> `astronaut`, `man walking` -> `person walking`."""
    first, *rest = row["annotation"].split()
    names_a_role = row["subgroup"] in ("person-role", "person-fantasy") and first == row["gender"]
    if names_a_role and rest and rest[0] not in ("in", "with", "wearing", "feeding"):
        name = spoken_name(" ".join(rest))
    else:
        name = spoken_name(re.sub(rf"\b{row['gender']}\b", "person", row["annotation"]))
    if not name or not row["skin_tone"]:
        return name
    return f"{name} {'and' if ' with ' in name else 'with'} {row['skin_tone']} skin"


def _gender(rows: list[Row]) -> list[Row]:
    """The same text about the man and the woman of one concept and skin tone."""
    pairs: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["gender"] and row["group"] == "people-body" and neutral_name(row):
            pairs[neutral_name(row)].setdefault(row["gender"], row)
    questions = []
    for name, pair in pairs.items():
        if len(pair) == 2:
            text = choose(GENDER_QUESTIONS, f"gender {name}").format(name=name)
            questions += [_question(row, "gender", text, gender, "") for gender, row in pair.items()]
    return questions


def _category(rows: list[Row]) -> list[Row]:
    """Equally many concepts of each group, each asked in two phrasings that come in turn."""
    by_group = defaultdict(list)
    for row in first_of_each(rows, "concept"):
        if row["group"] in GROUP_NAMES:
            by_group[row["group"]].append(row)
    questions = []
    for group, members in by_group.items():
        for i, row in enumerate(members[: min(map(len, by_group.values()))]):
            for turn in (i, i + 1):
                text = CATEGORY_QUESTIONS[turn % len(CATEGORY_QUESTIONS)]
                about = str(turn % len(CATEGORY_QUESTIONS))
                questions.append(_question(row, "category", text, GROUP_NAMES[group], about))
    return questions


def _presence(rows: list[Row]) -> list[Row]:
    """Each text once about the thing itself and once about a picture from another group."""
    questions = []
    for row, other in with_partners(named(rows)):
        text = choose(PRESENCE_QUESTIONS, f"presence {row['base']}").format(name=with_article(row["name"]))
        questions.append(_question(row, "presence", text, "yes", row["base"]))
        questions.append(_question(other, "presence", text, "no", row["base"]))
    return questions
