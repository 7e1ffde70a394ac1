"""Visual question answering in one call: a picture and a question in, answers and their scores out."""

from typing import Any

from torch import Tensor
from transformers import Pipeline
from transformers.image_utils import load_image


class VisualQuestionAnsweringPipeline(Pipeline):
    """What Transformers 4 calls `pipeline("visual-question-answering")`, which Transformers 5 has removed.

    With this package imported, on both: `pipeline("visual-question-answering", model=name,
    pipeline_class=VisualQuestionAnsweringPipeline)`; without it, `pipeline("visual-question-answering",
    model=name, trust_remote_code=True)`, by this file in the model's folder. Without `pipeline_class`
    Transformers 4 takes its own, which gives the same answers in the same order.

    Scores lie in [0, 1]: of a model with one right answer per question (`config.problem_type ==
    "single_label_classification"`) the softmax over its answers, else the sigmoid of each, as in
    Transformers.
    """

    model: Any
    tokenizer: Any
    image_processor: Any

    _load_tokenizer = True
    _load_image_processor = True
    _load_feature_extractor = False
    _load_processor = False

    def __call__(self, image: Any, question: str | None = None, **kwargs: Any) -> Any:
        """Answer a question, or several.

        Args:
            image: PIL image, path or address; or a dictionary of `image` and `question`, or a list or a
                generator of those.
            question: Question about the image; a longer one than the model can read is cut.
            **kwargs: `top_k`, how many answers (default 5, at most all); `batch_size`, for which all images
                must have one size.

        Returns:
            Answers by falling score, `[{"score": 0.9, "answer": "red"}, ...]`; of several questions a list of
            these.

        Raises:
            TypeError: If an image comes without question.
        """
        if question is not None:
            image = {"image": image, "question": question}
        elif not isinstance(image, dict) and not hasattr(image, "__iter__"):
            raise TypeError(
                f"Expected an image and a question, got {type(image).__name__} alone; call "
                'pipe(image, question) or pipe([{"image": ..., "question": ...}, ...]).'
            )
        return super().__call__(image, **kwargs)

    def _sanitize_parameters(self, top_k: int | None = None, **_: Any) -> tuple[dict, dict, dict]:
        return {}, {}, {} if top_k is None else {"top_k": top_k}

    def preprocess(self, input_: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """Inputs of the model, `(1, ...)`."""
        words = self.tokenizer(
            input_["question"],
            truncation=True,
            max_length=self.model.config.max_position_embeddings,
            return_tensors="pt",
        )
        image = self.image_processor(load_image(input_["image"]), return_tensors="pt").to(self.dtype)
        return {**words, **image}

    def _forward(self, input_tensors: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        return {"logits": self.model(**input_tensors).logits}

    def postprocess(self, model_outputs: dict[str, Tensor], top_k: int = 5, **_: Any) -> list[dict[str, Any]]:
        """The best answers of logits `(1, num_labels)`."""
        logits, config = model_outputs["logits"][0].float(), self.model.config
        exclusive = config.problem_type == "single_label_classification"
        scores = logits.softmax(dim=0) if exclusive else logits.sigmoid()
        best, answers = scores.topk(min(top_k, len(scores)))
        return [
            {"score": score, "answer": config.id2label[answer]}
            for score, answer in zip(best.tolist(), answers.tolist(), strict=True)
        ]
