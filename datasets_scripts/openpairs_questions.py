"""VQA-like questions about openpairs whose answers follow from metadata, and whose text alone gives nothing away.

Four types. `tone`, `gender` and `presence` ask the same text about several pictures, once for each answer; `category`
asks one set of phrasings equally often about each answer. So a reader of the text alone stays at the majority rate of
the type. Questions are built from the pictures of one split only.
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
    spoken_name,
    usable,
    with_article,
    with_partners,
)

TONE_QUESTIONS = (
    "what skin tone does the {name} have?",
    "which color of skin does the {name} in the picture show?",
    "how light or dark is the skin of this {name}?",
    "what is the complexion of the small {name} in the drawing?",
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
    """The same text about all five tones of a base form; forms with a tone missing are left out."""
    by_base = defaultdict(list)
    for row in one_toned(rows):
        by_base[row["base"]].append(row)
    questions = []
    for base, variants in by_base.items():
        name = spoken_name(variants[0]["annotation"])
        if name and len(variants) == len(TONE_WORDS):
            text = choose(TONE_QUESTIONS, f"tone {base}").format(name=name)
            questions += [_question(row, "tone", text, row["skin_tone"], base) for row in variants]
    return questions


def neutral_name(row: Row) -> str:
    """Spoken name without the word for the sex: `woman astronaut` -> `astronaut`, `man walking` -> `person walking`."""
    rest = [word for word in row["annotation"].split() if word != row["gender"]]
    name = " ".join(rest) if row["subgroup"] in ("person-role", "person-fantasy") else ""
    if not name or name.split()[0] in ("in", "with", "wearing", "feeding"):
        name = " ".join("person" if word == row["gender"] else word for word in row["annotation"].split())
    name = spoken_name(name.replace(f"{row['gender']}:", "person:"))
    tone = f"{row['skin_tone']} skin" if row["skin_tone"] else ""
    return f"{name} {'and' if ' with ' in name else 'with'} {tone}" if name and tone else name


def _gender(rows: list[Row]) -> list[Row]:
    """The same text about the man and the woman of one concept and skin tone."""
    pairs: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["gender"] and neutral_name(row):
            pairs[neutral_name(row)].setdefault(row["gender"], row)
    questions = []
    for name, pair in pairs.items():
        if len(pair) == 2:
            text = choose(GENDER_QUESTIONS, f"gender {name}").format(name=name)
            questions += [_question(row, "gender", text, gender, "") for gender, row in pair.items()]
    return questions


def _category(rows: list[Row]) -> list[Row]:
    """Equally many concepts of each group, the phrasings in turn."""
    by_group = defaultdict(list)
    for row in first_of_each(rows, "concept"):
        if row["group"] in GROUP_NAMES:
            by_group[row["group"]].append(row)
    smallest = min(map(len, by_group.values()))
    count = smallest - smallest % len(
        CATEGORY_QUESTIONS
    )  # so that each phrasing meets each answer equally often
    return [
        _question(row, "category", CATEGORY_QUESTIONS[i % len(CATEGORY_QUESTIONS)], GROUP_NAMES[group], "")
        for group, members in by_group.items()
        for i, row in enumerate(members[:count])
    ]


def _presence(rows: list[Row]) -> list[Row]:
    """Each text once about the thing itself and once about a picture from another group."""
    questions = []
    for row, other in with_partners(named(rows)):
        text = choose(PRESENCE_QUESTIONS, f"presence {row['base']}").format(name=with_article(row["name"]))
        questions.append(_question(row, "presence", text, "yes", row["base"]))
        questions.append(_question(other, "presence", text, "no", row["base"]))
    return questions
