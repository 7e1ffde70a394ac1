"""Captions and concepts out of raw metadata."""

import pytest

from rmcl_hub.datasets_scripts.caption_cleaning import (
    clean_title,
    concept_key,
    distinct_captions,
    drop_shared_captions,
    gender_word,
    keyword_caption,
    openclipart_captions,
    openmoji_captions,
    without_tone,
)


@pytest.mark.parametrize(
    ("annotation", "key"),
    [
        ("woman astronaut", "astronaut"),
        ("astronaut", "astronaut"),
        ("man walking: facing right", "walking"),
        ("person walking", "walking"),
        ("woman: red hair", "person"),
        ("old man", "person"),
        ("boy", "person"),
        ("family: man, woman, boy", "family"),
        ("nine o\u2019clock", "clock"),
        ("nine-thirty", "clock"),
        ("flag: Isle of Man", "flag isle of"),
        ("flag: Peru", "flag peru"),
        ("woman\u2019s boot", "woman\u2019s boot"),
    ],
)
def test_siblings_share_a_concept(annotation, key):
    assert concept_key(annotation) == key


def test_skin_tones_are_taken_out_of_an_annotation():
    assert without_tone("woman: dark skin tone, curly hair") == "woman: curly hair"
    assert without_tone("men wrestling: medium-light skin tone, light skin tone") == "men wrestling"
    assert without_tone("flag: Peru") == "flag: Peru"


def test_gender_word_needs_exactly_one_adult():
    assert gender_word("woman astronaut") == "woman"
    assert gender_word("polar explorer man") == "man"
    assert gender_word("kiss: man, man") == ""
    assert gender_word("family: man, boy") == ""
    assert gender_word("woman\u2019s boot") == ""
    assert gender_word("men wrestling") == ""


def test_captions_with_the_same_words_are_one_caption():
    assert distinct_captions(["red dog", "Dog red", "dog", "7", "x", "", "a  red cat"]) == [
        "red dog",
        "dog",
        "a red cat",
    ]


def test_keywords_become_one_caption_without_codes():
    assert (
        keyword_caption(["Corn", "maize, maze", "corn field", "tone5-4", "KH", "", "hash"])
        == "corn maize maze field"
    )


def test_keyword_caption_is_capped():
    assert len(keyword_caption([f"word{chr(97 + i)}" for i in range(26)]).split()) == 12


def test_variants_bear_their_tone_in_every_caption():
    captions = openmoji_captions(
        "cook: dark skin tone", ["chef"], ["COOK", "male-cook", "flag-kh", "x2"], ["dark"]
    )
    assert captions == [
        "cook: dark skin tone",
        "chef: dark skin tone",
        "male cook: dark skin tone",
    ]


def test_shared_captions_are_dropped_but_never_the_name():
    captions = [["flag", "peru red"], ["flag", "red peru"], ["corn", "flag"], ["cup", "tea"]]
    assert drop_shared_captions(captions, 2) == [
        ["flag", "peru red"],
        ["flag", "red peru"],
        ["corn"],
        ["cup", "tea"],
    ]
    assert drop_shared_captions(captions, 3) == captions


@pytest.mark.parametrize(
    ("title", "clean"),
    [
        ("Clipart by Nicu Buculei - pear", "pear"),
        ("filmPhoto_2 (B and W)", "film Photo black and white"),
        ("BlueMan#211", "Blue Man"),
        ("glace bw", "glace black and white"),
        ("caf&eacute;", "caf\u00e9"),
    ],
)
def test_titles_are_cleaned(title, clean):
    assert clean_title(title) == clean


def test_descriptions_count_only_as_short_sentences():
    assert openclipart_captions("Venus", ["planet", "space"], "The cloud-covered planet Venus")[2:] == [
        "The cloud-covered planet Venus"
    ]
    for description in (
        "see http://example.org for more",
        "HASH(0x856da84) of it all",
        "too short",
        "long " * 16,
    ):
        assert openclipart_captions("Venus", ["planet"], description) == ["Venus", "planet"]
