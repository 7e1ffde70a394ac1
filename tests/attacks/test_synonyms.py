import itertools
from pathlib import Path

import numpy as np
import pytest

from rmcl_hub.attacks.synonyms import STOP_WORDS, SynonymTable, match_case


@pytest.fixture(scope="module")
def packaged() -> SynonymTable:
    return SynonymTable.load()


def test_packaged_table_exchanges_words_of_one_meaning(packaged: SynonymTable) -> None:
    for word, expected in [
        ("car", {"auto", "automobile"}),  # not "machine", which mostly means something else
        ("Bicycle", {"bike"}),
        ("bicycles", {"bikes"}),  # plural for plural
        ("color", {"colour"}),
        ("kind", {"sort"}),
        ("picture", {"image"}),
        ("person", {"individual"}),
    ]:
        assert {other for other, _ in packaged.candidates(word)} == expected
    assert packaged.candidates("picture") == [("image", pytest.approx(0.85, abs=0.01))]
    assert packaged.candidates("no such word") == []


def test_packaged_table_leaves_what_a_caption_claims(packaged: SynonymTable) -> None:
    claims = """
    red crimson blue pale light medium dark two seven first dozen man woman men girl boy mother father king
    queen male female left right north up down facing not no never without monday january noon dog cat
    """.split()
    for word in claims:
        assert packaged.candidates(word) == [], word
    used = {other for word in packaged for other, _ in packaged.candidates(word)}
    assert not used & {*claims, *STOP_WORDS}


def test_packaged_table_is_well_formed(packaged: SynonymTable) -> None:
    assert len(packaged) > 4000
    for word in packaged:
        candidates = packaged.candidates(word)
        assert 1 <= len(candidates) <= 10
        assert all(other != word and other.isalpha() and other.islower() for other, _ in candidates)
        cosines = [cosine for _, cosine in candidates]
        assert cosines == sorted(cosines, reverse=True)
        assert 0.5 <= min(cosines) <= max(cosines) <= 1


def test_digest_follows_the_content(packaged: SynonymTable) -> None:
    assert packaged.digest == SynonymTable.load().digest
    one = SynonymTable({"car": [("auto", 0.8), ("van", 0.9)]})
    same = SynonymTable({"car": [("van", 0.9), ("auto", 0.8)]})
    assert one.candidates("car") == [("van", 0.9), ("auto", 0.8)]
    assert one.digest == same.digest
    assert one.digest != SynonymTable({"car": [("auto", 0.8), ("van", 0.91)]}).digest


@pytest.mark.parametrize(
    ("word", "expected"),
    [("car", "auto"), ("Car", "Auto"), ("CAR", "AUTO"), ("A", "Auto"), ("iPhone", "auto")],
)
def test_casing_is_kept(word: str, expected: str) -> None:
    assert match_case("auto", word) == expected


def write(path: Path, words: list[str], vectors: np.ndarray, header: bool = False) -> Path:
    lines = [
        f"{word} {' '.join(f'{value:.6f}' for value in row)}"
        for word, row in zip(words, vectors, strict=True)
    ]
    if header:
        lines.insert(0, f"{len(words)} {vectors.shape[1]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("header", [False, True])
def test_neighbours_in_a_vector_file_are_those_of_all_pairs(tmp_path: Path, header: bool) -> None:
    words = ["".join(letters) for letters in itertools.islice(itertools.product("bcdfg", repeat=4), 600)]
    vectors = np.random.default_rng(0).normal(size=(600, 5))
    table = SynonymTable.from_vectors(write(tmp_path / "vectors.txt", words, vectors, header), 4, 0.6)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -1)
    for row in (0, 1, 255, 256, 511, 512, 599):  # both sides of where a slice ends
        best = [other for other in np.argsort(-cosines[row])[:4] if cosines[row, other] >= 0.6]
        expected = [(words[other], pytest.approx(cosines[row, other], abs=1e-4)) for other in best]
        assert table.candidates(words[row]) == expected


def test_vector_file_gives_no_words_that_a_caption_hangs_on(tmp_path: Path) -> None:
    words = ["Car", "car", "auto", "red", "the", "two", "x1", "woman", "van"]
    vectors = np.ones((9, 2)) + np.arange(9)[:, None] * [0, 0.01]
    table = SynonymTable.from_vectors(write(tmp_path / "vectors.txt", words, vectors))
    assert len(table) == 3
    assert [other for other, _ in table.candidates("car")] == ["auto", "van"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("car 1 2 3\nauto 1 2\n", r"vectors.txt, line 2: expected 3 values after the word 'auto', got 2"),
        ("2 3\ncar 1 2 3\nauto 1 2 3 4\n", r"line 3: expected 3 values after the word 'auto', got 4"),
        (
            "car 1 2\nauto 1 two\n",
            r"line 2: could not convert string to float.*expected a word followed by numbers",
        ),
        ("car 1 2\n\nauto 1 2\n", r"line 2: not enough values to unpack"),
        ("car\nauto\n", r"line 1: expected some values after the word 'car', got 0"),
        ("car 1 2\nauto 0 0\n", r"line 2: the vector of 'auto' is zero or not finite"),
        ("car 1 2\nauto 1 nan\n", r"line 2: the vector of 'auto' is zero or not finite"),
        ("the 1 2\ncar 1 2\n", r"expected at least two alphabetic words that are not stop words, got 1"),
        ("", r"expected at least two alphabetic words that are not stop words, got 0"),
    ],
)
def test_bad_vector_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        SynonymTable.from_vectors(path)


def test_vector_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_bytes("car 1 2\ncafé 1 2\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 2: 'utf-8' codec can't decode.*in UTF-8"):
        SynonymTable.from_vectors(path)
