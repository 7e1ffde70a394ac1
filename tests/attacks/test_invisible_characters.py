import unicodedata
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rmcl_hub.attacks.invisible_characters import HOMOGLYPHS, ZERO_WIDTH, InvisibleCharacters
from rmcl_hub.attacks.word_swap import ExhaustiveWordSwap, WordSwapAttack


def test_look_alikes_are_other_letters_of_the_same_case() -> None:
    assert len(set(HOMOGLYPHS.values())) == len(HOMOGLYPHS)
    for letter, alike in HOMOGLYPHS.items():
        assert letter.isascii()
        assert not alike.isascii()
        assert unicodedata.category(alike) == unicodedata.category(letter)
        # No form that normalisation (NFKC) would turn back into the letter.
        assert unicodedata.normalize("NFKC", alike) == alike
        assert unicodedata.name(alike).split()[0] in ("CYRILLIC", "GREEK", "LATIN")


def test_characters_of_no_width_are_format_characters() -> None:
    assert all(unicodedata.category(character) == "Cf" for character in ZERO_WIDTH)
    assert not any(character.isspace() for character in ZERO_WIDTH)  # or the word would be two


@pytest.mark.parametrize("word", ["car", "Picture", "UP", "turn", "naïve", "a", "b"])
def test_every_variant_has_one_character_that_cannot_be_seen(word: str) -> None:
    found = InvisibleCharacters().candidates(word)
    variants = [variant for variant, _ in found]
    assert all(cosine == 1.0 for _, cosine in found)
    assert len(set(variants)) == len(variants)
    reading = {alike: letter for letter, alike in HOMOGLYPHS.items()}
    alike = 0
    for variant in variants:
        assert sum(character in ZERO_WIDTH or character in reading for character in variant) == 1
        assert "".join(reading.get(c, c) for c in variant if c not in ZERO_WIDTH) == word
        assert variant[0] not in ZERO_WIDTH
        assert variant[-1] not in ZERO_WIDTH
        alike += len(variant) == len(word)
    assert alike == sum(letter in HOMOGLYPHS for letter in word)
    assert len(variants) - alike == len(ZERO_WIDTH) * (len(word) - 1)
    assert found == InvisibleCharacters().candidates(word)


def test_the_first_few_are_of_both_kinds() -> None:
    few = [variant for variant, _ in InvisibleCharacters().candidates("person")][:4]
    assert [len(variant) for variant in few] == [6, 7, 6, 7]


def test_what_the_tokenizer_strips_is_not_tried(tokenizer: PreTrainedTokenizerFast, make_batch: Any) -> None:
    # The toy's normaliser is BERT's, which removes format characters.
    assert tokenizer("pe\u200brson")["input_ids"] == tokenizer("person")["input_ids"]
    seen: list[str] = []

    def strangeness(batch: Any) -> torch.Tensor:
        seen.extend(batch["text"])
        return torch.tensor([float(sum(not letter.isascii() for letter in text)) for text in batch["text"]])

    text = "the Person, a tiny car"
    source = InvisibleCharacters()
    for attack in (
        ExhaustiveWordSwap(tokenizer, source, 2),
        WordSwapAttack(tokenizer, source, "random", None, 2),
    ):
        seen.clear()
        result = attack(make_batch([text, "up"]), strangeness)
        changed, kept = result.batch["text"]
        assert not any(character in text for character in ZERO_WIDTH for text in seen)
        reading = {alike: letter for letter, alike in HOMOGLYPHS.items()}
        assert "".join(reading.get(letter, letter) for letter in changed) == text
        assert result.loss_after.tolist() == [2.0, 1.0]
        assert len(kept) == 2
        encoding = tokenizer(result.batch["text"], padding=True, return_tensors="pt")
        assert torch.equal(result.batch["input_ids"], encoding["input_ids"])
        assert (result.batch["input_ids"] == tokenizer.unk_token_id).sum(dim=1).tolist() == [2, 1]
        assert result.forwards == len(seen)
        model = attack.threat_model
        assert (model.word_edits, model.min_cosine, model.synonyms) == ("invisible", None, source.digest)
    assert len(source.digest) == 16
