"""Saved folders: which class they load as, what they carry, and what is filled in."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    ViltProcessor,
)

from rmcl_hub.modeling_rmcl import (
    RMCLViltConfig,
    RMCLViltForImageAndTextRetrieval,
    RMCLViltForImagesAndTextClassification,
    RMCLViltForMaskedLM,
    RMCLViltForPreTraining,
    RMCLViltForQuestionAnswering,
    RMCLViltModel,
)

AUTO_CLASSES = [
    (AutoModel, RMCLViltModel),
    (AutoModelForPreTraining, RMCLViltForPreTraining),
    (AutoModelForMaskedLM, RMCLViltForMaskedLM),
    (AutoModelForVisualQuestionAnswering, RMCLViltForQuestionAnswering),
    (AutoModelForSequenceClassification, RMCLViltForImagesAndTextClassification),
    (AutoModelForNextSentencePrediction, RMCLViltForImageAndTextRetrieval),
    (AutoModelForZeroShotImageClassification, RMCLViltForImageAndTextRetrieval),
]


def fields(config):
    """What describes the model, without what saving adds."""
    added = ("_name_or_path", "architectures", "dtype", "torch_dtype")
    return {name: value for name, value in config.to_dict().items() if name not in added}


@pytest.mark.parametrize(("auto_class", "model_class"), AUTO_CLASSES)
def test_round_trip_through_the_auto_class(auto_class, model_class, nlvr2_config, randomised, tmp_path):
    nlvr2_config.projector, nlvr2_config.itc_weight, nlvr2_config.barlow_lambda = "barlow_twins", 0.5, 0.01
    model = randomised(model_class(nlvr2_config))
    model.save_pretrained(tmp_path)
    reloaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(reloaded) is model_class
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    state = reloaded.state_dict()
    for name, value in model.state_dict().items():
        if name != "mlm_score.bias":  # receives the decoder's bias on saving
            assert_close(state[name], value, msg=name)
    assert fields(reloaded.config) == fields(nlvr2_config)
    assert type(AutoConfig.from_pretrained(tmp_path)) is RMCLViltConfig


def test_processor_round_trip(tiny_config, tiny_processor, tmp_path):
    RMCLViltModel(tiny_config).save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is ViltProcessor
    images = [torch.zeros(3, 32, 64, dtype=torch.uint8), torch.zeros(3, 48, 32, dtype=torch.uint8)]
    inputs = processor(images, ["a red dog", "a cat"], padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(tmp_path)
    assert model(**inputs).pooler_output.isfinite().all()


@pytest.mark.parametrize(("_", "model_class"), AUTO_CLASSES)
@pytest.mark.parametrize("projector", ["moco", "barlow_twins"])
def test_what_a_checkpoint_lacks_is_initialised(_, model_class, projector, nlvr2_config, tmp_path):
    """Models are built without memory and filled later."""
    RMCLViltModel(nlvr2_config).save_pretrained(tmp_path)
    config = RMCLViltConfig.from_pretrained(tmp_path, projector=projector, itc_weight=0.5)
    torch.use_deterministic_algorithms(True)  # makes torch.empty return NaN
    try:
        model = model_class.from_pretrained(tmp_path, config=config)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        assert value.device.type == "cpu", name
        assert value.isfinite().all(), name
        assert value.abs().max() < 10, name
        if name.endswith("weight") and value.ndim > 1:
            assert value.std().item() == pytest.approx(0.02, rel=0.35), name
        if name.endswith("running_var"):
            assert (value == 1).all(), name
        if name.endswith("bias"):
            assert (value == 0).all(), name


def test_image_positions_start_at_random(tiny_config):
    """All-zero positions would leave a model trained from scratch without a notion of place."""
    embeddings = RMCLViltModel(tiny_config).embeddings
    assert embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.35)
    assert embeddings.cls_token.std().item() == pytest.approx(0.02, rel=0.5)


def test_every_folder_names_every_class(tiny_config, tmp_path):
    RMCLViltForQuestionAnswering(tiny_config).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", *(auto_class.__name__ for auto_class, _ in AUTO_CLASSES)}
    for reference in auto_map.values():
        assert (tmp_path / f"{reference.split('.')[0]}.py").is_file()


REMOTE = """
    import json, sys
    import torch, transformers
    sys.modules["rmcl_hub"] = None  # any import of the package fails
    folder = sys.argv[1]
    try:
        transformers.AutoModel.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        print(json.dumps("refused" if "trust_remote_code" in str(error) else str(error)))
    batch = torch.load(f"{folder}/batch.pt")
    for name in json.loads(open(f"{folder}/config.json").read())["auto_map"]:
        loaded = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
        result = [name, type(loaded).__name__, type(loaded).__module__.split(".")[0]]
        if name == "AutoModelForPreTraining":
            loaded.eval()
            result.append(loaded(**batch).embeds.tolist())
            loaded.save_pretrained(f"{folder}/again")
            loaded = transformers.AutoModel.from_pretrained(f"{folder}/again", trust_remote_code=True)
            result.append(loaded.eval()(**batch).pooler_output.tolist())
        print(json.dumps(result))
"""


def test_folder_loads_where_the_package_is_not_installed(nlvr2_config, mixed_batch, randomised, tmp_path):
    model = randomised(RMCLViltForPreTraining(nlvr2_config))
    model.save_pretrained(tmp_path)
    torch.save(mixed_batch, tmp_path / "batch.pt")
    run = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(REMOTE), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    refusal, *results = [json.loads(line) for line in run.stdout.splitlines()]
    assert refusal == "refused"
    expected = {auto_class.__name__: model_class.__name__ for auto_class, model_class in AUTO_CLASSES}
    assert {r[0]: r[1] for r in results} == expected | {"AutoConfig": "RMCLViltConfig"}
    assert {r[2] for r in results} == {"transformers_modules"}
    (embeds, pooled) = next(r[3:] for r in results if r[0] == "AutoModelForPreTraining")
    assert_close(torch.tensor(embeds), model(**mixed_batch).embeds)
    assert_close(torch.tensor(pooled), model.vilt(**mixed_batch).pooler_output)
