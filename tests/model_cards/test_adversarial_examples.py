"""Adversarial example sets: what is staged and pulled back scores the same, and shows what was stored."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Value, load_dataset
from huggingface_hub import DatasetCard, HfApi
from safetensors.torch import load_file

from rmcl_hub.datasets_scripts.vocabulary import vocabulary_path
from rmcl_hub.evaluation.adversarial_examples import AdversarialWriter
from rmcl_hub.evaluation.attack_suite import EFFORTS, Effort
from rmcl_hub.evaluation.evaluate_model import load_model
from rmcl_hub.evaluation.outcomes import load_outcomes, save_outcomes
from rmcl_hub.evaluation.protocol_data import load_protocol_data
from rmcl_hub.evaluation.rescore import rescore
from rmcl_hub.evaluation.robustness import evaluate_robustness, read_evaluation
from rmcl_hub.model_cards import refusals
from rmcl_hub.model_cards.adversarial_rows import adversarial_tables, features_of, picture_columns
from rmcl_hub.model_cards.dataset_repository import stage_adversarial_examples

THREAT = "joint-linf-8-words-1"
# Prints what rows of a configuration say, of the newest revision, as a stream, and of an older revision.
LOAD = """
import json
import sys

import numpy as np
from datasets import load_dataset

name, threat, revision = sys.argv[1:]
for options in ({}, {"streaming": True}, {"revision": revision}):
    rows = load_dataset(name, threat, split="test", **options)
    print(json.dumps([
        [row["id"], row["adversarial_text"], row["label"], int(np.asarray(row["left_image"]).sum())]
        for row in rows
    ]))
"""


@pytest.fixture(scope="module")
def statements(tmp_path_factory):
    """Model, processor, rows and evaluation folder: six statements about two pictures, attacked jointly."""
    from transformers import BertTokenizerFast, ViltImageProcessor, ViltProcessor

    from rmcl_hub.modeling_rmcl import RMCLViltConfig, RMCLViltForImagesAndTextClassification

    folder = tmp_path_factory.mktemp("statements")
    tokenizer = BertTokenizerFast(str(vocabulary_path()))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    heads = {"num_images": 2, "modality_type_vocab_size": 3, "num_labels": 2}
    config = RMCLViltConfig(vocab_size=len(tokenizer), image_size=32, patch_size=16, **sizes, **heads)
    torch.manual_seed(0)
    RMCLViltForImagesAndTextClassification(config).save_pretrained(folder / "model")
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    ViltProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder / "model")
    model, processor = load_model(str(folder / "model"), "nlvr2")
    data = load_protocol_data("nlvr2")
    options = {"batch_size": 4, "effort": "quick", "max_examples": 6, "protocol": data.entry}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EFFORTS, "quick", Effort(apgd_steps=2, square_queries=4, word_candidates=2))
        evaluate_robustness(
            model, processor, data.test, "nlvr2", [THREAT], output_dir=folder / "evaluation", **options
        )
    return model, processor, data.test, folder / "evaluation"


@pytest.fixture
def staged(statements, tmp_path):
    """The example set of the statements."""
    return stage_adversarial_examples(
        statements[-1], tmp_path / "staged", name="tiny-adversarial", model_repo="user/tiny"
    )


@pytest.fixture
def of_corpus(evaluation_folder):
    """An evaluation of a prepared corpus on this machine: VQAv2's questions."""
    record = json.loads((evaluation_folder / "evaluation.json").read_text())
    location = "/home/somebody/shards/vqav2"
    entry = {
        "name": "clean",
        "corpus": "vqav2",
        "splits": ["trainable_val", "rest_val"],
        "location": location,
    }
    record["protocol"] |= entry
    (evaluation_folder / "evaluation.json").write_text(json.dumps(record))
    return evaluation_folder


@pytest.fixture
def one_batch(tmp_path, random_outcomes_of, evaluation_record):
    """A function that stores pixels of a threat model with as many outcomes; gives folder and evaluation."""

    def store(pixels, outcomes=None):
        name = next(iter(evaluation_record["threats"]))
        rows = random_outcomes_of(0, 0.5, {name: 0.5}, len(pixels))
        folder = tmp_path / "evaluation"
        AdversarialWriter(folder)(name, rows, {"pixel_values": pixels})
        save_outcomes(rows if outcomes is None else outcomes(rows), folder / "outcomes.parquet")
        (folder / "evaluation.json").write_text(json.dumps(evaluation_record))
        return folder, read_evaluation(folder)

    return store


def table_of(folder, evaluation, mean=0.5, std=0.5):
    """Rows of the first threat model."""
    threat = next(iter(evaluation.record["threats"]))
    outcomes = {row.id: row for row in evaluation.outcomes if row.attack == threat}
    features = features_of(evaluation, folder)
    (table,) = adversarial_tables(folder, threat, outcomes, features, mean, std)
    return [features.decode_example(row) for row in table.to_pylist()]


def test_the_card_tells_the_record_and_passes_the_checks_of_a_push(staged, statements):
    refusals.check(staged)
    card = DatasetCard.load(staged.folder / "README.md")
    record = read_evaluation(statements[-1]).record
    rows = [row for row in load_outcomes(statements[-1] / "outcomes.parquet") if row.attack == THREAT]
    robust = 100 * np.mean([row.clean_correct and row.adversarial_correct for row in rows])
    (line,) = (line for line in card.text.splitlines() if line.startswith(f"| {THREAT} |"))
    assert f"| 6 | {100 * np.mean([row.clean_correct for row in rows]):.1f} [" in line
    assert f"| {robust:.1f} [" in line
    assert line.endswith(f"| {record['threats'][THREAT]['verdict']} |")
    for told in (
        record["model"]["digest"],
        "user/tiny-adversarial",
        "--model user/tiny\n",
        "false, true",
        "OpenMoji",
    ):
        assert told in card.text
    assert card.data.license == "cc-by-sa-4.0"
    assert staged.manifest["sources"]["model_digest"] == record["model"]["digest"]
    assert "private_only" not in staged.manifest["sources"]


def test_pictures_are_the_exact_pixels_in_256_levels(staged, tmp_path):
    rows = load_dataset(str(staged.folder), THREAT, split="test", cache_dir=str(tmp_path / "cache"))
    stored = {
        path.name: load_file(path)["pixel_values"] for path in (staged.folder / "adversarial").iterdir()
    }
    assert sorted({row["pixels_file"] for row in rows}) == [f"adversarial/{name}" for name in sorted(stored)]
    differences = []
    for row in rows:
        exact = stored[row["pixels_file"].split("/")[1]][row["pixels_row"]].numpy()
        for column, pixels in zip(("left_image", "right_image"), exact, strict=True):
            shown = np.asarray(row[column], dtype=np.float64).transpose(2, 0, 1) / 255
            differences.append(np.abs(shown - (pixels * 0.5 + 0.5)).max())
    assert len(differences) == 12
    assert 0 < max(differences) <= 0.5 / 255 + 1e-6


def test_rows_are_the_outcomes_of_the_worst_attack(staged, statements, tmp_path):
    rows = load_dataset(str(staged.folder), THREAT, split="test", cache_dir=str(tmp_path / "cache"))
    expected = {
        row.id: row for row in load_outcomes(statements[-1] / "outcomes.parquet") if row.attack == THREAT
    }
    assert [row["id"] for row in rows] == list(expected)
    for row in rows.remove_columns(["left_image", "right_image", "pixels_file", "pixels_row"]):
        assert row == {name: getattr(expected[row["id"]], name) for name in row}
    assert rows.features["label"].names == ["false", "true"]
    assert any(row["text"] != row["adversarial_text"] for row in rows)


def test_pulled_back_it_rescores_to_the_same_verdict(
    staged, statements, loopback_hub, run_against_hub, tmp_path
):
    model, processor, dataset, evaluation = statements
    api = HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("user"))
    api.create_repo("user/tiny-adversarial", repo_type="dataset")
    first = api.upload_folder(repo_id="user/tiny-adversarial", repo_type="dataset", folder_path=staged.folder)
    pulled = api.snapshot_download(
        "user/tiny-adversarial", repo_type="dataset", local_dir=tmp_path / "pulled"
    )
    results = rescore(pulled, model, processor, dataset)
    assert results == rescore(evaluation, model, processor, dataset)
    assert [(row.threat, row.num_examples, row.holds, row.disagreements) for row in results] == [
        (THREAT, 6, True, 0)
    ]
    api.delete_file(f"data/{THREAT}/test.parquet", "user/tiny-adversarial", repo_type="dataset")
    api.upload_file(
        path_or_fileobj=staged.folder / "data" / THREAT / "test.parquet",
        path_in_repo=f"data/{THREAT}/test.parquet",
        repo_id="user/tiny-adversarial",
        repo_type="dataset",
    )
    done = run_against_hub(LOAD, "user/tiny-adversarial", THREAT, first.oid)
    rows = load_dataset(str(staged.folder), THREAT, split="test", cache_dir=str(tmp_path / "cache"))
    expected = [
        [
            row["id"],
            row["adversarial_text"],
            row["label"],
            int(np.asarray(row["left_image"]).sum()),
        ]
        for row in rows
    ]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [expected] * 3


def test_padding_is_cut_off_and_pixels_are_put_back(one_batch):
    levels = torch.randint(0, 256, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    pixels = (levels / 255 - mean[:, None, None]) / std[:, None, None]
    pixels[1, :, 2:], pixels[1, :, :, 3:] = 0, 0
    rows = table_of(*one_batch(pixels), mean.tolist(), std.tolist())
    assert np.array_equal(rows[0]["image"], levels[0].permute(1, 2, 0))
    assert np.array_equal(rows[1]["image"], levels[1, :, :2, :3].permute(1, 2, 0))


def test_pixels_of_another_normalisation_are_refused(one_batch):
    pixels = (torch.rand(1, 3, 2, 2) - 0.45) / 0.2
    pixels[0, 0, 0, 0] = 2.5  # 1.75 where it is taken for ViLT's
    with pytest.raises(
        ValueError, match=r"1\.750\] instead of \[0, 1\] with image_mean \[0\.5\].*pass those of"
    ):
        table_of(*one_batch(pixels))


def test_an_example_without_outcome_is_refused(one_batch):
    with pytest.raises(
        ValueError, match=r"example 'q1' of 'linf-4' is in adversarial/linf-4-00000\.safetensors, but not"
    ):
        table_of(*one_batch(torch.zeros(2, 3, 2, 2), lambda rows: rows[:1]))


def test_long_lists_of_answers_stay_in_the_model(one_batch):
    folder, evaluation = one_batch(torch.zeros(1, 3, 2, 2))
    assert isinstance(features_of(evaluation, folder)["label"], ClassLabel)
    evaluation.record["answers"] = [f"answer {number}" for number in range(3129)]
    assert features_of(evaluation, folder)["label"] == Value("int64")


def test_one_picture_or_two():
    assert picture_columns(torch.zeros(1, 3, 2, 2)) == ["image"]
    assert picture_columns(torch.zeros(1, 2, 3, 2, 2)) == ["left_image", "right_image"]


def test_every_threat_model_is_a_configuration(evaluation_folder, tmp_path):
    staged = stage_adversarial_examples(evaluation_folder, tmp_path / "staged", name="two")
    configs = DatasetCard.load(staged.folder / "README.md").data.to_dict()["configs"]
    assert [config["config_name"] for config in configs] == ["linf-4", "words-20pct"]
    rows = load_dataset(str(staged.folder), "words-20pct", split="test", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 64
    assert (staged.folder / "evaluation.json").read_bytes() == (
        evaluation_folder / "evaluation.json"
    ).read_bytes()


def test_pictures_of_a_corpus_are_refused_and_nothing_is_written(of_corpus, tmp_path):
    with pytest.raises(
        ValueError, match=r"pictures of 'vqav2' cannot be published: the pictures belong to Flickr"
    ):
        stage_adversarial_examples(of_corpus, tmp_path / "staged", name="corpus")
    assert not (tmp_path / "staged").exists()


def test_a_private_set_of_a_corpus_says_that_it_stays_private_and_names_no_folder(of_corpus, tmp_path):
    staged = stage_adversarial_examples(of_corpus, tmp_path / "staged", name="corpus", private=True)
    assert "must stay private" in staged.manifest["sources"]["private_only"]
    card = DatasetCard.load(staged.folder / "README.md")
    assert card.data.license == "other"
    assert f"**{staged.manifest['sources']['private_only']}**" in card.text
    assert "--data FOLDER_OF_THE_PREPARED_CORPUS" in card.text
    before, after = (
        json.loads((folder / "evaluation.json").read_text()) for folder in (of_corpus, staged.folder)
    )
    assert after["protocol"]["location"] is None
    assert after == {**before, "protocol": {**before["protocol"], "location": None}}
    refusals.check(staged, private=True)
    with pytest.raises(refusals.RefusedError, match="may only be private"):
        refusals.check(staged)


def test_an_evaluation_without_examples_is_refused(evaluation_folder, tmp_path):
    for file in (evaluation_folder / "adversarial").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="holds no adversarial examples of 'linf-4'"):
        stage_adversarial_examples(evaluation_folder, tmp_path / "staged", name="none")
