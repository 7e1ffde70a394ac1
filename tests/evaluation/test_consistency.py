"""NLVR2's consistency: a statement counts if it is judged right about every picture pair."""

import numpy as np
import pytest
import torch

from rmcl_hub.evaluation.metrics import nlvr2_consistency

# Two sets of pictures with two statements each, asked of two to four pairs; and which predictions are right.
TABLE = {
    "dev-0-0-0": 1,
    "dev-0-1-0": 1,
    "dev-0-2-0": 1,
    "dev-0-3-0": 1,  # statement 0 of set 0: all right
    "dev-0-0-1": 1,
    "dev-0-1-1": 0,  # statement 1 of set 0: one wrong
    "dev-7-0-0": 0,
    "dev-7-3-0": 0,  # statement 0 of set 7: all wrong
    "dev-7-3-1": 1,  # statement 1 of set 7: asked once
}


def test_by_hand():
    assert nlvr2_consistency(list(TABLE.values()), list(TABLE)) == 2 / 4
    assert nlvr2_consistency([1] * len(TABLE), list(TABLE)) == 1
    assert nlvr2_consistency(torch.zeros(len(TABLE), dtype=torch.bool), list(TABLE)) == 0
    assert nlvr2_consistency(np.array([True]), ["test1-0-1-0"]) == 1


def test_the_same_numbers_of_another_split_are_another_statement():
    assert nlvr2_consistency([1, 0], ["dev-0-0-0", "test1-0-0-0"]) == 0.5


def test_is_what_a_loop_over_statements_finds_in_any_order():
    generator = np.random.default_rng(0)
    identifiers = [
        f"dev-{s}-{p}-{t}" for s in range(20) for p in range(4) for t in range(2) if generator.random() < 0.8
    ]
    correct = generator.random(len(identifiers)) < 0.8
    statements = {(name.split("-")[1], name.split("-")[3]) for name in identifiers}
    consistent = [
        all(
            right
            for right, name in zip(correct, identifiers, strict=True)
            if name.split("-")[1::2] == list(statement)
        )
        for statement in statements
    ]
    order = generator.permutation(len(identifiers))
    shuffled = nlvr2_consistency(correct[order], [identifiers[place] for place in order])
    assert shuffled == nlvr2_consistency(correct, identifiers) == pytest.approx(np.mean(consistent))
    assert 0 < shuffled < correct.mean()


@pytest.mark.parametrize(
    ("correct", "identifiers", "message"),
    [
        ([], [], "correct is empty"),
        ([1], ["dev-0-0-0", "dev-0-1-0"], "correct has 1 examples, identifiers 2"),
        ([0.5], ["dev-0-0-0"], "correct holds float64 values other than 0 and 1"),
        ([1, 1], ["dev-0-0-0", "dev-0-0-0"], "'dev-0-0-0' comes twice"),
        (
            [1],
            ["only:ab12:3"],
            "identifier 'only:ab12:3' is not one of NLVR2; expected split-set-pair-statement",
        ),
    ],
)
def test_what_it_refuses(correct, identifiers, message):
    with pytest.raises(ValueError, match=message):
        nlvr2_consistency(correct, identifiers)
