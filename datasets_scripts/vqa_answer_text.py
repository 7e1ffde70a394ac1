"""Answers as the VQA evaluation compares them: normalisation, consensus accuracy, soft scores, and the
vocabulary.

The rules are those of visualqa.org/evaluation (arXiv:1505.00468, arXiv:1612.00837). Where the evaluation's
own code does otherwise, numbers are comparable only if the code is followed; each such line says so.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

MIN_OCCURRENCES = 9
"""Questions whose most frequent answer a class must be; this gives the 3,129 classes of VQAv2."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # not the apostrophe (girl's) nor the colon (2:50)
_DIGIT_COMMA = re.compile(r"\d,\d")
# Meant to spare the decimal point alone; but the look-behind for a digit is written as a look-ahead, which
# always holds, so that what follows decides: "2.5" and ".5" keep it, "2." and "a.b" lose it.
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the code passes re.UNICODE, which is 32, where the number of replacements belongs
_ARTICLES = ("a", "an", "the")
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()
_NUMBERS: dict[str, str] = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
you've
""".split()
# Each form without one of its apostrophes. Not im, ive, lets and shes: the official table has the first two
# in capitals, which lower-cased words never match, and maps let's and she's to themselves. One entry is
# reversed there.
_CONTRACTIONS: dict[str, str] = {
    form[:place] + form[place + 1 :]: form
    for form in _CONTRACTED
    for place, letter in enumerate(form)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


@lru_cache(maxsize=1 << 18)  # ten answers to each of 650,000 questions, most of them given before
def normalise_answer(answer: str) -> str:
    """An answer in lower case without punctuation and articles, with digits for numbers up to ten and
    apostrophes in contractions.

    Examples:
        >>> normalise_answer("The dog's two toys, dont you think?")
        "dog's 2 toys don't you think"
    """
    text = _one_line(answer)
    # A mark that touches a space anywhere in the answer vanishes, else it becomes a space. A comma between
    # digits ("1,000-2,000") makes all marks of the answer vanish, not that comma alone.
    joins = _DIGIT_COMMA.search(text) is not None
    marks = {mark: "" if joins or f"{mark} " in text or f" {mark}" in text else " " for mark in _PUNCTUATION}
    text = _PERIOD.sub("", text.translate(str.maketrans(marks)), count=_MAX_PERIODS)
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def consensus_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """How right a prediction is: `min(1, agreeing annotators / 3)`, averaged over the choices of all
    annotators but one.

    Args:
        prediction: Any text.
        answers: Those of all annotators, ten in VQAv2, as published.

    Returns:
        A score in [0, 1]; of ten annotators 0, 1, 2, 3 and more who agree give 0, 0.3, 0.6, 0.9 and 1.

    Raises:
        ValueError: If there are no answers, as for the test splits.
    """
    compared = _compared(answers)
    # Where all annotators wrote the same, the code compares texts as they are.
    text = _one_line(prediction) if _unanimous(answers) else normalise_answer(prediction)
    return _leave_one_out(compared.count(text), len(compared))


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """The consensus accuracy of each answer that was given, by its text as it is compared, in order of
    appearance.

    Texts are normalised, but for those that all annotators wrote alike, see `consensus_accuracy`.

    Raises:
        ValueError: If there are no answers.
    """
    compared = _compared(answers)
    return {text: _leave_one_out(count, len(compared)) for text, count in Counter(compared).items()}


def build_answer_vocabulary(
    most_frequent: Iterable[str], min_occurrences: int = MIN_OCCURRENCES
) -> list[str]:
    """The classes of VQA: the normalised answers that are the most frequent one of enough questions.

    Args:
        most_frequent: `multiple_choice_answer` of every question.
        min_occurrences: Questions that an answer needs.

    Returns:
        Distinct texts, frequent ones first, equally frequent ones by their text. The empty text is among them
        if it is frequent: an article alone is normalised to it, and the usual rule counts it.
    """
    counts = Counter(map(normalise_answer, most_frequent))
    frequent = [text for text, count in counts.items() if count >= min_occurrences]
    return sorted(frequent, key=lambda text: (-counts[text], text))


def _compared(answers: Sequence[str]) -> list[str]:
    if not answers:
        raise ValueError(
            "A question without answers cannot be scored; those of VQA's test splits are not published."
        )
    return [_one_line(answer) if _unanimous(answers) else normalise_answer(answer) for answer in answers]


def _unanimous(answers: Sequence[str]) -> bool:
    return len(set(map(_one_line, answers))) == 1


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _leave_one_out(agreeing: int, annotators: int) -> float:
    """Mean of `min(1, n / 3)`: each of those who agree is left out once, then each of the others."""
    without_one, with_all = min(3, agreeing - 1), min(3, agreeing)
    return (agreeing * without_one + (annotators - agreeing) * with_all) / (3 * annotators)
