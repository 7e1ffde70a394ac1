"""What the questions and statements about openpairs share: usable pictures, spoken names, fixed pairings."""

import hashlib
import re
from collections import Counter
from typing import Any

from .caption_cleaning import TONE_WORDS, content_words

Row = dict[str, Any]

GROUP_NAMES = {
    "smileys-emotion": "emotion",
    "people-body": "people",
    "animals-nature": "nature",
    "food-drink": "food",
    "travel-places": "travel",
    "objects": "object",
    "symbols": "symbol",
    "flags": "flag",
}
"""OpenMoji groups that can be told apart, with the answer word of each. Left out: `activities` (few, and most
are objects) and OpenMoji's own extras (their pictures could belong to any group)."""

MAX_NAME_WORDS = 5


def digest(text: str) -> str:
    """SHA-1 of a text: the only source of "random" order and choice here, the same on every machine."""
    return hashlib.sha1(text.encode()).hexdigest()


def choose(options: tuple[str, ...], key: str) -> str:
    """One of `options`, fixed by `key`."""
    return options[int(digest(key), 16) % len(options)]


def usable(rows: list[Row]) -> list[Row]:
    """Pictures without a pixel twin (whose label would contradict the twin's), in a fixed shuffled order."""
    return sorted((row for row in rows if not row["has_twin"]), key=lambda row: digest(row["image_id"]))


def first_of_each(rows: list[Row], column: str) -> list[Row]:
    """The first row of each value of `column`."""
    found: dict[Any, Row] = {}
    for row in rows:
        found.setdefault(row[column], row)
    return list(found.values())


def one_toned(rows: list[Row]) -> list[Row]:
    """Pictures whose people all have the one skin tone named in the annotation."""
    return [row for row in rows if row["skin_tone"] in TONE_WORDS]


def spoken_name(annotation: str) -> str:
    """An annotation as spoken (`flag: Peru` -> `flag of Peru`), or "" if it is no short plain name."""
    name, _, details = (part.strip() for part in annotation.partition(":"))
    if name == "flag":
        spoken = f"flag of {details}"
    elif details in ("bald", "facing right"):
        spoken = f"bald {name}" if details == "bald" else f"{name} facing right"
    else:
        spoken = f"{name} with {details}" if details else name
    is_plain = re.fullmatch(r"[^\W\d_]+(?:[ '\u2019-]+[^\W\d_]+)*", spoken) and content_words(spoken)
    # Negations and the hours on a clock make no sense after "is there a".
    is_thing = not re.match(r"no |.*(o\u2019clock|-thirty)$", spoken)
    return spoken if is_plain and is_thing and len(spoken.split()) <= MAX_NAME_WORDS else ""


def with_article(name: str) -> str:
    """`a banana`, `an apple`, `the flag of Peru`; plurals and crowds go without."""
    if name.startswith("flag of "):
        return f"the {name}"
    head = re.split(r" (?:with|in|of|on|and|wrestling|holding)\b", name)[0].split()[-1]
    is_plural = head.endswith("s") and not head.endswith(("ss", "us"))
    if is_plural or name.split()[0] in ("people", "men", "women"):
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def named(rows: list[Row]) -> list[Row]:
    """One picture per base form with a spoken `name` of its own; OpenMoji's extras fit no group.

    The largest group is cut to the size of all others together, so that with_partners can serve everyone.
    """
    forms = [row | {"name": spoken_name(row["annotation"])} for row in first_of_each(rows, "base")]
    forms = first_of_each(
        [form for form in forms if form["name"] and form["group"] != "extras-openmoji"], "name"
    )
    (largest, count), *_ = Counter(form["group"] for form in forms).most_common(1)
    surplus = max(0, 2 * count - len(forms))
    dropped = {form["image_id"] for form in [f for f in forms if f["group"] == largest][:surplus]}
    return [form for form in forms if form["image_id"] not in dropped]


def _stems(text: str) -> frozenset[str]:
    return frozenset(word.removesuffix("s") for word in content_words(text))


def with_partners(forms: list[Row]) -> list[tuple[Row, Row]]:
    """Pair each form with one of another group none of whose captions has a word of the form's name.

    A missing keyword is no evidence of absence, hence the other group. The partners are a permutation of the
    forms, so every picture is seen as often as a partner as it is seen as itself, and does not tell which of
    the two it is.
    """
    forms = sorted(forms, key=lambda form: (form["group"], digest(form["image_id"])))
    caption_words = [_stems(" ".join(form["captions"])) for form in forms]
    names = [_stems(form["name"]) for form in forms]
    n = len(forms)
    shift = max(Counter(form["group"] for form in forms).values())
    partner = [(i + shift) % n for i in range(n)]  # sorted by group, nobody is shifted into their own group

    def clashes(i: int, j: int) -> int:
        return 3 * (forms[i]["group"] == forms[j]["group"]) + bool(names[i] & caption_words[j])

    for step in range(20 * n):  # a fixed shuffle by swaps that never add a clash, and mend the shared words
        i, j = step % n, int(digest(str(step)), 16) % n
        before = clashes(i, partner[i]) + clashes(j, partner[j])
        if clashes(i, partner[j]) + clashes(j, partner[i]) <= before:
            partner[i], partner[j] = partner[j], partner[i]
    return [(forms[i], forms[partner[i]]) for i in range(n) if not clashes(i, partner[i])]
