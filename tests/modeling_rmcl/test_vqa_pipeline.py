"""The pipelines of Transformers answer what the model says that they load."""

import json

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoModel, pipeline

from rmcl_hub.modeling_rmcl import RMCLViltForImageAndTextRetrieval, RMCLViltForQuestionAnswering
from rmcl_hub.modeling_rmcl.vqa_pipeline import VisualQuestionAnsweringPipeline

TASK = "visual-question-answering"
QUESTIONS = ["is the dog red", "a black cat sits on the house near the tree", "two birds"]


@pytest.fixture
def image():
    """48 x 32 pixels of noise."""
    pixels = torch.randint(256, (32, 48, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.fixture
def answering_model(tiny_config, randomised):
    tiny_config.id2label = {0: "no", 1: "yes", 2: "red", 3: "a cat"}
    return randomised(RMCLViltForQuestionAnswering(tiny_config))


@pytest.fixture
def answer(answering_model, tiny_processor):
    """The pipeline around the model itself, without a folder."""
    return VisualQuestionAnsweringPipeline(
        model=answering_model,
        tokenizer=tiny_processor.tokenizer,
        image_processor=tiny_processor.image_processor,
        device="cpu",
    )


@pytest.fixture
def saved(answering_model, tiny_processor, tmp_path):
    """Folder of the model."""
    answering_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    return str(tmp_path)


def load(folder):
    return pipeline(TASK, model=folder, pipeline_class=VisualQuestionAnsweringPipeline, device="cpu")


def in_order(probability, config):
    answers = [{"score": p, "answer": config.id2label[i]} for i, p in enumerate(probability.tolist())]
    return sorted(answers, key=lambda answer: -answer["score"])


def assert_same_answers(answers, expected):
    assert [a["answer"] for a in answers] == [a["answer"] for a in expected]
    assert [a["score"] for a in answers] == pytest.approx([a["score"] for a in expected], abs=1e-6)


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
def test_answers_are_those_of_the_model(problem_type, answering_model, answer, tiny_processor, image):
    answering_model.config.problem_type = problem_type
    for question in QUESTIONS:
        logits = answering_model(**tiny_processor(image, question, return_tensors="pt")).logits[0]
        probability = logits.sigmoid() if problem_type is None else logits.softmax(dim=0)
        assert_same_answers(answer(image, question), in_order(probability, answering_model.config))


def test_several_questions_and_fewer_answers(answer, image, tmp_path):
    image.save(tmp_path / "picture.png")
    asked = [{"image": str(tmp_path / "picture.png"), "question": question} for question in QUESTIONS]
    together = answer(asked, top_k=2)
    assert [len(answers) for answers in together] == [2, 2, 2]
    for answers, question, pair in zip(together, QUESTIONS, asked, strict=True):
        assert_same_answers(answers, answer(image, question)[:2])
        assert_same_answers(answers, answer(pair, top_k=2))
    in_batches = answer(asked, top_k=2, batch_size=3)
    for answers, alone in zip(in_batches, together, strict=True):
        assert_same_answers(answers, alone)


def test_a_question_that_is_too_long_is_cut(answer, image):
    words = ["dog"] * (answer.model.config.max_position_embeddings - 2)  # and [CLS] and [SEP]
    assert_same_answers(answer(image, " ".join([*words, "cat", "red"])), answer(image, " ".join(words)))


def test_an_image_needs_a_question(answer, image):
    with pytest.raises(TypeError, match=r"Expected an image and a question, got Image alone.*pipe\(image"):
        answer(image)


def test_without_our_class_transformers_4_answers_alike_and_5_asks_for_trust(answer, saved, image):
    if "VisualQuestionAnsweringPipeline" in dir(transformers):
        own = pipeline(TASK, model=saved, device="cpu")
        assert type(own) is transformers.VisualQuestionAnsweringPipeline
        assert_same_answers(own(image, QUESTIONS[1]), answer(image, QUESTIONS[1]))
    else:
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            pipeline(TASK, model=saved, device="cpu")


def test_a_saved_pipeline_is_the_same_pipeline(answer, saved, image, tmp_path):
    again = tmp_path / "again"
    load(saved).save_pretrained(again)
    assert_same_answers(load(str(again))(image, "a red dog"), answer(image, "a red dog"))
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path, again)]
    assert configs[0]["custom_pipelines"] == configs[1]["custom_pipelines"]
    module, name = configs[0]["custom_pipelines"][TASK]["impl"].split(".")
    assert f"class {name}(" in (tmp_path / f"{module}.py").read_text()


def test_only_the_head_that_answers_names_the_pipeline(saved, tmp_path):
    AutoModel.from_pretrained(saved).save_pretrained(tmp_path / "encoder")
    assert "custom_pipelines" not in json.loads((tmp_path / "encoder" / "config.json").read_text())


def test_candidate_sentences_are_ranked_by_the_retrieval_head(tiny_config, randomised, tiny_processor, image):
    model = randomised(RMCLViltForImageAndTextRetrieval(tiny_config))
    parts = {"tokenizer": tiny_processor.tokenizer, "image_processor": tiny_processor.image_processor}
    rank = pipeline("zero-shot-image-classification", model=model, device="cpu", **parts)
    pairs = tiny_processor([image] * 3, QUESTIONS, padding=True, return_tensors="pt")
    probability = model(**pairs).logits[:, 0].softmax(dim=0)
    assert probability.max() - probability.min() > 0.01  # or any order would do
    ranked = rank(image, candidate_labels=QUESTIONS, hypothesis_template="{}")
    best_first = probability.argsort(descending=True).tolist()
    assert [r["label"] for r in ranked] == [QUESTIONS[i] for i in best_first]
    assert [r["score"] for r in ranked] == pytest.approx(probability[best_first].tolist(), abs=1e-6)
    assert rank([image] * 2, candidate_labels=QUESTIONS, hypothesis_template="{}") == [ranked] * 2
