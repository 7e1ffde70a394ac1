"""Fine-tuning from a recipe to a folder: prepared corpora, protocols, and which checkpoint is kept."""

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from rmcl_hub.datasets_scripts.openpairs import load_openpairs
from rmcl_hub.datasets_scripts.schema import ENTAILMENT_LABELS, FEATURES
from rmcl_hub.datasets_scripts.shards import Manifest, Shard, SplitManifest
from rmcl_hub.evaluation.tasks import build_task
from rmcl_hub.modeling_rmcl import (
    RMCLViltForImageAndTextRetrieval,
    RMCLViltForImagesAndTextClassification,
    RMCLViltForPreTraining,
)
from rmcl_hub.trainers import finetune
from rmcl_hub.trainers.finetune_data import find_data, read_answers, task_collators, validation_rows
from rmcl_hub.trainers.pretrain import load_data
from rmcl_hub.trainers.recipe import CorpusRecipe, DataRecipe, FinetuneRecipe, load_recipe

TRAINING = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "disable_tqdm": True,
    "logging_steps": 1,
}
ATTACK = {"image": {"epsilon": 0.05, "step_size": 0.05, "num_steps": 1}}
COUNT = 8  # rows of a split


@pytest.fixture
def pretrained(tiny_model, processor, tmp_path):
    """A pre-trained folder."""
    tiny_model().save_pretrained(tmp_path / "pretrained")
    processor.save_pretrained(tmp_path / "pretrained")
    return str(tmp_path / "pretrained")


@pytest.fixture(scope="module")
def rows():
    """A function from a task to rows of its schema, pictures encoded."""

    def build(task, split="train", count=COUNT):
        config = "captions" if task == "snli_ve" else task
        given = [dict(row) for row in load_data(DataRecipe(config, split)).select(range(count))]
        if task == "snli_ve":
            for index, row in enumerate(given):
                row |= {"pair_id": str(index), "hypothesis": row["captions"][0], "label": index % 3}
        return [{name: row[name] for name in FEATURES[task]} for row in given]

    return build


@pytest.fixture
def prepare(tmp_path, rows):
    """A function that writes a prepared corpus, one shard a split, and returns its recipe entry."""

    def write(corpus, task, splits):
        folder = tmp_path / corpus
        (folder / "data").mkdir(parents=True)
        manifest = Manifest(corpus, task, "1.0.0", "")
        for split, content in splits.items():
            file = f"data/{split}-00000-of-00001.parquet"
            table = pa.Table.from_pylist(content, schema=FEATURES[task].arrow_schema)
            pq.write_table(table, folder / file)
            shard = Shard(file, len(content), (folder / file).stat().st_size, "")
            manifest.splits[split] = SplitManifest(len(content), len(content), len(content), {}, [shard])
        (folder / "manifest.json").write_text(manifest.to_json())
        if task == "vqa":
            (folder / "answers.json").write_text(json.dumps(["red", "yes", "no"]))
        return {corpus: {"location": str(folder)}}

    return write


@pytest.fixture
def corpus_of(prepare, rows):
    """A function from a task to a prepared corpus of it, complete for the clean protocol."""

    def build(task):
        corpus, kind, train, validation = {
            "vqa": ("vqav2", "vqa", ["train_fit"], "train_dev"),
            "nlvr2": ("nlvr2", "nlvr2", ["train"], "dev"),
            "snli_ve": ("snli_ve", "snli_ve", ["train"], "dev"),
            "retrieval": ("coco_captions", "captions", ["train", "restval"], "validation"),
        }[task]
        splits = {name: rows(kind) for name in train}
        return prepare(corpus, kind, {**splits, validation: rows(kind, "validation", COUNT + 1)})

    return build


def recipe_of(task, init_from, folder, corpora, **fields):
    data = {"max_text_length": 12, **fields.pop("data", {})}
    return FinetuneRecipe(
        task=task,
        protocol=fields.pop("protocol", "clean" if corpora else None),
        init_from=init_from,
        output_dir=str(folder),
        num_negatives=3,
        data=DataRecipe(corpora={name: CorpusRecipe(**entry) for name, entry in corpora.items()}, **data),
        training={**TRAINING, **fields.pop("training", {})},
        **fields,
    )


def logged(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]


# From a corpus to a model -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "streaming"),
    [("vqa", False), ("nlvr2", True), ("snli_ve", False), ("retrieval", False), ("retrieval", True)],
)
def test_a_prepared_corpus_trains_validates_and_saves(pretrained, corpus_of, tmp_path, task, streaming):
    recipe = recipe_of(
        task,
        pretrained,
        tmp_path / "out",
        corpus_of(task),
        data={"streaming": streaming, "augment": "randaugment"},
        training={"max_steps": -1, "num_train_epochs": 1},
    )
    trainer = finetune.finetune(recipe)
    steps = 4 if task == "retrieval" else 2  # train and restval
    assert trainer.state.global_step == steps
    model, processor = finetune.load_finetuned(task, tmp_path / "out")
    (accuracy,) = logged(trainer, "eval_accuracy")
    assert accuracy == pytest.approx(by_hand(recipe, model, processor))
    assert isinstance(AutoModel.from_pretrained(tmp_path / "out").config.hidden_size, int)
    if task == "vqa":
        assert model.config.id2label == {0: "red", 1: "yes", 2: "no"}
        assert build_task("vqa", model, processor).answers == ["red", "yes", "no"]
    if task == "snli_ve":
        assert tuple(model.config.id2label.values()) == ENTAILMENT_LABELS
        assert (model.config.num_images, model.config.modality_type_vocab_size) == (1, 2)


def by_hand(recipe, model, processor):
    """Accuracy on the validation rows, one by one, of the saved model."""
    data = find_data(recipe)
    _, collator = task_collators(recipe, data, processor, seed=5)
    scores = []
    model.eval()
    for row in validation_rows(recipe, data):
        batch = collator([row])
        fields = ("input_ids", "attention_mask", "pixel_values", "pixel_mask")
        inputs = {name: batch[name] for name in fields}
        if recipe.task == "retrieval":
            texts = {name: inputs.pop(name)[0] for name in fields[:2]}
            inputs = {name: value.expand(4, *value.shape[1:]) for name, value in inputs.items()} | texts
        with torch.no_grad():
            logits = model(**inputs).logits
        if recipe.task == "vqa":
            wanted = dict(zip(row["answers"], row["scores"], strict=True))
            scores.append(wanted.get(model.config.id2label[int(logits.argmax())], 0.0))
        elif recipe.task == "retrieval":
            scores.append(float(logits[0] > logits[1:].max()))
        else:
            scores.append(float(logits.argmax() == int(row["label"])))
    assert len(scores) == COUNT + 1
    return sum(scores) / len(scores)


def test_retrieval_trains_on_the_embedded_captions(pretrained, tmp_path):
    recipe = recipe_of("retrieval", pretrained, tmp_path / "out", {}, data={"max_examples": 8})
    recipe.training |= {"eval_strategy": "steps", "eval_steps": 1}
    recipe.max_validation_examples = 5
    trainer = finetune.finetune(recipe)
    assert len(logged(trainer, "eval_accuracy")) == 2
    assert len(trainer.eval_dataset) == 5
    assert trainer.eval_dataset["image_id"][0] in load_openpairs("captions", "validation")["image_id"][:]


def test_fields_of_the_model_come_from_the_recipe(pretrained, tmp_path):
    """A converted checkpoint has no dropout, and is compared with models that were pre-trained with it."""
    recipe = recipe_of(
        "retrieval",
        pretrained,
        tmp_path,
        {},
        data={"max_examples": 4},
        model={"hidden_dropout_prob": 0.3},
    )
    model = finetune.finetune(recipe).model
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.3}
    with pytest.raises(ValueError, match="did you mean 'hidden_dropout_prob'"):
        FinetuneRecipe(model={"hidden_dropout": 0.1})


def test_adversarial_fine_tuning_from_a_recipe(pretrained, tmp_path):
    path = tmp_path / "recipe.yaml"
    recipe = {"task": "nlvr2", "init_from": pretrained, "attack": ATTACK, "adversarial_weight": 2.0}
    recipe |= {"data": {"config": "nlvr2", "max_examples": 8, "max_text_length": 12}, "training": TRAINING}
    path.write_text(json.dumps(recipe))  # JSON is YAML
    trainer = finetune.finetune(load_recipe(FinetuneRecipe, path, ["--output_dir", str(tmp_path / "out")]))
    losses = [row for row in trainer.state.log_history if "adversarial_loss" in row]
    assert len(losses) == 2
    for row in losses:
        assert row["adversarial_loss"] > row["clean_loss"]
        assert row["loss"] == pytest.approx((row["clean_loss"] + 2 * row["adversarial_loss"]) / 3, rel=1e-3)


# Which weights it starts from and keeps ---------------------------------------------------------------------


def test_ranking_starts_from_the_true_pair_logit(pretrained, tmp_path, caplog):
    resting = {"max_steps": 1, "learning_rate": 0.0}
    recipe = recipe_of(
        "retrieval", pretrained, tmp_path / "out", {}, data={"max_examples": 4}, training=resting
    )
    head = finetune.finetune(recipe).model.rank_output
    matching = RMCLViltForPreTraining.from_pretrained(pretrained).itm_score
    assert head.weight.equal(matching.weight[1:])
    assert head.bias.equal(matching.bias[1:])
    assert "starts anew" not in caplog.text


def test_a_ranking_goes_on_from_its_own_head(pretrained, tmp_path):
    with torch.no_grad():
        model = RMCLViltForImageAndTextRetrieval.from_pretrained(pretrained)
        model.rank_output.weight.fill_(0.5)
        model.save_pretrained(pretrained)
    resting = {"max_steps": 1, "learning_rate": 0.0}
    recipe = recipe_of(
        "retrieval", pretrained, tmp_path / "out", {}, data={"max_examples": 4}, training=resting
    )
    assert (finetune.finetune(recipe).model.rank_output.weight == 0.5).all()


def test_without_a_matching_head_the_ranking_starts_anew_and_says_so(pretrained, tmp_path, caplog):
    model = RMCLViltForPreTraining.from_pretrained(pretrained)
    model.vilt.save_pretrained(pretrained)
    recipe = recipe_of("retrieval", pretrained, tmp_path / "out", {}, data={"max_examples": 4})
    with caplog.at_level(logging.WARNING):
        finetune.finetune(recipe)
    assert "has no image-text matching head (itm_score), so the ranking starts anew" in caplog.text


def test_the_best_checkpoint_by_validation_is_kept_not_the_last(pretrained, prepare, rows, tmp_path):
    """All training statements are true and all validation statements false: training makes it worse."""
    train = [{**row, "label": True} for row in rows("nlvr2")]
    validation = [{**row, "label": False} for row in rows("nlvr2", "validation")]
    start = RMCLViltForImagesAndTextClassification.from_pretrained(
        pretrained, num_images=2, modality_type_vocab_size=3, ignore_mismatched_sizes=True
    )
    with torch.no_grad():
        start.classifier[-1].bias.copy_(torch.tensor([2.0, -2.0]))  # false, to begin with
    start.save_pretrained(pretrained)
    recipe = recipe_of(
        "nlvr2",
        pretrained,
        tmp_path / "out",
        prepare("nlvr2", "nlvr2", {"train": train, "dev": validation}),
        training={"max_steps": -1, "num_train_epochs": 6, "learning_rate": 3e-2, "save_total_limit": 9},
    )
    trainer = finetune.finetune(recipe)
    accuracies = logged(trainer, "eval_accuracy")
    assert accuracies[0] > accuracies[-1]
    assert accuracies[0] == max(accuracies) == trainer.state.best_metric
    kept = load_file(tmp_path / "out" / "model.safetensors")
    best, last = (
        load_file(tmp_path / "out" / f"checkpoint-{step}" / "model.safetensors") for step in (2, 12)
    )
    assert all(value.equal(best[name]) for name, value in kept.items())
    assert not any(value.equal(last[name]) for name, value in kept.items() if "classifier" in name)


@pytest.mark.parametrize(("given", "rate"), [(1e-3, 1e-3), (None, 1e-4)])
def test_the_head_has_its_own_rate_and_the_warm_up_holds_for_both(pretrained, tmp_path, given, rate):
    recipe = recipe_of(
        "retrieval",
        pretrained,
        tmp_path / "out",
        {},
        data={"max_examples": 8},
        head_learning_rate=given,
        training={"learning_rate": 1e-4, "warmup_steps": 0.5, "max_steps": 4, "save_strategy": "no"},
    )
    trainer = finetune.finetune(recipe)
    head = {id(trainer.model.rank_output.weight), id(trainer.model.rank_output.bias)}
    for group in trainer.optimizer.param_groups:
        of_head = {id(parameter) for parameter in group["params"]} <= head
        assert group["initial_lr"] == (rate if of_head else 1e-4)
        assert group["betas"] == (0.9, 0.98)
    assert logged(trainer, "learning_rate")[1:] != sorted(logged(trainer, "learning_rate")[1:])


@pytest.mark.parametrize("task", ["retrieval", "snli_ve"])
def test_a_frozen_encoder_stays_and_the_new_heads_move(pretrained, corpus_of, tmp_path, task):
    recipe = recipe_of(task, pretrained, tmp_path / "out", corpus_of(task), freeze_encoder=True)
    finetune.finetune(recipe)
    before, after = (
        AutoModel.from_pretrained(folder).state_dict() for folder in (pretrained, tmp_path / "out")
    )
    assert before.keys() == after.keys()
    assert all(after[name].equal(value) for name, value in before.items())
    if task == "retrieval":
        head = load_file(tmp_path / "out" / "model.safetensors")["rank_output.weight"]
        assert not head.equal(RMCLViltForPreTraining.from_pretrained(pretrained).itm_score.weight[1:])


# What is refused --------------------------------------------------------------------------------------------


def test_data_of_another_task_is_refused(pretrained, corpus_of, tmp_path):
    recipe = recipe_of("nlvr2", pretrained, tmp_path / "out", corpus_of("vqa"))
    with pytest.raises(
        ValueError, match=r"Task 'nlvr2' does not fit .*vqav2, which holds vqav2, a corpus of"
    ):
        finetune.finetune(recipe)


def test_a_corpus_without_the_protocol_is_refused(pretrained, prepare, rows, tmp_path):
    corpora = prepare("sbu_captions", "captions", {"train": rows("captions")})
    with pytest.raises(ValueError, match=r"no protocol 'clean' of 'sbu_captions'; there are: clean of vqav2"):
        finetune.finetune(recipe_of("retrieval", pretrained, tmp_path / "out", corpora))


def test_a_missing_split_is_an_error_before_training(pretrained, prepare, rows, tmp_path):
    corpora = prepare("nlvr2", "nlvr2", {"train": rows("nlvr2")})
    with pytest.raises(ValueError, match=r"has no split 'dev', only train; prepare it with --splits dev"):
        finetune.finetune(recipe_of("nlvr2", pretrained, tmp_path / "out", corpora))


def test_missing_answers_are_an_error(pretrained, corpus_of, tmp_path):
    corpora = corpus_of("vqa")
    (tmp_path / "vqav2" / "answers.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"answers\.json is missing: .*`rmcl-hub data prepare vqav2` again"
    ):
        finetune.finetune(recipe_of("vqa", pretrained, tmp_path / "out", corpora))


def test_a_contaminated_protocol_is_named(prepare, rows, tmp_path, caplog):
    splits = {name: rows("captions") for name in ("train", "restval", "test")}
    corpora = prepare("coco_captions", "captions", splits)
    recipe = recipe_of("retrieval", "folder", tmp_path / "out", corpora, protocol="thesis")
    with caplog.at_level(logging.WARNING):
        data = find_data(recipe)
    assert (data.train, data.validation) == (("train", "restval"), ("test",))
    assert "Protocol thesis of coco_captions: the checkpoint is chosen on the test pictures" in caplog.text


def test_answers_keep_their_order(corpus_of):
    from rmcl_hub.datasets_scripts.shards import PreparedCorpus

    (entry,) = corpus_of("vqa").values()
    assert read_answers(PreparedCorpus(entry["location"])) == ["red", "yes", "no"]
