"""Questions and statements: true by the metadata, and silent about the answer for readers of the text."""

from collections import Counter, defaultdict

import pytest

from rmcl_hub.datasets_scripts.caption_cleaning import TONE_WORDS
from rmcl_hub.datasets_scripts.describe_openpairs import predict_from_text, task_texts
from rmcl_hub.datasets_scripts.openpairs import load_openpairs, read_metadata, vqa_answers
from rmcl_hub.datasets_scripts.openpairs_phrases import GROUP_NAMES, spoken_name, with_article, with_partners
from rmcl_hub.datasets_scripts.openpairs_questions import neutral_name
from rmcl_hub.datasets_scripts.openpairs_statements import KINDS

SPLITS = ("train", "validation", "test")
IMAGES = ["image", "left_image", "right_image"]


def rows_of(config, split):
    data = load_openpairs(config, split)
    return data.remove_columns([name for name in IMAGES if name in data.column_names]).to_list()


@pytest.fixture(scope="module")
def questions():
    return {split: rows_of("vqa", split) for split in SPLITS}


@pytest.fixture(scope="module")
def statements():
    return {split: rows_of("nlvr2", split) for split in SPLITS}


@pytest.fixture(scope="module")
def metadata():
    return {split: {row["image_id"]: row for row in read_metadata("openmoji", split)} for split in SPLITS}


def test_there_are_enough_test_questions(questions):
    assert len(questions["test"]) >= 1200


@pytest.mark.parametrize("split", SPLITS)
def test_every_text_is_asked_equally_often_for_each_answer(questions, split):
    counts = defaultdict(Counter)
    for row in questions[split]:
        counts[row["question_type"], row["question"]][row["answers"][0]] += 1
    answers = {"tone": set(TONE_WORDS), "gender": {"man", "woman"}, "presence": {"yes", "no"}}
    answers["category"] = set(GROUP_NAMES.values())
    for (question_type, _), count in counts.items():
        assert set(count) == answers[question_type]
        assert len(set(count.values())) == 1
        assert question_type == "category" or set(count.values()) == {1}


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_true_by_the_metadata(questions, metadata, split):
    for row in questions[split]:
        drawing, (answer,) = metadata[split][row["image_id"]], row["answers"]
        if row["question_type"] == "tone":
            assert drawing["skin_tone"] == answer
            assert spoken_name(drawing["annotation"]) in row["question"]
            assert "skin tone" not in drawing["annotation"]
        elif row["question_type"] == "gender":
            assert answer in drawing["annotation"].split(":")[0].split()
            assert not {"man", "woman"} & set(neutral_name(drawing).split())
            assert neutral_name(drawing) in row["question"]
        elif row["question_type"] == "category":
            assert GROUP_NAMES[drawing["group"]] == answer


@pytest.mark.parametrize("split", SPLITS)
def test_presence_asks_about_the_thing_and_about_another_group(questions, metadata, split):
    asked = defaultdict(dict)
    for row in questions[split]:
        if row["question_type"] == "presence":
            asked[row["question"]][row["answers"][0]] = metadata[split][row["image_id"]]
    assert asked
    for question, shown in asked.items():
        name = spoken_name(shown["yes"]["annotation"])
        assert with_article(name) in question
        assert shown["yes"]["group"] != shown["no"]["group"]
        words_of_other = {word for caption in shown["no"]["captions"] for word in caption.lower().split()}
        assert (
            not (set(name.lower().split()) - {"in", "of", "on", "with", "and", "a", "the", "at"})
            & words_of_other
        )


@pytest.mark.parametrize("split", SPLITS)
def test_a_picture_is_as_often_the_answer_yes_as_no(questions, split):
    counts = defaultdict(Counter)
    for row in questions[split]:
        if row["question_type"] == "presence":
            counts[row["image_id"]][row["answers"][0]] += 1
    unequal = [image for image, count in counts.items() if count["yes"] != count["no"]]
    assert len(unequal) <= 0.02 * len(
        counts
    )  # a pair that shares a word is dropped, which leaves two pictures odd


def test_question_phrasings_vary(questions):
    for question_type in ("tone", "gender", "category", "presence"):
        openings = {
            " ".join(r["question"].split()[:2])
            for r in questions["train"]
            if r["question_type"] == question_type
        }
        assert len(openings) >= 3


def test_ids_are_unique_and_answers_are_in_the_vocabulary(questions, statements):
    for split in SPLITS:
        ids = [row["question_id"] for row in questions[split]]
        assert len(set(ids)) == len(ids)
        identifiers = [row["identifier"] for row in statements[split]]
        assert len(set(identifiers)) == len(identifiers)
        assert {answer for row in questions[split] for answer in row["answers"]} == set(vqa_answers())
        assert all(row["scores"] == [1.0] for row in questions[split])
    assert len(set(vqa_answers())) == len(vqa_answers())


@pytest.mark.parametrize("split", SPLITS)
def test_every_statement_is_as_often_true_as_false(statements, split):
    counts = defaultdict(Counter)
    for row in statements[split]:
        counts[row["statement"]][row["label"]] += 1
    assert all(count[True] == count[False] > 0 for count in counts.values())


@pytest.mark.parametrize("split", SPLITS)
def test_statements_are_true_by_the_metadata(statements, metadata, split):
    group_of_kind = {kind: group for group, kind in KINDS.items()}
    for row in statements[split]:
        left, right = (metadata[split][image] for image in row["identifier"].split(":")[-1].split("|"))
        assert row["concept"] == f"{left['concept']}|{right['concept']}"
        text = row["statement"]
        if row["statement_type"] == "tone":
            (tone,) = set(text.replace(",", " ").split()) & set(TONE_WORDS)
            count = [left["skin_tone"], right["skin_tone"]].count(tone)
            expected = count == (
                1 if any(word in text for word in ("exactly one", "only one", "single")) else 2
            )
        elif row["statement_type"] == "category":
            (group,) = (group for kind, group in group_of_kind.items() if text.endswith(kind))
            count = [left["group"], right["group"]].count(group)
            quantifiers = {"both": [2], "exactly one": [1], "neither": [0], "at least one": [1, 2]}
            (counts,) = (counts for words, counts in quantifiers.items() if text.startswith(words))
            expected = count in counts
        else:
            names = [with_article(spoken_name(drawing["annotation"])) for drawing in (left, right)]
            expected = text.find(names[0]) < text.find(names[1])
            assert all(name in text for name in names)
        assert row["label"] == expected


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("statement_type", "column"), [("tone", "skin_tone"), ("category", "group")])
def test_two_pictures_alone_do_not_tell_the_label(statements, metadata, split, statement_type, column):
    labels = defaultdict(list)
    for row in statements[split]:
        if row["statement_type"] == statement_type:
            left, right = (metadata[split][image] for image in row["identifier"].split(":")[-1].split("|"))
            labels[left[column] == right[column]].append(row["label"])
    assert set(labels) == {True, False}
    for values in labels.values():
        assert sum(values) / len(values) == 0.5


@pytest.mark.parametrize("config", ["vqa", "nlvr2"])
def test_a_reader_of_the_text_alone_stays_at_the_majority_rate(config):
    train, test = task_texts(config, "train"), task_texts(config, "test")
    predicted = predict_from_text(train, [row["text"] for row in test])
    by_type = defaultdict(list)
    for row, answer in zip(test, predicted, strict=True):
        by_type[row["type"]].append((row["answer"], answer))
    for pairs in by_type.values():
        majority = max(Counter(truth for truth, _ in pairs).values()) / len(pairs)
        text_only = sum(truth == answer for truth, answer in pairs) / len(pairs)
        assert text_only == pytest.approx(majority, abs=0.01)


def test_text_classifier_learns_where_text_does_tell():
    train = [{"text": f"{word} {i}", "answer": word, "type": ""} for word in ("cat", "dog") for i in "abc"]
    assert predict_from_text(train, ["a dog", "the cat", "dog dog cat"]) == ["dog", "cat", "dog"]


def test_partners_are_of_another_group_and_share_no_word():
    forms = [
        {
            "image_id": f"{group}{i}",
            "group": group,
            "name": f"{group} thing{chr(97 + i)}",
            "captions": [f"{group} {word}"],
        }
        for group, word in (("cat", "dogs"), ("dog", "paw"), ("bus", "wheel"), ("cup", "tea"))
        for i in range(6)
    ]
    pairs = with_partners(forms)
    assert {form["image_id"] for form, _ in pairs} == {other["image_id"] for _, other in pairs}
    assert len(pairs) == len(forms)
    for form, other in pairs:
        assert form["group"] != other["group"]
        assert (form["group"], other["group"]) != ("dog", "cat")  # "dogs" is a caption word of the cats
    assert with_partners(forms[::-1]) == pairs


@pytest.mark.parametrize(
    ("annotation", "spoken"),
    [
        ("flag: Peru", "flag of Peru"),
        ("woman: curly hair", "woman with curly hair"),
        ("man: bald", "bald man"),
        ("person running: facing right", "person running facing right"),
        ("ear of corn", "ear of corn"),
        ("keycap: 1", ""),
        ("no smoking", ""),
        ("nine o\u2019clock", ""),
        ("man in motorized wheelchair: facing right", ""),  # longer than five words
    ],
)
def test_spoken_names(annotation, spoken):
    assert spoken_name(annotation) == spoken


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ear of corn", "an ear of corn"),
        ("banana", "a banana"),
        ("flag of Peru", "the flag of Peru"),
        ("people with bunny ears", "people with bunny ears"),
        ("clapping hands", "clapping hands"),
        ("person with bunny ears", "a person with bunny ears"),
        ("octopus", "an octopus"),
    ],
)
def test_articles(name, expected):
    assert with_article(name) == expected


@pytest.mark.parametrize(
    ("annotation", "gender", "subgroup", "tone", "expected"),
    [
        ("woman astronaut", "woman", "person-role", "dark", "astronaut with dark skin"),
        ("man walking", "man", "person-activity", "", "person walking"),
        ("man in tuxedo", "man", "person-role", "", "person in tuxedo"),
        ("pregnant woman", "woman", "person-role", "", "pregnant person"),
        ("woman: curly hair", "woman", "person", "light", "person with curly hair and light skin"),
        ("man", "man", "person", "medium", "person with medium skin"),
    ],
)
def test_neutral_names(annotation, gender, subgroup, tone, expected):
    row = {"annotation": annotation, "gender": gender, "subgroup": subgroup, "skin_tone": tone}
    assert neutral_name(row) == expected
