from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.attacks.typos import Typos
from rmcl_hub.attacks.word_swap import ExhaustiveWordSwap, WordSwapAttack

WORDS = ["road", "person", "Picture", "CAR", "TREE", "committee", "McDonald", "naïve", "queue", "aaaa"]
NEIGHBOURS = {"a": "s", "e": "wr", "i": "uo", "c": "xv", "t": "ry", "u": "yi", "r": "et", "o": "ip"}


def kind_of(word: str, misspelling: str) -> str:
    """Which slip of the pen turns one word into the other, worked out from the two words alone."""
    if len(misspelling) == len(word):
        different = [i for i in range(len(word)) if word[i] != misspelling[i]]
        if len(different) == 1:
            return "key"
        first, second = different
        assert second == first + 1
        assert misspelling[first] + misspelling[second] == word[second] + word[first]
        return "swap"
    longer, shorter = sorted((word, misspelling), key=len, reverse=True)
    places = [i for i in range(len(longer)) if longer[:i] + longer[i + 1 :] == shorter]
    assert places
    if len(misspelling) < len(word):
        return "left out"
    assert any(longer[i] in (longer[i - 1], longer[min(i + 1, len(longer) - 1)]) for i in places)
    return "doubled"


@pytest.mark.parametrize("word", WORDS)
def test_every_misspelling_is_one_slip_between_the_ends(word: str) -> None:
    found = Typos().candidates(word)
    misspellings = [misspelling for misspelling, _ in found]
    assert bool(found) == (len(word) >= 4)
    assert all(cosine == 1.0 for _, cosine in found)
    assert len(set(misspellings)) == len(misspellings)
    for misspelling in misspellings:
        assert misspelling != word
        assert (misspelling[0], misspelling[-1]) == (word[0], word[-1])
        kind_of(word, misspelling)
    assert found == Typos().candidates(word)


def test_all_slips_of_a_short_word() -> None:
    by_kind: dict[str, set[str]] = {}
    for misspelling, _ in Typos().candidates("Tart"):
        by_kind.setdefault(kind_of("Tart", misspelling), set()).add(misspelling)
    assert by_kind == {
        "swap": {"Trat"},
        "left out": {"Trt", "Tat"},
        "doubled": {"Taart", "Tarrt"},
        "key": {"Tsrt", "Taet", "Tatt"},
    }
    assert "TRET" in dict(Typos().candidates("TREET"))
    assert "TRWET" in dict(Typos().candidates("TREET"))


@pytest.mark.parametrize(("letter", "keys"), NEIGHBOURS.items())
def test_keys_beside_a_letter(letter: str, keys: str) -> None:
    word = f"m{letter}mm"
    found = [
        misspelling for misspelling, _ in Typos().candidates(word) if kind_of(word, misspelling) == "key"
    ]
    assert sorted(found) == sorted([*(f"m{key}mm" for key in keys), f"m{letter}nm"])


@pytest.mark.parametrize("word", ["picture", "committee", "person"])
def test_the_first_few_are_of_every_kind_and_from_all_over_the_word(word: str) -> None:
    few = [misspelling for misspelling, _ in Typos().candidates(word)][:5]
    assert {kind_of(word, misspelling) for misspelling in few} == {"swap", "left out", "doubled", "key"}
    places = {
        next(i for i in range(len(word)) if word[: i + 1] != misspelling[: i + 1]) for misspelling in few
    }
    assert len(places) >= 3


@pytest.mark.parametrize(("attack_class", "most"), [(WordSwapAttack, 2), (ExhaustiveWordSwap, 1)])
def test_an_attack_misspells_and_the_string_is_tokenised_again(
    tokenizer: PreTrainedTokenizerFast,
    make_batch: Any,
    changed_words: Any,
    attack_class: Any,
    most: int,
) -> None:
    def unknown(batch: Any) -> torch.Tensor:
        return (batch["input_ids"] == tokenizer.unk_token_id).sum(dim=1).float()

    options = {"order": "random"} if attack_class is WordSwapAttack else {}
    attack = attack_class(tokenizer, Typos(), max_change_share=None, max_changed_words=most, **options)
    texts = ["The Picture, a happy person", "a big car"]
    result = attack(make_batch(texts), unknown)
    changes = changed_words(texts[0], result.batch["text"][0])
    assert len(changes) == most
    for old, new in changes:
        assert new in dict(Typos().candidates(old)[:5])
    assert result.batch["text"][1] == texts[1]  # three letters at most
    encoding = tokenizer(result.batch["text"], padding=True, return_tensors="pt")
    assert torch.equal(result.batch["input_ids"], encoding["input_ids"])
    assert result.loss_after.tolist() == [most, 0]
    model = attack.threat_model
    assert (model.word_edits, model.min_cosine, model.synonyms) == ("typos", None, Typos().digest)


def test_the_digest_tells_sources_apart() -> None:
    assert len(Typos().digest) == 16
    assert Typos().digest == Typos().digest
    assert Typos().digest != SynonymTable({}).digest
