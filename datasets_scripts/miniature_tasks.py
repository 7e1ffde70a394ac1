"""Miniature VQAv2, NLVR2 and SNLI-VE in exactly the files and fields that the tasks publish."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from .miniature_pictures import MiniaturePicture, usable_pictures, write_tar, write_zip
from .miniatures import COUNT, coco_path, coco_pictures, flickr_name, flickr_pictures

Entry = dict[str, Any]
Question = tuple[Entry, Entry | None]
"""A question and its annotation."""

_TEST_PICTURES = 8
_FIRST_OF_TEST, _FIRST_OF_NLVR2 = 1500, 2000  # positions in openpairs, so that corpora differ
_FIRST_TEST_ID = 500_001
_MISSING_ID = 400_037  # with a high SHA-1, so that it is not held out
_PAIRS_IN_SET = 4


def write_vqav2(root: Path, count: int = COUNT) -> None:
    """Questions and annotations of train (packed) and val (unpacked), test's questions (packed), and the
    pictures.

    Three questions about each picture of train2014 and val2014, and two about each of eight of test2015, half
    of which are test-dev's. Three more of train have answers that are hard to normalise, and four cannot be
    used: one has an id for the second time, one no annotation, one no words, and of one the picture is
    missing.

    Args:
        root: Folder to write; made if need be.
        count: Pictures of COCO's miniature; half of them are in train.
    """
    root.mkdir(parents=True, exist_ok=True)
    for year in ("train2014", "val2014"):
        pictures = coco_pictures(year, count)
        jpegs = {coco_path(picture.number): picture.jpeg for picture in pictures if picture.jpeg is not None}
        write_zip(root / f"{year}.zip", jpegs)
        asked = [pair for picture in pictures for pair in _asked_about(picture, pictures)]
        if year == "train2014":
            asked += _ugly_questions(pictures[0].number)
        questions = [question for question, _ in asked]
        annotations = [annotation for _, annotation in asked if annotation is not None]
        files = {
            f"v2_OpenEnded_mscoco_{year}_questions.json": _vqa_file(year, questions=questions),
            f"v2_mscoco_{year}_annotations.json": _vqa_file(year, annotations=annotations),
        }
        if year == "train2014":
            for (name, content), kind in zip(files.items(), ("Questions", "Annotations"), strict=True):
                write_zip(root / f"v2_{kind}_Train_mscoco.zip", {name: content})
        else:
            for name, content in files.items():
                (root / name).write_bytes(content)
    _write_vqa_test(root)


def _write_vqa_test(root: Path) -> None:
    drawn = usable_pictures(_TEST_PICTURES, _FIRST_OF_TEST)
    pictures = [replace(picture, number=picture.number - 1 + _FIRST_TEST_ID) for picture in drawn]
    jpegs = {f"test2015/COCO_test2015_{picture.number:012d}.jpg": picture.jpeg for picture in pictures}
    write_zip(root / "test2015.zip", {name: jpeg for name, jpeg in jpegs.items() if jpeg is not None})
    questions = [question for picture in pictures for question, _ in _asked_about(picture, pictures)[1:]]
    of_test_dev = questions[: len(questions) // 2]
    packed = {
        f"v2_OpenEnded_mscoco_{source}_questions.json": _vqa_file(source, questions=entries)
        for source, entries in (("test2015", questions), ("test-dev2015", of_test_dev))
    }
    write_zip(root / "v2_Questions_Test_mscoco.zip", packed)


def _asked_about(picture: MiniaturePicture, pictures: Sequence[MiniaturePicture]) -> list[Question]:
    """Three questions; every second picture is asked about what the next one shows."""
    place = pictures.index(picture)
    answer, other = ("no", "yes") if place % 2 else ("yes", "no")
    shown = pictures[(place + 1) % len(pictures)] if place % 2 else picture
    kind = picture.drawing["group"].partition("-")[0]
    presence = [answer] * 6 + [answer.title(), f"{answer}.", f"{answer}!", other]
    number = ["one"] * 5 + ["1"] * 4 + ["two"]
    kinds = [kind] * 4 + [f"the {kind}"] * 3 + [f"{kind}?", f"it's {kind}", "dont know"]
    return [
        _ask(picture.number, 0, f"Is there {_name(shown)} in the picture?", "yes/no", presence),
        _ask(picture.number, 1, "How many things are\nshown?", "number", number),
        _ask(picture.number, 2, "What kind of thing is it?", "other", kinds),
    ]


def _ugly_questions(image_id: int) -> list[Question]:
    """Three of which the answers are hard to normalise, and four that cannot be used."""
    alike = ["the artist"] * 10  # compared as they are, because all wrote the same
    numbers = ["1,000"] * 4 + ["1000"] * 2 + ["none", "zero", "2.5", "."]
    colours = ["red/blue"] * 3 + ["red - blue"] * 3 + ["It's a RED one"] * 4
    usable = [
        _ask(image_id, 3, "谁画的? 🧔", "other", alike),
        _ask(image_id, 4, "How many pixels?", "number", numbers),
        _ask(image_id, 5, "Which colour?", "other", colours),
    ]
    question, _ = _ask(image_id, 6, "Is it annotated?", "yes/no", ["yes"] * 10)
    return [
        *usable,
        usable[0],
        (question, None),
        _ask(image_id, 7, " \n", "yes/no", ["yes"] * 10),
        _ask(_MISSING_ID, 0, "Is it missing?", "yes/no", ["yes"] * 10),
    ]


def _ask(image_id: int, number: int, question: str, answer_type: str, answers: list[str]) -> Question:
    question_id = 1000 * image_id + number
    annotation = {
        "question_type": " ".join(question.lower().split()[:2]),
        "multiple_choice_answer": Counter(answers).most_common(1)[0][0],
        "answers": [
            {"answer": answer, "answer_confidence": "maybe" if index > 7 else "yes", "answer_id": index}
            for index, answer in enumerate(answers, start=1)
        ],
        "image_id": image_id,
        "answer_type": answer_type,
        "question_id": question_id,
    }
    return {"image_id": image_id, "question": question, "question_id": question_id}, annotation


def _vqa_file(source: str, **content: list[Entry]) -> bytes:
    header = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": source, "license": {}}
    if "questions" in content:
        header["task_type"] = "Open-Ended"
    return json.dumps({**header, **content}).encode()


def write_nlvr2(root: Path, count: int = COUNT) -> None:
    """`data/*.json`, train's pictures in `train_img.zip`, dev's in `images/dev/` and test1's in `test1/`.

    Sets of four picture pairs with two statements each, four sixths of them in train. The first picture is a
    gray PNG, the second a JPEG in spite of its name, as some are. Four more entries of train cannot be used:
    an identifier for the second time, a statement without words, a missing picture, a folder outside.

    Args:
        root: Folder to write; made if need be.
        count: Pictures, a multiple of 48.
    """
    (root / "data").mkdir(parents=True, exist_ok=True)
    pictures = usable_pictures(count, _FIRST_OF_NLVR2)
    size = 2 * _PAIRS_IN_SET
    sets = [pictures[start : start + size] for start in range(0, len(pictures), size)]
    first_dev, first_test = len(sets) * 4 // 6, len(sets) * 5 // 6
    parts = {"train": sets[:first_dev], "dev": sets[first_dev:first_test], "test1": sets[first_test:]}
    for split, part in parts.items():
        entries = [
            entry for number, of_set in enumerate(part) for entry in _statements(split, number, of_set)
        ]
        if split == "train":
            entries += _ugly_statements(entries)
        (root / f"data/{split}.json").write_bytes(_json_lines(entries))
    write_zip(root / "train_img.zip", _pair_files("train", parts["train"], "images/train"))
    _write_files(root, _pair_files("dev", parts["dev"], "images/dev"))
    _write_files(root, _pair_files("test1", parts["test1"], "test1"))


def _statements(split: str, number: int, of_set: Sequence[MiniaturePicture]) -> list[Entry]:
    """Two statements about the four pairs of a set, each true of two of them."""
    names = [_name(picture) for picture in of_set]
    sentences = (
        f"The left image shows {names[0]} or\n{names[2]}.",
        f"The right image shows neither {names[1]} nor {names[7]}; naïve, 🧔\u2028and in Ελληνικά.",
    )
    true_of = ((0, 1), (1, 2))
    entries = []
    for pair in range(_PAIRS_IN_SET):
        for statement, sentence in enumerate(sentences):
            entry = {
                "validation": [["12", "True"]],
                "sentence": sentence,
                "left_url": "https://example.org/left.jpg",
                "right_url": "https://example.org/right.jpg",
                "writer": "7",
                "label": str(pair in true_of[statement]),
                "identifier": f"{split}-{number}-{pair}-{statement}",
                "synset": of_set[2 * pair].drawing["group"],
                "query": f"two things{number}",
            }
            if split == "train":
                entry["directory"] = _directory(number)
            else:
                entry["extra_validations"] = [["13", "True"]]
            entries.append(entry)
    return entries


def _ugly_statements(entries: Sequence[Entry]) -> list[Entry]:
    return [
        dict(entries[0]),
        {**entries[0], "identifier": "train-0-0-2", "sentence": " "},
        {**entries[0], "identifier": "train-9999-0-0"},
        {**entries[0], "identifier": "train-9998-0-0", "directory": "../.."},
    ]


def _directory(number: int) -> int:
    """Train's pictures lie in numbered folders; the entries give the number."""
    return number % 2


def _pair_files(split: str, sets: Sequence[Sequence[MiniaturePicture]], place: str) -> dict[str, bytes]:
    files = {}
    for number, of_set in enumerate(sets):
        folder = f"{place}/{_directory(number)}" if split == "train" else place
        for index, picture in enumerate(of_set):
            pair, side = divmod(index, 2)
            content = picture.jpeg if picture.number == 2 else _png(picture)
            files[f"{folder}/{split}-{number}-{pair}-img{side}.png"] = content
    return files


def _png(picture: MiniaturePicture) -> bytes:
    """As PNG with the colours of the JPEG, so that the first one is gray."""
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(picture.jpeg or b""))
    image.convert("L" if image.mode == "L" else "RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _write_files(root: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def write_snli_ve(root: Path, count: int = COUNT) -> None:
    """`snli_ve_{train,dev,test}.jsonl`, and `flickr30k-images.tar`.

    One hypothesis of each label about each picture, six eighths of which are in train. Four more entries of
    train cannot be used: one without a majority label, a pair id for the second time, a hypothesis without
    words, and one whose picture is missing.

    Args:
        root: Folder to write; made if need be.
        count: Pictures, a multiple of eight.
    """
    root.mkdir(parents=True, exist_ok=True)
    pictures = flickr_pictures(count)
    jpegs = {f"flickr30k-images/{flickr_name(picture.number)}": picture.jpeg for picture in pictures}
    write_tar(root / "flickr30k-images.tar", {name: jpeg for name, jpeg in jpegs.items() if jpeg is not None})
    first_dev, first_test = count * 6 // 8, count * 7 // 8
    parts = {
        "train": pictures[:first_dev],
        "dev": pictures[first_dev:first_test],
        "test": pictures[first_test:],
    }
    for split, part in parts.items():
        entries = [entry for picture in part for entry in _hypotheses(picture, pictures)]
        if split == "train":
            entries += _ugly_hypotheses(entries[0])
        (root / f"snli_ve_{split}.jsonl").write_bytes(_json_lines(entries))


def _hypotheses(picture: MiniaturePicture, pictures: Sequence[MiniaturePicture]) -> list[Entry]:
    shown = _name(picture)
    other = _name(pictures[(pictures.index(picture) + 1) % len(pictures)])
    sentences = {
        "entailment": f"There is {shown}.",
        "neutral": f"There is {shown} that\nsomebody likes.",
        "contradiction": f"There is nothing but {other}.",
    }
    image_id = flickr_name(picture.number).removesuffix(".jpg")
    return [
        {
            "Flickr30K_ID": image_id,
            "annotator_labels": [label] * 3 + ["neutral"] * 2,
            "captionID": f"{image_id}.jpg#0",
            "gold_label": label,
            "pairID": f"{image_id}.jpg#0r1{label[0]}",
            "sentence1": picture.captions[0],
            "sentence1_binary_parse": picture.captions[0],
            "sentence1_parse": f"(ROOT {picture.captions[0]})",
            "sentence2": sentence,
            "sentence2_binary_parse": sentence,
            "sentence2_parse": f"(ROOT {sentence})",
        }
        for label, sentence in sentences.items()
    ]


def _ugly_hypotheses(entry: Entry) -> list[Entry]:
    missing = flickr_name(9999).removesuffix(".jpg")
    return [
        {**entry, "gold_label": "-", "pairID": f"{entry['Flickr30K_ID']}.jpg#1r1e"},
        dict(entry),
        {**entry, "sentence2": "\n", "pairID": f"{entry['Flickr30K_ID']}.jpg#2r1e"},
        {**entry, "Flickr30K_ID": missing, "pairID": f"{missing}.jpg#0r1e"},
    ]


def _json_lines(entries: Iterable[Entry]) -> bytes:
    return "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries).encode()


def _name(picture: MiniaturePicture) -> str:
    """What a picture shows, with its article, as questions call it."""
    name = picture.drawing["annotation"]
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
