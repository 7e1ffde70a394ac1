"""From rows to tensors: exact values, targets that are right, and what happens to rows that are not."""

import io
import logging
import random
import re

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from rmcl_hub.datasets_scripts.image_transforms import randaugment
from rmcl_hub.datasets_scripts.images import UnreadableImageError
from rmcl_hub.datasets_scripts.task_collators import PairCollator, QuestionCollator, StatementCollator
from rmcl_hub.trainers.finetune_data import FinetuneData, task_collators
from rmcl_hub.trainers.pretraining_collator import PretrainingCollator
from rmcl_hub.trainers.recipe import DataRecipe, FinetuneRecipe

BROKEN = {"bytes": b"no picture", "path": None}


def picture(grey, size=(32, 32)):
    return Image.new("RGB", size, (grey, grey, grey))


def row(image, image_id="a", captions=("a red dog runs .",)):
    return {"image": image, "image_id": image_id, "captions": list(captions)}


def test_pixels_words_and_masks_are_exact(processor):
    batch = PairCollator(processor)([row(picture(0)), row(picture(255), "b", ["a cat"])])
    assert batch["text"] == ["a red dog runs .", "a cat"]
    vocabulary = processor.tokenizer.get_vocab()
    words = ["[CLS]", "a", "cat", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    assert batch["input_ids"][1].tolist() == [vocabulary[word] for word in words]
    assert batch["attention_mask"].tolist() == [[1] * 7, [1] * 4 + [0] * 3]
    assert batch["token_type_ids"].tolist() == [[0] * 7] * 2
    assert_close(batch["pixel_values"], torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 32, 32))
    assert_close(batch["pixel_mask"], torch.ones(2, 32, 32, dtype=torch.long))


def test_pictures_of_different_sizes_are_padded_and_masked(processor):
    batch = PairCollator(processor)([row(picture(255)), row(picture(255, size=(48, 32)))])
    assert batch["pixel_values"].shape == (2, 3, 32, 48)
    assert batch["pixel_mask"].sum(dim=(1, 2)).tolist() == [32 * 32, 32 * 48]
    assert (batch["pixel_values"][0, :, :, 32:] == 0).all()


def test_long_captions_are_cut(processor):
    batch = PairCollator(processor, max_text_length=4)([row(picture(0))])
    assert batch["input_ids"].shape == (1, 4)
    assert batch["text"] == ["a red dog runs ."]  # whole: the attacks cut it the same way


def test_every_caption_is_drawn_over_the_epochs_whatever_the_batch(processor):
    captions = ["a dog", "a cat", "a bird"]
    examples = [row(picture(0), f"image-{i}", captions) for i in range(20)]
    collator = PairCollator(processor)
    drawn = []
    for epoch in range(12):
        collator.epoch = epoch
        whole = collator(examples)["text"]
        halves = collator(examples[:7])["text"] + collator(examples[7:])["text"]
        assert whole == halves
        drawn.append(whole)
    assert {tuple(set(texts)) for texts in zip(*drawn, strict=True)} <= set(
        _permutations_of_subsets(captions)
    )
    assert all(set(texts) == set(captions) for texts in drawn)  # chance of a miss: below 1e-3 per epoch
    assert len({tuple(texts) for texts in drawn}) == 12
    assert PairCollator(processor, seed=1)(examples)["text"] != drawn[0]


def _permutations_of_subsets(items):
    from itertools import permutations

    return [choice for size in (1, 2, 3) for choice in permutations(items, size)]


def test_the_first_caption_on_request(processor):
    examples = [row(picture(0), str(i), ["a dog", "a cat"]) for i in range(10)]
    assert PairCollator(processor, draw_caption=False)(examples)["text"] == ["a dog"] * 10


def test_the_global_random_state_is_neither_read_nor_moved(processor, pairs):
    collator = PretrainingCollator(processor)
    state = torch.get_rng_state()
    first = collator(pairs)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    again = collator(pairs)
    assert all(torch.equal(first[name], again[name]) for name in first if name != "text")
    assert first["text"] == again["text"]


@pytest.mark.parametrize("captions", [[], ["", "  "], [None]])
def test_an_image_without_words_is_an_error(processor, captions):
    with pytest.raises(ValueError, match=r"Image 'b' has no caption with words; drop such rows"):
        PairCollator(processor)([row(picture(0)), row(picture(0), "b", captions)])


def test_empty_captions_beside_good_ones_are_not_drawn(processor):
    examples = [row(picture(0), str(i), ["", "a dog", " "]) for i in range(10)]
    assert PairCollator(processor)(examples)["text"] == ["a dog"] * 10


def test_an_unreadable_image_is_replaced_counted_and_reported(processor, caplog):
    collator = PairCollator(processor)
    examples = [row(BROKEN, "bad"), row(picture(0), "good", ["a dog"]), row(picture(255), "fine", ["a cat"])]
    with caplog.at_level(logging.WARNING):
        batch = collator(examples)
    assert batch["text"] == ["a dog", "a cat", "a dog"]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [-1.0, 1.0, -1.0]
    assert len(collator.unreadable) == 1
    assert "image 'bad' cannot be read" in collator.unreadable[0]
    assert "Skipped (1 so far, limit 10): image 'bad' cannot be read" in caplog.text


def test_too_many_unreadable_images_stop_the_run(processor):
    collator = PairCollator(processor, max_unreadable=2)
    examples = [row(picture(0)), row(BROKEN, "first"), row(BROKEN, "second")]
    collator(examples)
    with pytest.raises(
        RuntimeError, match=r"3 images cannot be read, max_unreadable is 2\. First: image 'first'"
    ):
        collator(examples)


def test_a_batch_without_a_readable_image_is_an_error(processor):
    with pytest.raises(
        UnreadableImageError, match=r"No image of a batch of 2 can be read; the latest: image 'b'"
    ):
        PairCollator(processor)([row(BROKEN, "a"), row(None, "b")])


def test_a_cut_file_counts_as_unreadable(processor):
    stream = io.BytesIO()
    picture(100).save(stream, "PNG")
    cut = {"bytes": stream.getvalue()[:60], "path": None}
    collator = PairCollator(processor)
    collator([row(cut, "cut"), row(picture(0))])
    assert len(collator.unreadable) == 1


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_an_exact_half_of_the_texts_meets_another_image(processor, pairs, size):
    collator = PretrainingCollator(processor)
    moved = set()
    for epoch in range(10):
        collator.epoch = epoch
        batch = collator(pairs[:size])
        own = batch["itm_image_index"] == torch.arange(size)
        assert batch["itm_labels"].tolist() == own.long().tolist()
        assert (~own).sum() == size // 2
        assert ((batch["itm_image_index"] >= 0) & (batch["itm_image_index"] < size)).all()
        moved |= set((~own).nonzero().flatten().tolist())
    assert moved == set(range(size)) or size == 1


def test_only_words_are_masked_and_the_labels_are_the_words(processor, pairs):
    collator = PretrainingCollator(processor, mlm_probability=0.5)
    special = torch.tensor(processor.tokenizer.all_special_ids)
    chosen = words = masks = 0
    for epoch in range(20):
        collator.epoch = epoch
        batch = collator(pairs)
        ids, masked, labels = batch["input_ids"], batch["mlm_input_ids"], batch["mlm_labels"]
        scored, is_special = labels != -100, torch.isin(ids, special)
        assert not (scored & is_special).any()
        assert torch.equal(labels[scored], ids[scored])
        assert torch.equal(masked[~scored], ids[~scored])
        assert batch["text"][0] in pairs[0]["captions"]
        chosen, words = chosen + scored.sum(), words + (~is_special).sum()
        masks += (masked == processor.tokenizer.mask_token_id).sum()
    assert 0.4 < chosen / words < 0.6
    assert 0.7 < masks / chosen < 0.9  # BERT: 80 % masks, 10 % random words, 10 % unchanged


@pytest.mark.parametrize("objective", ["mlm", "itm"])
def test_only_the_targets_of_the_chosen_objectives_are_made(processor, pairs, objective):
    batch = PretrainingCollator(processor, [objective])(pairs)
    targets = {name.split("_")[0] for name in batch if name.startswith(("mlm", "itm"))}
    assert targets == {objective}


def test_soft_labels_leave_out_rare_answers(processor):
    rows = [
        {"image": picture(0), "question": "is the dog red", "answers": ["yes", "blue"], "scores": [1.0, 0.3]},
        {"image": picture(0), "question": "what", "answers": ["purple"], "scores": [1.0]},
    ]
    batch = QuestionCollator(processor, ["no", "yes", "blue"])(rows)
    assert_close(batch["labels"], torch.tensor([[0.0, 1.0, 0.3], [0.0, 0.0, 0.0]]))
    assert batch["text"] == ["is the dog red", "what"]


def test_labels_follow_the_rows_that_replace_unreadable_ones(processor):
    rows = [
        {"image": image, "question": "is the dog red", "answers": [answer], "scores": [1.0]}
        for image, answer in ((BROKEN, "no"), (picture(0), "yes"))
    ]
    assert QuestionCollator(processor, ["no", "yes"])(rows)["labels"].tolist() == [[0, 1], [0, 1]]


def test_statements_have_two_images_each_left_first(processor):
    rows = [
        {"left_image": picture(0), "right_image": picture(255), "statement": "a dog", "label": True},
        {
            "left_image": picture(255),
            "right_image": picture(0, (48, 32)),
            "statement": "a cat",
            "label": False,
        },
    ]
    batch = StatementCollator(processor)(rows)
    assert batch["pixel_values"].shape == (2, 2, 3, 32, 48)
    assert batch["pixel_mask"].shape == (2, 2, 32, 48)
    assert batch["pixel_values"][:, :, 0, 0, 0].tolist() == [[-1, 1], [1, -1]]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["text"] == ["a dog", "a cat"]


def test_a_statement_with_one_broken_image_is_replaced_as_a_whole(processor):
    rows = [
        {"left_image": picture(0), "right_image": BROKEN, "statement": "a dog", "label": True},
        {"left_image": picture(255), "right_image": picture(0), "statement": "a cat", "label": False},
    ]
    batch = StatementCollator(processor)(rows)
    assert batch["text"] == ["a cat", "a cat"]
    assert batch["pixel_values"][:, :, 0, 0, 0].tolist() == [[1, -1], [1, -1]]
    assert batch["labels"].tolist() == [0, 0]


def test_a_mere_strip_is_replaced_as_if_unreadable(processor):
    """32 pixels allow a longer side of 53: at 1 to 4, the shorter one is below a patch of 16."""
    collator = PairCollator(processor)
    batch = collator([row(picture(0, (400, 100)), "strip"), row(picture(255, (330, 100)), "fine", ["a cat"])])
    assert batch["text"] == ["a cat", "a cat"]
    assert batch["pixel_values"].shape == (2, 3, 16, 48)
    message = r"image 'strip' has 400 x 100 pixels: with its longer side at the 53 .* a patch of 16; crop"
    assert re.search(message, collator.unreadable[0])


def test_the_processor_has_no_patch_left_of_what_is_called_a_strip(processor):
    for width in range(300, 360, 4):
        collator = PairCollator(processor)
        collator([row(picture(0, (width, 100))), row(picture(0))])
        if collator.unreadable:
            with pytest.raises((ValueError, RuntimeError)):
                processor.image_processor([picture(0, (width, 100))])
            break
    assert width == 344  # 53 * 100 / 344 + 0.5 is the first below 16


def lightened(image, draws):
    return image.point(lambda value: value + 10 * (1 + random.Random(draws).randrange(20)))


def test_a_transform_changes_pictures_anew_in_every_epoch_whatever_the_batch(processor):
    examples = [row(picture(0), f"image-{place}") for place in range(12)]
    state = torch.get_rng_state()
    collator = PairCollator(processor, transform=lightened)
    first = collator(examples)["pixel_values"]
    halves = torch.cat([collator(part)["pixel_values"] for part in (examples[:5], examples[5:])])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, halves)
    assert (first > -1).all()
    assert len(first[:, 0, 0, 0].unique()) > 5
    for other in (PairCollator(processor, transform=lightened, seed=1), collator):
        collator.epoch = 1
        assert not torch.equal(other(examples)["pixel_values"], first)


def test_the_two_pictures_of_a_statement_are_transformed_each_in_its_own_way(processor):
    rows = [
        {"left_image": picture(0), "right_image": picture(0), "identifier": f"s{place}", "statement": "a dog"}
        | {"label": True}
        for place in range(8)
    ]
    greys = StatementCollator(processor, transform=lightened)(rows)["pixel_values"][:, :, 0, 0, 0]
    assert (greys[:, 0] != greys[:, 1]).sum() > 4
    assert len(greys[:, 0].unique()) > 3


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_pictures_of_any_mode_can_be_augmented(processor, mode):
    stream = io.BytesIO()
    picture(100).convert(mode).save(stream, "JPEG" if mode == "CMYK" else "PNG")
    example = row({"bytes": stream.getvalue(), "path": None})
    seen = {
        tuple(PairCollator(processor, transform=randaugment, seed=seed)([example])["pixel_values"].flatten())
        for seed in range(8)
    }
    assert len(seen) > 3


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "retrieval"])
@pytest.mark.parametrize("augment", [None, "randaugment"])
def test_fine_tuning_augments_what_it_trains_on_and_never_what_it_validates(processor, task, augment):
    config = "captions" if task == "retrieval" else task
    recipe = FinetuneRecipe(task=task, data=DataRecipe(config=config, augment=augment))
    data = FinetuneData(None, ("train",), ("validation",), ["no", "yes"])
    training, validation = task_collators(recipe, data, processor, seed=3)
    assert training.transform is (randaugment if augment else None)
    assert validation.transform is None
