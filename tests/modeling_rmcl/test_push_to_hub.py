"""Models pushed to a Hub load by their id, with rmcl-hub and without it, by every Auto class and revision."""

import json

import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from rmcl_hub import modeling_rmcl

CLASSES = {
    "RMCLViltModel": "AutoModel",
    "RMCLViltForPreTraining": "AutoModelForPreTraining",
    "RMCLViltForMaskedLM": "AutoModelForMaskedLM",
    "RMCLViltForQuestionAnswering": "AutoModelForVisualQuestionAnswering",
    "RMCLViltForImagesAndTextClassification": "AutoModelForSequenceClassification",
    "RMCLViltForImageAndTextRetrieval": "AutoModelForZeroShotImageClassification",
}
TEXTS = ["a red dog runs", "two birds"]

PUSH = """
import json, sys
from huggingface_hub import create_tag
from transformers import AutoProcessor
from rmcl_hub import modeling_rmcl  # makes the Auto classes know the models

for name in json.loads(sys.argv[1]):
    model = getattr(modeling_rmcl, name).from_pretrained(name)
    model.push_to_hub(f"user/{name}")
    AutoProcessor.from_pretrained(name).push_to_hub(f"user/{name}")
create_tag("user/RMCLViltModel", tag="v1")
model = modeling_rmcl.RMCLViltModel.from_pretrained("RMCLViltModel")
model.pooler.dense.weight.data.neg_()
model.push_to_hub("user/RMCLViltModel")
"""
WITHOUT_PACKAGE = """
import sys
sys.modules["rmcl_hub"] = None  # any import of the package fails
"""
READ = """
import json, sys
import torch, transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoProcessor, pipeline

classes, texts, trust = (json.loads(argument) for argument in sys.argv[1:4])
module = "transformers_modules." if trust else "rmcl_hub."

def output_of(name, auto_class, **options):
    model = getattr(transformers, auto_class).from_pretrained(f"user/{name}", **trust, **options).eval()
    assert type(model).__module__.startswith(module), type(model)
    inputs = AutoProcessor.from_pretrained(f"user/{name}", **trust)(picture, texts[0], return_tensors="pt")
    if name == "RMCLViltForImagesAndTextClassification":
        inputs |= {key: torch.stack([inputs[key]] * 2, dim=1) for key in ("pixel_values", "pixel_mask")}
    output = model(**inputs)
    return next(output[key] for key in ("logits", "embeds", "pooler_output") if key in output)

with torch.no_grad(), Image.open("picture.png") as picture:
    outputs = {name: output_of(name, auto_class) for name, auto_class in classes.items()}
    outputs["v1"] = output_of("RMCLViltModel", "AutoModel", revision="v1")
    rank = pipeline("zero-shot-image-classification", model="user/RMCLViltForImageAndTextRetrieval", **trust)
    ranked = {entry["label"]: entry["score"] for entry in rank(picture, texts, hypothesis_template="{}")}
    outputs["ranked"] = torch.tensor([ranked[text] for text in texts])
    if trust:
        answer = pipeline("visual-question-answering", model="user/RMCLViltForQuestionAnswering", **trust)
        scores = {entry["answer"]: entry["score"] for entry in answer(picture, texts[0])}
        outputs["answered"] = torch.tensor([scores["no"], scores["yes"]])
        # What a class of remote code pushes loads again.
        transformers.AutoModel.from_pretrained("user/RMCLViltModel", **trust).push_to_hub("user/again")
        AutoProcessor.from_pretrained("user/RMCLViltModel", **trust).push_to_hub("user/again")
        outputs["again"] = output_of("again", "AutoModel")
save_file({name: output.contiguous() for name, output in outputs.items()}, sys.argv[4])
"""


@pytest.fixture
def models(nlvr2_config, randomised, tiny_processor, tmp_path):
    """A model of every class, saved with its processor in a folder of the class's name."""
    nlvr2_config.id2label = {0: "no", 1: "yes"}
    models = {name: randomised(getattr(modeling_rmcl, name)(nlvr2_config)) for name in CLASSES}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tiny_processor.save_pretrained(tmp_path / name)
    return models


@pytest.fixture
def expected(models, tiny_processor, tmp_path):
    """What the models say of a picture."""
    pixels = torch.randint(256, (32, 48, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    picture.save(tmp_path / "picture.png")
    inputs = tiny_processor(picture, TEXTS[0], return_tensors="pt")
    two = {key: torch.stack([inputs[key]] * 2, dim=1) for key in ("pixel_values", "pixel_mask")}
    with torch.no_grad():
        outputs = {
            "v1": models["RMCLViltModel"](**inputs).pooler_output,
            "RMCLViltForPreTraining": models["RMCLViltForPreTraining"](**inputs).embeds,
            "RMCLViltForImagesAndTextClassification": models["RMCLViltForImagesAndTextClassification"](
                **{**inputs, **two}
            ).logits,
        }
        for name in CLASSES.keys() - outputs.keys() - {"RMCLViltModel"}:
            outputs[name] = models[name](**inputs).logits
        pairs = tiny_processor([picture] * 2, TEXTS, padding=True, return_tensors="pt")
        scores = models["RMCLViltForImageAndTextRetrieval"](**pairs).logits
    # Pooled is tanh(Wx + b), and of the newer revision, in which the weight was negated, tanh(b - Wx).
    bias = models["RMCLViltModel"].pooler.dense.bias.detach()
    outputs["RMCLViltModel"] = torch.tanh(2 * bias - torch.atanh(outputs["v1"]))
    outputs["ranked"] = scores[:, 0].softmax(dim=0)
    outputs["answered"] = outputs["RMCLViltForQuestionAnswering"][0].sigmoid()
    outputs["again"] = outputs["RMCLViltModel"]
    return outputs


def assert_same_outputs(file, expected):
    outputs = load_file(file)
    assert outputs.keys() == expected.keys()
    for name, output in outputs.items():
        assert_close(output, expected[name], msg=lambda told, name=name: f"{name}: {told}")


def test_pushed_models_load_by_id_without_the_package_and_with_it(
    expected, loopback_hub, run_against_hub, tmp_path
):
    classes, texts = json.dumps(CLASSES), json.dumps(TEXTS)
    run_against_hub(PUSH + READ, classes, texts, "{}", "with.safetensors")
    trust, fresh = json.dumps({"trust_remote_code": True}), {"HF_HOME": str(tmp_path / "fresh")}
    run_against_hub(WITHOUT_PACKAGE + READ, classes, texts, trust, "without.safetensors", environment=fresh)
    assert_same_outputs(tmp_path / "without.safetensors", expected)
    del expected["answered"], expected["again"]
    assert_same_outputs(tmp_path / "with.safetensors", expected)
    api = HfApi(endpoint=loopback_hub.endpoint, token=loopback_hub.token("user"))
    for name in (*CLASSES, "again"):
        files = set(api.list_repo_files(f"user/{name}"))
        assert files >= {"config.json", "model.safetensors", "modeling_rmcl_vilt.py", "vqa_pipeline.py"}
        assert not [file for file in files if file.endswith((".bin", ".pt", ".pth", ".pkl"))]
