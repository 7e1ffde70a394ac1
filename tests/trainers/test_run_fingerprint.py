"""What may change between a run and the one that goes on with it, and what may not."""

import pytest

from rmcl_hub.trainers.recipe import AttackRecipe, CorpusRecipe, DataRecipe, PretrainRecipe
from rmcl_hub.trainers.run_fingerprint import changes, fingerprint


@pytest.fixture
def build(build_trainer, no_attack):
    def build(**training):
        return build_trainer(attacks=(no_attack, no_attack), save_strategy="steps", save_steps=1, **training)

    return build


@pytest.mark.parametrize(
    ("given", "phrases"),
    [
        ({"seed": 1}, ["training.seed was 42, is 1"]),
        ({"per_device_train_batch_size": 4}, ["training.per_device_train_batch_size was 8, is 4"]),
        ({"gradient_accumulation_steps": 2}, ["training.gradient_accumulation_steps was 1, is 2"]),
        ({"max_steps": 9}, ["training.max_steps was 1, is 9"]),
        ({"dataloader_num_workers": 2}, ["training.dataloader_num_workers was 0, is 2"]),
        ({"views": ["image"]}, ['training.views was ["image", "text"], is ["image"]']),
        ({"logging_steps": 7, "save_total_limit": 3, "disable_tqdm": False, "resume_inexactly": True}, []),
    ],
)
def test_arguments_that_change_the_weights_are_named(build, given, phrases):
    assert changes(fingerprint(build()), fingerprint(build(**given))) == phrases


def test_processes_model_and_rows_count(build, pairs):
    before, trainer = fingerprint(build()), build()
    trainer.model.config.momentum = 0.25
    trainer.train_dataset = pairs[:5]
    now = {**fingerprint(trainer), "processes": 2}
    assert changes(before, now) == [
        "model.momentum was 0.5, is 0.25",
        "processes was 1, is 2",
        "rows was 8, is 5",
    ]


def test_rows_of_unknown_number_are_no_error(build, pairs):
    trainer = build()
    trainer.train_dataset = iter(pairs)
    assert fingerprint(trainer)["rows"] is None


def test_of_the_recipe_all_counts_that_has_no_better_name(build):
    def recipe(location="here", weight=None, epsilon=0.1, output_dir="run", unreadable=10):
        return PretrainRecipe(
            output_dir=output_dir,
            data=DataRecipe(
                corpora={"coco": CorpusRecipe(location, weight=weight)}, max_unreadable=unreadable
            ),
            attack=AttackRecipe(image={"preset": "standard", "epsilon": epsilon}),
        )

    trainer = build()
    before = fingerprint(trainer, recipe())
    moved = recipe(location="there", output_dir="other", unreadable=99)
    assert changes(before, fingerprint(trainer, moved)) == []
    changed = changes(before, fingerprint(trainer, recipe(weight=0.5, epsilon=0.2)))
    assert changed == [
        "attack.image.epsilon was 0.1, is 0.2",
        "data.corpora.coco.weight was null, is 0.5",
    ]
    attack_gone = changes(before, fingerprint(trainer, PretrainRecipe(data=recipe().data)))
    assert "attack.image.epsilon was 0.1, is null" in attack_gone


def test_what_only_one_version_of_transformers_has_does_not_count():
    before = {"training.seed": 1, "training.past_index": -1, "model.old": 2, "data.rows": 3}
    assert changes(before, {"training.seed": 1, "training.project": "p"}) == ["data.rows was 3, is null"]


def test_long_values_are_cut():
    (phrase,) = changes({"x": "a" * 200}, {"x": "b"})
    assert len(phrase) < 90


def test_another_run_is_refused_and_gone_on_with_only_when_told(build, tmp_path, caplog):
    build(max_steps=2).train()
    with pytest.raises(
        ValueError, match=r"checkpoint-2 cannot be gone on with exactly: .*seed was 42, is 7"
    ) as told:
        build(max_steps=3, seed=7).train(resume_from_checkpoint=True)
    assert "training.max_steps was 2, is 3" in str(told.value)
    assert "training.resume_inexactly" in str(told.value)
    trainer = build(max_steps=3, seed=7, resume_inexactly=True)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert trainer.state.log_history[0]["step"] == 1  # it went on, and did not begin anew
    assert "Going on inexactly" in caplog.text


def test_weights_alone_are_refused(build):
    build(save_only_model=True).train()
    with pytest.raises(ValueError, match=r"it has weights only \(save_only_model\)"):
        build().train(resume_from_checkpoint=True)


def test_an_unfinished_checkpoint_that_is_named_is_refused(build, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Cannot resume from .*no complete\.json.*init_from"):
        build().train(resume_from_checkpoint=str(tmp_path))


def test_without_a_checkpoint_the_run_begins_anew_and_says_so(build, caplog):
    trainer = build()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 1
    assert "begins anew" in caplog.text
