"""The rules of the table's builder, on a WordNet of a few synsets written for this test."""

from pathlib import Path

import numpy as np
import pytest

from rmcl_hub.attacks.build_synonyms import build, protected_words
from rmcl_hub.attacks.wordnet_files import Pointer, WordNet
from rmcl_hub.attacks.wordnet_lexicon import Lexicon

# (offset, words, pointers, gloss) per part of speech; pointers are (symbol, offset, part of speech, ends).
NOUNS = [
    (1, ["vehicle"], [], "goes somewhere"),
    (2, ["car", "auto", "machine"], [("@", 1, "n", "0000")], "has four wheels"),
    (3, ["machine"], [("@", 1, "n", "0000")], "any device"),
    (4, ["van"], [("@", 1, "n", "0000")], "a sibling of the car"),
    (5, ["day", "sunup"], [("!", 6, "n", "0101")], "when there is light"),
    (6, ["night", "sunup"], [("!", 5, "n", "0101")], "sunup contradicts itself"),
    (7, ["dwelling", "home", "crib"], [(";u", 8, "n", "0300")], "where one lives"),
    (8, ["slang"], [], "not for everyone"),
    (9, ["color"], [("~", 10, "n", "0000")], "what has a hue"),
    (10, ["red", "crimson"], [("@", 9, "n", "0000")], "the color of blood"),
    (11, ["Rome", "Roma"], [], "a city"),
]
VERBS = [(1, ["draw", "sketch"], [], "make a picture")]
ADJECTIVES = [(1, ["chromatic"], [], "with a hue"), (2, ["achromatic"], [], "without")]
COUNTS = {("car", 1, 1): 50, ("machine", 1, 1): 90, ("home", 1, 1): 5, ("draw", 2, 1): 5, ("sketch", 2, 1): 5}


def write_wordnet(folder: Path) -> Path:
    for name, pos, entries in [
        ("noun", "n", NOUNS),
        ("verb", "v", VERBS),
        ("adj", "a", ADJECTIVES),
        ("adv", "r", []),
    ]:
        data, senses = ["  1 licence"], {}
        for offset, words, pointers, gloss in entries:
            fields = [f"{offset:08d}", "06", pos, f"{len(words):02x}", *(f"{word} 0" for word in words)]
            fields += [
                f"{len(pointers):03d}",
                *(f"{s} {target:08d} {p} {ends}" for s, target, p, ends in pointers),
            ]
            data.append(f"{' '.join(fields)} | {gloss}  ")
            for word in words:
                senses.setdefault(word.lower(), []).append(offset)
        if "machine" in senses:
            senses["machine"].reverse()  # most frequent first
        index = []
        for word, offsets in senses.items():
            listed = " ".join(f"{offset:08d}" for offset in offsets)
            index.append(f"{word} {pos} {len(offsets)} 1 @ {len(offsets)} 0 {listed}  ")
        (folder / f"data.{name}").write_text("\n".join(data) + "\n")
        (folder / f"index.{name}").write_text("\n".join(["  1 licence", *index]) + "\n")
        (folder / f"{name}.exc").write_text({"v": "drawn draw\ndrew draw\n"}.get(pos, ""))
    lines = [f"{lemma}%{pos}:06:00:: {sense} {count}" for (lemma, pos, sense), count in COUNTS.items()]
    (folder / "cntlist.rev").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    return WordNet(write_wordnet(tmp_path))


VOCABULARY = """
car auto cars autos machine van vehicle day night sunup dwelling home crib red crimson color rome roma draw
drew drawn sketch sketched
""".split()


@pytest.fixture
def lexicon(wordnet: WordNet, monkeypatch: pytest.MonkeyPatch) -> Lexicon:
    roots = (("color", "n", 0), ("chromatic", "a", 0))
    monkeypatch.setattr("rmcl_hub.attacks.build_synonyms.PROTECTED_SENSES", roots)
    return Lexicon(wordnet, VOCABULARY)


def test_files_are_read(wordnet: WordNet) -> None:
    car = wordnet.synsets["n", 2]
    assert car.words == ("car", "auto", "machine")
    assert car.pointers == (Pointer("@", ("n", 1), 0, 0),)
    assert wordnet.senses["machine", "n"] == [("n", 3), ("n", 2)]
    assert (wordnet.count("machine", "n", 0), wordnet.count("machine", "n", 1)) == (90, 0)
    assert wordnet.below([("n", 9)], "~") == {("n", 9), ("n", 10)}
    assert wordnet.irregular["v"]["drew"] == ["draw"]


def test_meaning_is_shared_by_both_sides(lexicon: Lexicon) -> None:
    assert set(lexicon.analyses("cars")) == {("car", "n", "plural")}
    synonyms = lexicon.synonyms("car")
    assert synonyms["auto", "n"] == 1.0
    # All of what "car" means, but hardly anything of what "machine" means.
    assert synonyms["machine", "n"] < 0.01
    assert set(lexicon.synonyms("cars")) == {("autos", "n")}
    assert set(lexicon.synonyms("drew")) == {("sketched", "v")}  # neither "sketch" nor "drawn"
    assert lexicon.synonyms("sketched") == {}  # "drew" is no participle, "drawn" is no past tense


def test_table_obeys_the_constraints(lexicon: Lexicon) -> None:
    protected = protected_words(lexicon)
    assert {"red", "crimson"} <= protected
    assert "color" not in protected
    same_direction = np.ones((len(VOCABULARY), 1))
    table = build(lexicon, protected, VOCABULARY, same_direction)
    assert table == {
        "auto": [("car", 1.0)],
        "autos": [("cars", 1.0)],
        "car": [("auto", 1.0)],
        "cars": [("autos", 1.0)],
        "draw": [("sketch", 1.0)],
        "drawn": [("sketched", 1.0)],
        "drew": [("sketched", 1.0)],
        "crib": [("dwelling", 1.0), ("home", 1.0)],
        "dwelling": [("home", 1.0)],  # "crib" is marked as slang
        "home": [("dwelling", 1.0)],
        "sketch": [("draw", 1.0)],
    }
    assert lexicon.conflict("day", "night")
    assert lexicon.conflict("car", "van")
    assert not lexicon.conflict("car", "auto")


def test_agreement_in_use_is_required(lexicon: Lexicon) -> None:
    angles = np.linspace(0, np.pi / 2, len(VOCABULARY))
    angles[VOCABULARY.index("auto")] = angles[VOCABULARY.index("car")] + np.arccos(0.6)
    angles[VOCABULARY.index("home")] = angles[VOCABULARY.index("dwelling")] + np.arccos(0.4)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    table = build(lexicon, protected_words(lexicon), VOCABULARY, vectors)
    assert table["car"] == [("auto", 0.6)]
    assert "home" not in table
