"""The card says what the results files say, all of it and nothing else."""

import copy
import hashlib
import json
import re
import shutil
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from rmcl_hub import modeling_rmcl
from rmcl_hub.evaluation.provenance import model_digest
from rmcl_hub.evaluation.retrieval import recall_numbers
from rmcl_hub.model_cards import refusals
from rmcl_hub.model_cards.card_sources import CardSources, ResultsFile, collect_sources, recorded_sources
from rmcl_hub.model_cards.model_card import check_card, render_card, write_card
from rmcl_hub.model_cards.model_heads import HEADS, digest_as, head_of
from rmcl_hub.model_cards.staged_repository import StagedRepository, describe_file

ROOT = Path(__file__).parents[2]
ROBUST = "threats.linf-4.numbers.overall.robust_accuracy"
CONTAMINATION = "the test pictures were trained on"


@pytest.fixture
def results_folder(results, save_record):
    return save_record(results, "experiment", "results.json")


@pytest.fixture(scope="module")
def written_card(question_model, session_results, tmp_path_factory):
    """A model with a card from an experiment and an evaluation; for reading only."""
    work = tmp_path_factory.mktemp("written")
    record = json.loads((ROOT / "tests" / "evaluation" / "evaluation_record.json").read_text())
    record["model"]["digest"] = question_model[1]
    (work / "evaluation.json").write_text(json.dumps(record))
    (work / "results.json").write_text(json.dumps(session_results))
    shutil.copytree(question_model[0], work / "model")
    return write_card(work / "model", results=work, evaluations=[work], repo_id="me/robust")


@pytest.fixture
def card(written_card, tmp_path):
    """The same in a folder to change."""
    return Path(shutil.copytree(written_card.parent, tmp_path / "carded")) / "README.md"


@pytest.fixture
def retrieval_record(question_model):
    """A record of `rmcl-hub retrieve`, clean and attacked, under a contaminated protocol."""
    scores = np.random.default_rng(0).random((12, 12)) + np.eye(12)
    numbers = recall_numbers(scores, np.eye(12, dtype=bool))
    attacked = {**recall_numbers(-scores, np.eye(12, dtype=bool)), "threat_model_hash": "0" * 16}
    return {
        "format": "rmcl-hub-retrieval/1",
        "date": "2026-11-24",
        "protocol": {
            "name": "thesis",
            "corpus": "coco_captions",
            "splits": ["test"],
            "galleries": [{"size": 12, "count": 1}],
            "contamination": CONTAMINATION,
            "location": "coco",
        },
        "model": {"name": "x", "class": "RMCLViltForQuestionAnswering", "digest": question_model[1]},
        "numbers": {
            "scorer": "cross",
            "forwards": 144,
            "galleries": [{"size": 12, "count": 1, "text_to_image": numbers, "image_to_text": numbers}],
        },
        "attacked": {
            "side": "query",
            "directions": {"image_to_text": {**numbers, "attacks": {"linf-4": attacked}}},
        },
        "seconds": 3.2,
        "code": {"revision": "abc", "versions": {"torch": "2.0"}},
    }


def overall(results, attack="pgd-4", model="rmcl"):
    return results["models"][model]["tasks"]["VQA"]["frozen"][attack]["overall"]


def shown(rate):
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * rate[key] for key in ("value", "low", "high")))


def section(text, heading):
    """What stands under a heading, to the next one of its level or above."""
    level = heading.split()[0]
    return re.split(rf"^#{{1,{len(level)}}} ", text.split(f"\n{heading}\n")[1], flags=re.MULTILINE)[0]


def tables(text):
    """Every table as a list of rows of cells."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [
        [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        for block in blocks
    ]


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_metadata_is_what_the_hub_reads(card, model_record):
    data = ModelCard.load(card).data
    assert (data.library_name, data.license, data.language) == ("transformers", "apache-2.0", "en")
    assert data.pipeline_tag == "visual-question-answering"
    assert "adversarial-robustness" in data.tags
    found = {entry.metric_name: entry.metric_value for entry in data.eval_results}
    numbers = model_record["threats"]["linf-4"]["numbers"]["overall"]
    assert found["robust accuracy (linf-4)"] == round(100 * numbers["robust_accuracy"]["value"], 2)
    assert found["clean accuracy"] == round(100 * numbers["clean_accuracy"]["value"], 2)
    header = yaml.safe_load(card.read_text().split("---")[1])
    assert header["model-index"][0]["name"] == "robust"
    assert {row["task"]["type"] for row in header["model-index"][0]["results"]} == {data.pipeline_tag}


def test_tables_hold_the_audited_numbers_with_their_verdicts(card, model_record):
    part = section(card.read_text(), "### vqa: embedded openpairs, test")
    header, _, *rows = tables(part)[0]
    assert header == [
        "model",
        "threat model",
        "clean accuracy",
        "robust accuracy",
        "attack success",
        "verdict",
    ]
    for row, (name, threat) in zip(rows, model_record["threats"].items(), strict=True):
        numbers = threat["numbers"]["overall"]
        rates = [numbers[key] for key in ("clean_accuracy", "robust_accuracy", "attack_success_rate")]
        assert row == ["this model", name, *map(shown, rates), "trusted"]
    assert "64 examples (a random 64 of 1296 examples, seed 0)" in part
    checks = model_record["threats"]["linf-4"]["checks"]
    passed = sum(check["status"] == "pass" for check in checks)
    header, _, *rows = tables(part)[1]
    assert rows[0][header.index("pass")] == str(passed)
    assert sum(map(int, rows[0][2:])) == len(checks) == 28


def test_tables_hold_the_numbers_of_the_experiment(card, results):
    part = section(card.read_text(), "### Experiment: VQA, frozen")
    rates = [shown(overall(results, model=key)["attack_success_rate"]) for key in ("control", "rmcl")]
    gain = results["comparisons"][0]["differences"]["attack_success_rate"]
    difference = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * gain[key] for key in ("value", "low", "high")))
    assert ["pgd-4", "attack success", *rates, difference] in tables(part)[0]
    assert "Pooled over the models of seeds 0, 1; the weights here are those of the first one" in part
    assert [row[1] for row in tables(part)[0]].count("clean accuracy") == 1
    for row in results["comparisons"][:2]:
        assert row["verdict"] in part.replace("\\", "")


def test_every_recall_stands_beside_its_gallery(card):
    header, _, *rows = tables(section(card.read_text(), "### Experiment: retrieval"))[0]
    assert header[:5] == ["gallery", "direction", "size", "queries", "K"]
    assert ["openpairs", "text to picture", "12", "12", "1", "100.0 [75.8, 100.0]", "8.3"] in rows


def test_retrieval_names_protocol_contamination_and_attack(
    model_folder, retrieval_record, model_record, save_record
):
    card = write_card(
        model_folder,
        evaluations=[save_record(model_record, "linf")],
        retrievals=[save_record(retrieval_record, "retrieval", "retrieval.json")],
    )
    part = section(card.read_text(), "### retrieval: thesis protocol of coco\\_captions, test (contaminated)")
    assert CONTAMINATION in part
    clean, attacked = tables(part)
    assert ["1 x 12 pictures", "text to picture", "12", "12", "1", "100.0 [75.8, 100.0]", "8.3"] in clean
    assert ["picture to text", "linf-4", "12", "12", "1", "0.0 [0.0, 24.2]", "8.3"] in attacked
    assert "coco" not in section(card.read_text(), "### vqa: embedded openpairs, test")
    check_card(model_folder)
    (model_folder / "results" / "retrieval.json").unlink()
    first = (
        r"numbers\.galleries\[0\]\.text_to_image\.recall\.1\.value of results/retrieval\.json, but that file"
    )
    with pytest.raises(ValueError, match=first):
        check_card(model_folder)


def test_two_protocols_have_two_tables(model_folder, model_record, save_record):
    other = copy.deepcopy(model_record)
    other["protocol"] |= {"corpus": "vqav2", "name": "thesis", "contamination": CONTAMINATION}
    folders = [save_record(model_record, "openpairs"), save_record(other, "vqav2")]
    text = write_card(model_folder, evaluations=folders).read_text()
    headings = ["### vqa: embedded openpairs, test", "### vqa: thesis protocol of vqav2, test (contaminated)"]
    assert [len(tables(section(text, heading))[0]) for heading in headings] == [4, 4]
    assert CONTAMINATION in section(text, headings[1])
    assert CONTAMINATION not in section(text, headings[0])
    assert (model_folder / "results" / "evaluation-2.json").is_file()


def test_an_unreliable_number_stays_in_the_card_only(model_folder, model_record, save_record):
    threat = model_record["threats"]["linf-4"]
    reason = "rule 12, iterations help: 5 of 64 fewer with more"
    threat |= {"publishable": False, "verdict": "unreliable", "reasons": [reason]}
    card = write_card(model_folder, evaluations=[save_record(model_record, "linf")], repo_id="me/robust")
    part = section(card.read_text(), "### vqa: embedded openpairs, test")
    assert tables(part)[0][2][-1] == "unreliable, not to be published"
    assert f"`linf-4` is unreliable and not to be published:\n\n- {reason}" in part
    names = [entry.metric_name for entry in ModelCard.load(card).data.eval_results]
    assert "robust accuracy (words-20pct)" in names
    assert not [name for name in names if "linf-4" in name]
    published = yaml.safe_load((model_folder / ".eval_results" / "openpairs.yaml").read_text())
    assert "vqa_linf-4_robust_accuracy" not in [entry["dataset"]["task_id"] for entry in published]
    check_card(model_folder)


def test_the_control_stands_below_the_model(model_folder, model_record, save_record):
    control = copy.deepcopy(model_record)
    control["model"]["digest"] = "0" * 16
    control["threats"]["linf-4"]["numbers"]["overall"]["robust_accuracy"] |= {"value": 0.125, "low": 0.1}
    folders = save_record(model_record, "mine"), save_record(control, "control")
    card = write_card(model_folder, evaluations=folders[:1], control=folders[1])
    rows = tables(section(card.read_text(), "### vqa: embedded openpairs, test"))[0][2:]
    assert [row[:2] for row in rows] == [
        [model, threat] for model in ("this model", "control") for threat in ("linf-4", "words-20pct")
    ]
    assert rows[2][3] == "12.5 [10.0, 48.2]"
    assert (model_folder / "results" / "control-evaluation.json").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("data", "digest", "0" * 16), "control-evaluation.json is about other examples"),
        (("protocol", "name", "thesis"), "numbers of different protocols are never mixed"),
        (("model", "class", "RMCLViltForQuestionAnswering"), "is about this model itself"),
    ],
)
def test_a_control_that_cannot_be_compared_is_refused(
    model_folder, model_record, save_record, change, message
):
    control = copy.deepcopy(model_record)
    part, key, value = change
    control[part][key] = value
    folders = save_record(model_record, "mine"), save_record(control, "control")
    with pytest.raises(ValueError, match=message):
        write_card(model_folder, evaluations=folders[:1], control=folders[1])


def test_the_card_of_the_control(model_folder, results_folder, results):
    text = write_card(model_folder, results=results_folder, model="control", repo_id="me/plain").read_text()
    assert text.split("---")[2].lstrip().startswith("# plain")
    assert tables(section(text, "### Experiment: VQA, frozen"))[0][0][2:4] == ["Continued", "RMCL"]
    recall = results["models"]["control"]["retrieval"]["openpairs"]["text_to_image"]["recall"]["1"]
    assert shown(recall) in section(text, "### Experiment: retrieval")


def test_without_an_audit_nothing_is_machine_readable(model_folder, results_folder):
    card = write_card(model_folder, results=results_folder, repo_id="me/robust")
    assert ModelCard.load(card).data.eval_results is None
    assert not (model_folder / ".eval_results").exists()
    assert "Not audited" in card.read_text()


@pytest.mark.parametrize("name", HEADS)
def test_loading_instructions_work(name, save_model, results_folder):
    """The first code block of the card, as written, on a saved folder."""
    folder = save_model(name)
    card = write_card(folder, results=results_folder, repo_id=str(folder))
    block = re.search(r"```python\n(.*?)```", card.read_text(), re.DOTALL)[1]
    names = {}
    exec(block, names)  # noqa: S102
    assert type(names["model"]).__name__ == name
    assert len(names["processor"].tokenizer.get_vocab()) > 50
    assert f'{HEADS[name].auto_class}.from_pretrained("{folder}", trust_remote_code=True)' in card.read_text()
    assert ModelCard.load(card).data.pipeline_tag == HEADS[name].pipeline_tag
    assert ("= pipeline(" in card.read_text()) == (HEADS[name].pipeline is not None)


def test_limits_and_notes_are_said(card):
    text = section(card.read_text(), "## Limits")
    assert "bounds robustness from above only" in text
    assert "figures on drawings say nothing about photographs" in text
    assert "- The pictures are drawings." in text


def test_the_citation_is_that_of_the_software(card):
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    text = section(card.read_text(), "## Licence and citation")
    thesis = cited["references"][0]
    author = thesis["authors"][0]
    for part in (
        cited["title"],
        cited["version"],
        cited["authors"][0]["name"],
        cited["date-released"][:4],
        thesis["title"],
        f"{author['family-names']}, {author['given-names']}",
        thesis["institution"]["name"],
        str(thesis["year"]),
    ):
        assert f"{{{part}}}" in text


def test_pictures_are_files_with_a_text_for_those_who_do_not_see_them(card, model_record):
    pair = model_record["threats"]["linf-4"]["pairs"][0]
    picture = card.parent / "assets" / "evaluation-linf-4-attacked.png"
    assert picture.read_bytes() == b64decode(pair["attacked_picture"].split(",")[1])
    alternatives = re.findall(r"!\[(.*?)\]\((.*?)\)", card.read_text())
    assert [path for _, path in alternatives] == [
        f"assets/evaluation-linf-4-{kind}.png" for kind in ("clean", "perturbation", "attacked")
    ]
    assert all(len(text) > 20 for text, _ in alternatives)
    assert "words-20pct-clean" not in card.read_text(), "no pixel was changed"


def test_every_link_leads_to_a_file(card):
    links = re.findall(r"\]\((?!http)(.*?)\)", card.read_text())
    assert len(links) > 5
    assert all((card.parent / link).exists() for link in links)


def test_a_folder_with_its_card_may_be_pushed(card):
    refusals.check(StagedRepository.seal("robust", "model", card.parent))


def test_texts_of_the_data_cannot_break_the_page(model_folder, model_record, save_record):
    hostile = "a | b <script>alert(1)</script> [x](http://y) `c`\n# d"
    for threat in model_record["threats"].values():
        threat["pairs"][0]["text"] = hostile
    model_record["answers"] = ["|<b>"] * 17
    text = write_card(model_folder, evaluations=[save_record(model_record, "linf")]).read_text()
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "\\[x\\]" in text
    for table in tables(text):
        assert len({len(row) for row in table}) == 1, table
    assert "\n# d" not in text


def test_the_files_lie_beside_the_card_with_their_hashes(card, model_record, results, save_record):
    for name, record in (("evaluation.json", model_record), ("results.json", results)):
        data = (card.parent / "results" / name).read_bytes()
        assert json.loads(data) == record
        digest = hashlib.sha256(data).hexdigest()
        assert f"| [`results/{name}`](results/{name}) | `{digest}` |" in card.read_text()
    listed = json.loads((card.parent / "results" / "sources.json").read_text())
    assert f"{ROBUST}.value" in listed["files"]["results/evaluation.json"]["taken"]


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        (
            ("models", "rmcl", "tasks", "VQA", "frozen", "pgd-4", "overall", "robust_accuracy"),
            "models.rmcl.tasks.VQA.frozen.pgd-4.overall.robust_accuracy",
        ),
        (
            ("models", "control", "tasks", "VQA", "frozen", "words"),
            "models.control.tasks.VQA.frozen.words.overall.robust_accuracy",
        ),
        (("models", "control", "retention"), "models.control.retention.pgd-4.overall.clean_accuracy"),
        (
            ("comparisons", 0, "differences", "clean_accuracy", "low"),
            "comparisons[0].differences.clean_accuracy.low",
        ),
        (("revision", "data"), "revision.data"),
    ],
)
def test_a_missing_number_is_named(results, model_folder, save_record, path, missing):
    *parents, last = path
    place = results
    for key in parents:
        place = place[key]
    del place[last]
    before = sorted(model_folder.rglob("*"))
    message = f"the model card needs {missing} of results/results.json, which the file lacks; measure it with"
    with pytest.raises(ValueError, match=re.escape(message)):
        write_card(model_folder, results=save_record(results, "experiment", "results.json"))
    assert sorted(model_folder.rglob("*")) == before


def test_a_number_that_an_evaluation_lacks_is_named(model_folder, model_record, save_record):
    del model_record["threats"]["linf-4"]["numbers"]["overall"]["robust_accuracy"]
    with pytest.raises(ValueError, match=rf"results/evaluation\.json: (.|\n)*{ROBUST}: is missing"):
        write_card(model_folder, evaluations=[save_record(model_record, "linf")])


def test_results_of_another_layout_are_named(results, model_folder, save_record):
    del results["seeds"]
    with pytest.raises(ValueError, match=r"results/results\.json: results lack seeds"):
        write_card(model_folder, results=save_record(results, "experiment", "results.json"))
    with pytest.raises(ValueError, match=r"retrieval\.json: format is None, expected 'rmcl-hub-retrieval/1'"):
        write_card(model_folder, retrievals=[save_record({}, "retrieval", "retrieval.json")])


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("results.json", "models.control.tasks.VQA.frozen.pgd-4.overall.clean_accuracy.value"),
        ("evaluation.json", "threats.linf-4.numbers.overall.clean_accuracy.value"),
    ],
)
@pytest.mark.parametrize("again", [write_card, check_card])
def test_without_a_results_file_the_card_is_not_rendered(card, name, first, again):
    text = card.read_text()
    (card.parent / "results" / name).unlink()
    message = (
        f"the model card needs {first} of results/{name}, but that file is gone; put the file of SHA-256"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        again(card.parent)
    assert card.read_text() == text


@pytest.mark.parametrize("again", [write_card, check_card])
def test_a_results_file_that_changed_is_noticed(card, again):
    rewrite(card.parent / "results" / "evaluation.json", "0.4375", "0.9375")
    with pytest.raises(ValueError, match=r"results/evaluation\.json has changed since the model card was"):
        again(card.parent)


def test_a_record_of_another_model_is_refused(model_folder, model_record, retrieval_record, save_record):
    mine, other = model_record["model"]["digest"], "0123456789abcdef"
    for record, file in ((model_record, "evaluation.json"), (retrieval_record, "retrieval.json")):
        record["model"]["digest"] = other
        kind = {"evaluation.json": "evaluations", "retrieval.json": "retrievals"}[file]
        with pytest.raises(
            ValueError, match=rf"results/{file} is about another model: .* {other}, .* {mine}"
        ):
            write_card(model_folder, **{kind: [save_record(record, "other", file)]})
    assert not (model_folder / "README.md").exists()


def test_a_record_of_other_weights_is_noticed_later(card, save_model):
    other = save_model("RMCLViltForQuestionAnswering")
    for file in ("config.json", "model.safetensors"):
        shutil.copy(other / file, card.parent / file)
    with pytest.raises(ValueError, match="is about another model"):
        check_card(card.parent)


def test_an_experiment_with_other_weights_is_refused(model_folder, results, save_record):
    own = describe_file(model_folder / "model.safetensors")["sha256"]
    results["models"]["rmcl"]["weights"] = ["0" * 64]
    with pytest.raises(ValueError, match=rf"results.json is about other weights: .* {own[:16]}.* 'rmcl'"):
        write_card(model_folder, results=save_record(results, "run", "results.json"))
    results["models"]["rmcl"]["weights"].append(own)
    assert write_card(model_folder, results=save_record(results, "run", "results.json")).is_file()


def test_the_class_of_a_record_must_be_one_of_ours(model_folder):
    with pytest.raises(ValueError, match="'CLIPModel' is no class of this package, which has RMCLViltModel"):
        digest_as(model_folder, "CLIPModel")


def test_digest_is_that_of_the_loaded_model(model_folder):
    model = modeling_rmcl.RMCLViltForQuestionAnswering.from_pretrained(model_folder)
    assert digest_as(model_folder, "RMCLViltForQuestionAnswering") == model_digest(model)
    assert digest_as(model_folder, "RMCLViltModel") != model_digest(model)


def test_rendered_again_it_is_the_same(card):
    text = card.read_text()
    check_card(card.parent)
    assert write_card(card.parent) == card
    assert card.read_text() == text
    renamed = write_card(card.parent, repo_id="you/other").read_text()
    assert "you/other" in renamed
    assert "me/robust" not in renamed


def test_a_former_card_leaves_nothing_behind(card, results_folder):
    other = card.parent / "results" / "mine.txt"
    other.write_text("not of the card")
    write_card(card.parent, results=results_folder)
    left = {path.relative_to(card.parent).as_posix() for path in card.parent.rglob("*") if path.is_file()}
    assert not {name for name in left if "evaluation" in name or name.startswith(".eval_results")}
    assert other.exists()
    check_card(card.parent)


def test_sentences_without_numbers_may_be_added_by_hand(card):
    rewrite(card, "## Limits", "It likes drawings of beans.\n\n## Limits")
    check_card(card.parent)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("README.md", "| 35.9 [25.3, 48.2] |", "| 85.9 [25.3, 48.2] |", r"says .*85\.9.* but .*\| 35\.9"),
        (
            "README.md",
            "metric_value|value: 35.94",
            "value: 95.94",
            r"says 'value: 95\.94'.* but 'value: 35\.94'",
        ),
        (
            "README.md",
            "## Limits",
            "It is 99 % robust.\n\n## Limits",
            "says 'It is 99 % robust.', which no results",
        ),
        ("README.md", "| pgd-4 | robust accuracy |", "<!-- -->", r"README\.md says '<!-- -->"),
        (
            ".eval_results/openpairs.yaml",
            "value: 35.94",
            "value: 95.94",
            r"openpairs\.yaml is not what the res",
        ),
        ("results/sources.json", "numbers.overall.robust", "numbers.x.robust", r"sources\.json is not what"),
    ],
)
def test_a_number_that_was_changed_by_hand_is_refused(card, file, old, new, message):
    rewrite(card.parent / file, old.split("|")[-1] if old.startswith("metric") else old, new)
    with pytest.raises(ValueError, match=message):
        check_card(card.parent)


def test_a_row_that_was_left_out_is_refused(card):
    text = card.read_text()
    row = next(line for line in text.splitlines() if line.startswith("| this model | words-20pct |"))
    card.write_text(text.replace(row + "\n", "", 1))
    with pytest.raises(ValueError, match=r"README\.md lacks '\| this model \| words-20pct \|"):
        check_card(card.parent)


def test_rows_that_changed_places_are_refused(card):
    lines = card.read_text().splitlines(keepends=True)
    first = next(place for place, line in enumerate(lines) if line.startswith("| this model |"))
    lines[first], lines[first + 1] = lines[first + 1], lines[first]
    card.write_text("".join(lines))
    with pytest.raises(ValueError, match=r"which no results file says|lacks"):
        check_card(card.parent)


def test_a_picture_that_was_swapped_is_refused(card):
    (card.parent / "assets" / "evaluation-linf-4-clean.png").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"assets/evaluation-linf-4-clean\.png is not what"):
        check_card(card.parent)


def test_what_is_no_card_is_said(model_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no README\.md; write it with `rmcl-hub card`"):
        check_card(model_folder)
    (model_folder / "README.md").write_text("# By hand\n")
    with pytest.raises(FileNotFoundError, match=r"sources\.json does not exist, so nothing says what"):
        check_card(model_folder)
    with pytest.raises(FileNotFoundError, match="holds no saved model"):
        write_card(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"sources\.json does not exist"):
        write_card(model_folder)


def test_what_cannot_be_measured_is_said(model_folder, model_record, results_folder, save_record, tmp_path):
    with pytest.raises(ValueError, match=r"there are none; give it a results\.json"):
        write_card(model_folder, control=save_record(model_record, "control"))
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; measure with `rmcl-hub evaluate`"):
        write_card(model_folder, evaluations=[tmp_path / "nowhere"])
    with pytest.raises(
        ValueError, match=r"no model 'barlow' in results/results\.json, which holds control, rmcl"
    ):
        write_card(model_folder, results=results_folder, model="barlow")
    config = model_folder / "config.json"
    rewrite(config, "RMCLViltForQuestionAnswering", "ViltModel")
    with pytest.raises(ValueError, match="names the class 'ViltModel'; cards are written for RMCLViltModel"):
        head_of(model_folder)


def test_a_record_of_another_format_is_refused(card):
    rewrite(card.parent / "results" / "sources.json", "rmcl-hub-card/1", "rmcl-hub-card/0")
    with pytest.raises(
        ValueError, match="has format 'rmcl-hub-card/0', this version reads 'rmcl-hub-card/1'"
    ):
        recorded_sources(card.parent)


def test_an_undefined_rate_is_no_missing_one(results):
    overall(results)["attack_success_rate"]["value"] = None
    results["comparisons"][0]["differences"]["attack_success_rate"] = None
    file = ResultsFile("results/results.json", "results", json.dumps(results).encode())
    place = ("models", "rmcl", "tasks", "VQA", "frozen", "pgd-4", "overall", "attack_success_rate")
    assert file.rate(*place) == "n/a"
    assert file.points("comparisons", 0, "differences", "attack_success_rate") == "n/a"
    text = render_card(CardSources("x", "rmcl", [file]), HEADS["RMCLViltModel"])["README.md"].decode()
    assert re.search(r"\| pgd-4 \| attack success \| \d.* \| n/a \| n/a \|", text)


def test_only_numbers_are_listed_as_taken(results_folder):
    file = collect_sources({"results": [results_folder]}, model="rmcl", repo_id="x").files[0]
    assert file.get("title") == "Quickstart <report>"
    assert file.get("seeds", 1) == 1
    assert list(file.taken) == ["seeds[1]"]
