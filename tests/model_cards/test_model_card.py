import re

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import ViltImageProcessor, ViltProcessor

from rmcl_hub.model_cards.model_card import render_card, write_card
from rmcl_hub.modeling_rmcl import RMCLViltModel


def overall(results, attack="pgd-4", model="rmcl"):
    return results["models"][model]["tasks"]["VQA"]["frozen"][attack]["overall"]


def test_metadata_is_what_the_hub_reads(results, tmp_path):
    path = write_card(results, tmp_path / "my-model")
    assert path == tmp_path / "my-model" / "README.md"
    card = ModelCard.load(path)
    assert card.data.library_name == "transformers"
    assert "adversarial-robustness" in card.data.tags
    found = {entry.metric_name: entry.metric_value for entry in card.data.eval_results}
    numbers = overall(results)
    assert found["robust accuracy (pgd-4)"] == round(numbers["robust_accuracy"]["value"], 4)
    assert found["clean accuracy"] == round(numbers["clean_accuracy"]["value"], 4)
    header = yaml.safe_load(path.read_text().split("---")[1])
    assert header["model-index"][0]["name"] == "RMCL"


def test_tables_hold_the_numbers_of_the_results(results):
    text = render_card(results, model="rmcl", repo_id="me/model").text
    cells = [
        f"{100 * rate['value']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
        for rate in (overall(results, model=key)["attack_success_rate"] for key in ("control", "rmcl"))
    ]
    gain = results["comparisons"][0]["differences"]["attack_success_rate"]
    difference = f"{100 * gain['value']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
    assert f"| pgd-4 | attack success | {cells[0]} | {cells[1]} | {difference} |" in text
    assert "| openpairs, text to image | 12 | 1 | 100.0 [75.8, 100.0] | 8.3 |" in text
    assert all(f"- {row['verdict']}" in text for row in results["comparisons"])


def test_card_of_the_control_makes_no_comparison(results):
    text = render_card(results, model="control", repo_id="me/model").text
    assert "### VQA, frozen" not in text
    assert text.lstrip().startswith("# Continued")


def test_limits_and_loading_are_said(results):
    text = render_card(results, model="rmcl", repo_id="me/model").text
    assert "trained from scratch on emoji drawings" in text
    assert "substitute for the\n  counter-fitted vectors" in text
    assert "import rmcl_hub" in text
    assert 'from_pretrained("me/model", trust_remote_code=True)' in text
    assert "- The pictures are drawings." in text


def test_loading_instructions_work(results, tiny_config, tiny_tokenizer, tmp_path):
    """The first code block of the card, as written, on a saved folder."""
    folder = tmp_path / "model"
    RMCLViltModel(tiny_config).save_pretrained(folder)
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    ViltProcessor(image_processor=images, tokenizer=tiny_tokenizer).save_pretrained(folder)
    write_card(results, folder, repo_id=str(folder))
    block = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    names = {}
    exec(block, names)  # noqa: S102
    assert type(names["model"]) is RMCLViltModel
    assert names["processor"].tokenizer.get_vocab() == tiny_tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            ("models", "rmcl", "tasks", "VQA", "frozen", "pgd-4", "overall", "robust_accuracy"),
            "robust_accuracy",
        ),
        (
            ("models", "control", "tasks", "VQA", "frozen", "words"),
            r"models\.Continued\.tasks\.VQA\.frozen\.words",
        ),
        (("models", "control", "retention"), r"models\.Continued\.retention"),
        (("revision", "data"), r"needs revision\.data"),
        (("seeds",), "results lack seeds"),
    ],
)
def test_missing_number_is_named(results, tmp_path, path, message):
    *parents, last = path
    place = results
    for key in parents:
        place = place[key]
    del place[last]
    with pytest.raises(ValueError, match=message):
        write_card(results, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_model(results):
    with pytest.raises(
        ValueError, match="there is no model 'barlow' in the results; they hold control, rmcl"
    ):
        render_card(results, model="barlow", repo_id="x")
