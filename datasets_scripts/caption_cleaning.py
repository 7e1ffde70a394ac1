"""Captions, concepts and splits out of the raw metadata of emojis and clip art (used to build openpairs)."""

import hashlib
import html
import re
from collections import Counter

TONE_WORDS = ("light", "medium-light", "medium", "medium-dark", "dark")
"""The five Fitzpatrick modifiers U+1F3FB to U+1F3FF, in code point order (OpenMoji numbers them 1 to 5)."""

TEST_SHARE, VALIDATION_SHARE = 0.15, 0.10
MAX_KEYWORDS = 12
MAX_DESCRIPTION_WORDS = 15
_PERSON_WORDS = frozenset("man woman men women boy girl person people child".split())
_STOP_WORDS = frozenset("a an and at by for from in of on or the to with".split())
_BATCH_TITLE = re.compile(r"^clipart by [^-]*-", re.IGNORECASE)
_EMPTY_KEYWORDS = frozenset(("hash", "unsorted", "clipart", "clip art", "image", "svg", "icon", "icons"))


def words(text: str) -> list[str]:
    """Lower-case alphabetic words of `text`; a possessive stays one word (`man's`)."""
    return re.findall(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*", text.lower())


def content_words(text: str) -> frozenset[str]:
    """The words of `text` that are not articles, prepositions or conjunctions."""
    return frozenset(words(text)) - _STOP_WORDS


def concept_key(annotation: str) -> str:
    """What a base annotation depicts, without sex, age, hair, viewing direction or the hour on a clock.

    `man walking: facing right` -> `walking`, `woman: red hair` -> `person`, `one-thirty` -> `clock`. Emojis
    with the same key are nearly the same drawing; a split that keeps them together tests on no training
    picture's sibling.
    """
    name, _, _ = annotation.lower().partition(":")
    if "o\u2019clock" in name or name.endswith("-thirty"):
        return "clock"
    # After the colon come hair, family members or directions, but for flags the country.
    text = annotation.lower() if name == "flag" else name
    rest = [word for word in words(text) if word not in _PERSON_WORDS | {"and", "older", "old", "adult"}]
    return " ".join(rest) or "person"


def split_of(concept: str) -> str:
    """Split of a concept, by the SHA-1 of its hexcode: 15 % test, 10 % validation, rest train."""
    position = int(hashlib.sha1(concept.encode()).hexdigest()[:8], 16) / 2**32
    if position < TEST_SHARE:
        return "test"
    return "validation" if position < TEST_SHARE + VALIDATION_SHARE else "train"


def without_tone(annotation: str) -> str:
    """Drop the skin tones: `woman: dark skin tone, curly hair` -> `woman: curly hair`."""
    name, _, details = annotation.partition(":")
    parts = [part.strip() for part in details.split(",")]
    kept = [part for part in parts if part and not part.endswith("skin tone")]
    return f"{name}: {', '.join(kept)}" if kept else name


def gender_word(annotation: str) -> str:
    """`man` or `woman` when the annotation names exactly one adult by that word, else the empty string."""
    found = [word for word in words(annotation) if word in _PERSON_WORDS]
    return found[0] if found in (["man"], ["woman"]) else ""


def distinct_captions(candidates: list[str]) -> list[str]:
    """The captions that hold a real word, without those that have the same words as an earlier one."""
    kept: dict[tuple[str, ...], str] = {}
    for caption in candidates:
        bag = tuple(sorted(words(caption)))
        if any(len(word) > 1 for word in bag):
            kept.setdefault(bag, " ".join(caption.split()))
    return list(kept.values())


def keyword_caption(keywords: list[str]) -> str:
    """Join keywords into one caption without repeated words, codes ("SR", "tone5-4") or empty labels."""
    seen: dict[str, None] = {}
    for keyword in map(str.strip, keywords):
        is_code = re.search(r"[\d_:@/]", keyword) or re.fullmatch(r"[A-Z]{2}", keyword)
        if not is_code and keyword.lower() not in _EMPTY_KEYWORDS:
            seen.update(dict.fromkeys(words(keyword)))
    return " ".join(list(seen)[:MAX_KEYWORDS])


def openmoji_captions(annotation: str, keywords: list[str], names: list[str], tones: list[str]) -> list[str]:
    """Captions of one emoji: its annotation, its keywords in a row, and its other English names.

    Args:
        annotation: OpenMoji's annotation, skin tones included.
        keywords: Tags of the emoji; for a skin tone variant those of its base form, which carries the tags.
        names: Unicode name and short names of the base form.
        tones: Skin tone words of this variant; appended where a caption would otherwise fit every sibling.
    """
    suffix = f": {', '.join(f'{tone} skin tone' for tone in tones)}" if tones else ""
    keywords_in_a_row = keyword_caption(keywords)
    spoken = [re.sub(r"[-_]", " ", name).strip().lower() for name in names]
    spoken = [name for name in spoken if not re.search(r"\d", name) and not re.match(r"flag \w\w$", name)]
    others = [other + suffix for other in (keywords_in_a_row, *spoken) if other]
    return distinct_captions([annotation, *others])


def drop_shared_captions(captions_of_images: list[list[str]], max_images: int) -> list[list[str]]:
    """Drop the captions that more than `max_images` images bear: they name a class, not a picture.

    The first caption of an image stays: it is its name.
    """
    bags = [[tuple(sorted(words(caption))) for caption in captions] for captions in captions_of_images]
    uses = Counter(bag for image_bags in bags for bag in set(image_bags))
    return [
        captions[:1]
        + [c for c, bag in zip(captions[1:], image_bags[1:], strict=True) if uses[bag] <= max_images]
        for captions, image_bags in zip(captions_of_images, bags, strict=True)
    ]


def clean_title(title: str) -> str:
    """A title in plain words, without batch prefix: `filmPhoto_2 (bw)` -> `film Photo black and white`."""
    title = _BATCH_TITLE.sub("", html.unescape(title))
    title = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", title)
    title = re.sub(r"\(?\b(B and W|bw)\b\)?", "black and white", title)
    return " ".join(re.sub(r"[_#\d.]+|\(\s*\)", " ", title).split()).strip(" -")


def openclipart_captions(title: str, keywords: list[str], description: str) -> list[str]:
    """Captions of one drawing: its clean title, its keywords in a row, its description if that is short."""
    candidates = [clean_title(title), keyword_caption([html.unescape(keyword) for keyword in keywords])]
    is_sentence = 2 < len(words(description)) <= MAX_DESCRIPTION_WORDS
    if is_sentence and not re.search(r"[@/<>&]|www|HASH", description):
        candidates.append(description.replace("B and W", "black and white"))
    return distinct_captions(candidates)
