import hashlib
import json
from base64 import b64decode, b64encode
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import jsonschema
import pytest
from PIL import Image
from referencing import Registry, Resource
from safetensors.torch import load_file, save_file

from rmcl_hub.evaluation.evaluation_schema import evaluation_schema, schema_errors
from rmcl_hub.evaluation.outcomes import load_outcomes, save_outcomes, summarise
from rmcl_hub.evaluation.robustness import read_evaluation
from rmcl_hub.model_cards.evaluation_gates import check_evaluation
from rmcl_hub.model_cards.leaderboard_rows import rows_of
from rmcl_hub.model_cards.row_checks import SCHEMA_FILE, refusal, row_file, row_id, row_text
from rmcl_hub.model_cards.staged_repository import StagedRepository

MODEL = "someone/rmcl-vilt"


@pytest.fixture
def change_record(evaluation_folder):
    """Function from a change of `evaluation.json` to the folder that holds it."""

    def change(edit):
        path = evaluation_folder / "evaluation.json"
        record = json.loads(path.read_text())
        edit(record)
        path.write_text(json.dumps(record))
        return evaluation_folder

    return change


@pytest.fixture
def change_outcomes(evaluation_folder):
    """Function from a change of the list of outcomes to the folder that holds it."""

    def change(edit):
        path = evaluation_folder / "outcomes.parquet"
        save_outcomes(edit(load_outcomes(path)), path)
        return evaluation_folder

    return change


@pytest.fixture
def rows(evaluation_folder):
    return rows_of(evaluation_folder, model_repo=MODEL).accepted


@pytest.fixture
def row():
    """The row that the Space is tested with."""
    return json.loads((Path(__file__).parents[1] / "leaderboard" / "row.json").read_text())


def test_every_number_is_the_record_s(evaluation_folder):
    commit = "0123456789" * 4
    told = {"revision": commit, "recipe": "rmcl-moco-coco", "submitter": "someone"}
    found = rows_of(evaluation_folder, model_repo=MODEL, **told)
    content = (evaluation_folder / "evaluation.json").read_bytes()
    record = json.loads(content)
    assert found.refused == {}
    assert [row["threat"]["name"] for row in found.accepted] == ["linf-4", "words-20pct"]
    for row, threat in zip(found.accepted, record["threats"].values(), strict=True):
        overall = threat["numbers"]["overall"]
        assert row["numbers"] == {
            name: overall[name] for name in ("clean_accuracy", "robust_accuracy", "attack_success_rate")
        }
        assert row.get("curve") == threat["probes"].get("curve")
        assert row["threat"]["model"] == threat["threat_model"]
        for key in ("verdict", "reasons", "publishable", "checks", "cost"):
            assert row[key] == threat[key]
        assert sum(row["audit"].values()) == 28
        assert row["evaluation_sha256"] == hashlib.sha256(content).hexdigest()
        assert (row["model"]["repo"], row["model"]["revision"]) == (MODEL, commit)
        assert (row["recipe"], row["submitter"], row["control"]) == ("rmcl-moco-coco", "someone", None)
        assert [example["text"] for example in row["examples"]] == [pair["text"] for pair in threat["pairs"]]
        assert row["examples"][0]["right_answer"] == record["answers"][threat["pairs"][0]["label"]]
    assert "curve" in found.accepted[0]
    assert "curve" not in found.accepted[1]


def test_another_validator_reads_the_same_schema(rows):
    registry = Registry().with_resource("evaluation.schema.json", Resource.from_contents(evaluation_schema()))
    schema = json.loads(SCHEMA_FILE.read_text())
    validator = jsonschema.Draft202012Validator(schema, registry=registry)
    for row in rows:
        validator.validate(row)
        changed = {**row, "numbers": {**row["numbers"], "clean_accuracy": 0.5}}
        assert not validator.is_valid(changed)
        assert "numbers.clean_accuracy" in refusal(changed, schema_errors)


def test_the_id_names_model_task_protocol_and_threat_model(rows):
    first, second = rows
    assert first["id"] != second["id"]
    assert row_id({**first, "numbers": {}, "date": "2030-01-01"}) == first["id"]
    others = [{**first, "task": "nlvr2"}, {**first, "protocol": {**first["protocol"], "name": "thesis"}}]
    others += [{**first, "model": {**first["model"], "digest": "0" * 16}}]
    assert len({row_id(row) for row in others} | {first["id"]}) == 4
    assert row_file(first) == f"rows/{first['id']}.json"
    assert json.loads(row_text(first)) == first
    assert row_text(first).count("\n") == 1


def set_robust(record, value=0.9):
    record["threats"]["linf-4"]["numbers"]["overall"]["robust_accuracy"]["value"] = value


def set_part(record):
    attacks = record["threats"]["words-20pct"]["attacks"]
    next(iter(attacks.values()))["numbers"]["flip_rate"]["value"] = 0.5


def set_stratum(record):
    record["threats"]["linf-4"]["numbers"]["colour"]["clean_accuracy"]["high"] = 0.999


def set_epsilon(record):
    record["threats"]["linf-4"]["threat_model"]["epsilon"] = 8 / 255


def weaken_a_gate(record):
    record["threats"]["linf-4"]["checks"][17]["level"] = "flag"


def drop_an_example(record):
    record["data"]["num_examples"] = 63


def unname(record):
    record["protocol"].update(name="unnamed", corpus="unnamed", splits=[])


def mix_splits(record):
    record["protocol"].update(name="clean", corpus="vqav2", splits=["train_fit"])


def hide_contamination(record):
    splits = ["trainable_val", "rest_val"]
    record["protocol"].update(name="thesis", corpus="vqav2", splits=splits, contamination="")


def change_a_picture_s_text(record):
    record["threats"]["linf-4"]["pairs"][0]["adversarial_text"] = "another text"


def forget_a_field(record):
    del record["data"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            set_robust,
            r"evaluation.json says threats.linf-4.numbers.overall.robust_accuracy.value is 0.9, but",
        ),
        (set_part, r"attacks.geometry.flip_rate.value is 0.5, but outcomes.parquet gives 0\.\d"),
        (set_stratum, r"numbers.colour.clean_accuracy.high is 0.999"),
        (set_epsilon, r"is white-box attack on image: linf epsilon 0.03137 \(8/255\) with digest"),
        (weaken_a_gate, r"rule 18 of the audit of 'linf-4' is 'splits are apart', a gate, but the record"),
        (drop_an_example, r"64 outcomes of 'linf-4' with 64 different ids, the record has 63 examples"),
        (unname, r"the record names no protocol.*evaluate with `rmcl-hub evaluate`"),
        (mix_splits, r"protocols are mixed: clean of vqav2 has splits \['trainable_val', 'rest_val'\]"),
        (hide_contamination, r"protocols are mixed: thesis of vqav2 has contamination 'all test questions"),
        (
            change_a_picture_s_text,
            r"the picture of example 'q\d+' under 'linf-4' does not go with its outcome",
        ),
        (forget_a_field, r"data: is missing"),
    ],
)
def test_one_changed_field_of_the_record_is_found(change_record, edit, message):
    with pytest.raises(ValueError, match=message):
        rows_of(change_record(edit), model_repo=MODEL)


def first_of(outcomes, attack, **fields):
    return next(
        index
        for index, row in enumerate(outcomes)
        if row.attack == attack and all(getattr(row, name) == value for name, value in fields.items())
    )


def rescue(attack):
    """An outcome that the attack had broken says that the model held."""

    def edit(outcomes):
        index = first_of(outcomes, attack, clean_correct=True, adversarial_correct=False)
        row = outcomes[index]
        held = replace(row, adversarial_correct=True, adversarial_prediction=row.clean_prediction)
        return [*outcomes[:index], held, *outcomes[index + 1 :]]

    return edit


def contradict(outcomes):
    index = first_of(outcomes, "linf-4", clean_correct=True, adversarial_correct=True)
    return [
        *outcomes[:index],
        replace(outcomes[index], adversarial_correct=False),
        *outcomes[index + 1 :],
    ]


def rename(outcomes):
    index = first_of(outcomes, "linf-4")
    return [*outcomes[:index], replace(outcomes[index], id="q64"), *outcomes[index + 1 :]]


def leave_out(outcomes):
    return outcomes[1:]


def repeat_one(outcomes):
    return [outcomes[0], replace(outcomes[1], id=outcomes[0].id), *outcomes[2:]]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rescue("linf-4"), r"the outcome of example 'q\d+' under 'linf-4' is not the worst of its attacks"),
        (rescue("linf-4/pgd"), r"attacks.pgd.attack_success_rate.*but outcomes.parquet gives"),
        (contradict, r"one prediction before and after the attack, which is right in one and wrong in the"),
        (rename, r"the outcome of example 'q64' under 'linf-4' is not the worst"),
        (leave_out, r"outcomes.parquet has 63 outcomes of 'linf-4/[\w-]+' with 63 different ids"),
        (repeat_one, r"has 64 outcomes of 'linf-4/[\w-]+' with 63 different ids"),
    ],
)
def test_one_changed_outcome_is_found(change_outcomes, edit, message):
    with pytest.raises(ValueError, match=message):
        rows_of(change_outcomes(edit), model_repo=MODEL)


def test_an_outcome_changed_with_all_its_numbers_is_found(change_outcomes, change_record):
    """Whoever makes one example robust would have to do so under every attack."""
    folder = change_outcomes(rescue("linf-4"))

    def follow(record):
        rows = [row for row in load_outcomes(folder / "outcomes.parquet") if row.attack == "linf-4"]
        record["threats"]["linf-4"]["numbers"] = summarise({0: rows})["linf-4"]

    with pytest.raises(ValueError, match="is not the worst of its attacks"):
        rows_of(change_record(follow), model_repo=MODEL)


def test_a_published_evaluation_that_was_changed_is_found(evaluation_folder):
    """Even where all numbers agree still: its manifest holds the hash."""
    StagedRepository.seal("rmcl-vilt-evaluation", "dataset", evaluation_folder)
    assert len(rows_of(evaluation_folder, model_repo=MODEL).accepted) == 2
    path = evaluation_folder / "evaluation.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ValueError, match=r"evaluation.json has SHA-256 \w+, but hub-manifest.json beside it"):
        rows_of(evaluation_folder, model_repo=MODEL)


@pytest.mark.parametrize("name", ["evaluation.json", "outcomes.parquet"])
def test_a_missing_file_is_named(evaluation_folder, name):
    (evaluation_folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist; give a folder that `rmcl-hub"):
        rows_of(evaluation_folder, model_repo=MODEL)


def test_adversarial_examples_of_other_ids_are_found(evaluation_folder):
    file = next((evaluation_folder / "adversarial").glob("words-20pct-*.safetensors"))
    metadata = {"threat": "words-20pct", "ids": json.dumps([f"x{index}" for index in range(64)])}
    save_file(load_file(file), file, metadata=metadata)
    evaluation = read_evaluation(evaluation_folder)
    with pytest.raises(ValueError, match="adversarial examples of 'words-20pct' are of 64 ids that are not"):
        check_evaluation(evaluation, evaluation_folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="no adversarial examples of 'words-20pct'"):
        check_evaluation(evaluation, evaluation_folder)


@pytest.mark.parametrize("status", ["fail", "not measured"])
def test_a_failed_gate_refuses_its_row_only(change_record, status):
    def fail(record):
        threat = record["threats"]["linf-4"]
        threat["checks"][17].update(status=status, detail="3 test pictures are trained on")
        threat.update(verdict="unreliable", publishable=False, reasons=["rule 18"])

    found = rows_of(change_record(fail), model_repo=MODEL)
    assert [row["threat"]["name"] for row in found.accepted] == ["words-20pct"]
    assert found.refused == {
        "linf-4": "gate 18 of the audit, splits are apart, is not passed: 3 test pictures are trained on"
    }


def test_a_failed_flag_marks_the_row(change_record):
    def fail(record):
        threat = record["threats"]["linf-4"]
        threat["checks"][12].update(status="fail", detail="3 more")
        threat.update(verdict="not converged", reasons=["rule 13, converged: 3 more"])

    found = rows_of(change_record(fail), model_repo=MODEL)
    assert [row["verdict"] for row in found.accepted] == ["not converged", "trusted"]
    assert found.accepted[0]["audit"]["fail"] == 1


def test_a_corpus_keeps_its_pictures_and_a_machine_its_folders(change_record):
    def prepared(record):
        splits = ["trainable_val", "rest_val"]
        record["protocol"].update(name="clean", corpus="vqav2", splits=splits, location="/home/me/vqav2")

    row = rows_of(change_record(prepared), model_repo=MODEL).accepted[0]
    assert row["examples"] == []
    assert row["protocol"]["location"] is None


def test_large_pictures_are_made_smaller(change_record):
    wide = BytesIO()
    Image.linear_gradient("L").resize((400, 200)).convert("RGB").save(wide, format="PNG")

    def widen(record):
        uri = "data:image/png;base64," + b64encode(wide.getvalue()).decode()
        record["threats"]["linf-4"]["pairs"][0]["clean_picture"] = uri

    folder = change_record(widen)
    pair = json.loads((folder / "evaluation.json").read_text())["threats"]["linf-4"]["pairs"][0]
    example = rows_of(folder, model_repo=MODEL).accepted[0]["examples"][0]
    with Image.open(BytesIO(b64decode(example["clean_picture"].split(",")[1]))) as image:
        assert image.size == (128, 64)
    assert example["attacked_picture"] == pair["attacked_picture"]


def numbers_of(row, name, **changes):
    row["numbers"][name].update(changes)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda row: row.update(id="0" * 16), "its id is 0000000000000000, but its model, task, protocol"),
        (lambda row: numbers_of(row, "robust_accuracy", value=0.125, low=0), "but attack success is"),
        (lambda row: numbers_of(row, "robust_accuracy", value=0.123), "0.123 is no share of 64 examples"),
        (lambda row: numbers_of(row, "clean_accuracy", low=0.99), "lies outside its interval"),
        (lambda row: numbers_of(row, "attack_success_rate", value=None), "has no value, though"),
        (lambda row: row["data"].update(num_examples=100), "over 64 and 64 examples, but 100 were attacked"),
        (lambda row: row.update(publishable=False), "the audit says that it is not publishable"),
        (lambda row: row.update(verdict="unreliable"), "'unreliable' for 0 reasons, but 0 of its checks"),
        (lambda row: row["checks"][12].update(status="fail"), "for 0 reasons, but 1 of its checks failed"),
        (lambda row: row["audit"].update({"pass": 28}), "its audit counts are"),
        (lambda row: row["curve"]["low"].pop(), "columns of different lengths"),
        (lambda row: row["curve"]["robust_accuracy"].reverse(), "never rise itself"),
        (lambda row: row["curve"].update(high=[0.0] * 6), "leaves its interval"),
        (lambda row: row.update(examples=row["examples"] * 4), "it has 8 examples; at most 6"),
        (lambda row: row["examples"][0].update(clean_picture="https://x/y.png"), "clean_picture: is"),
        (lambda row: row["model"].update(repo="javascript:alert(1)"), "model.repo: is"),
        (lambda row: row.update(extra=1), "extra: is not part of the layout"),
    ],
)
def test_a_row_changed_by_hand_is_refused(row, edit, reason):
    assert refusal(row, schema_errors) is None
    edit(row)
    assert reason in refusal(row, schema_errors)


@pytest.mark.parametrize("content", [None, [], "row", {}, {"format": 1}])
def test_what_is_no_row_is_refused(content):
    assert "does not fit leaderboard_row.schema.json" in refusal(content, schema_errors)


def test_an_unnamed_protocol_is_refused_on_the_board_too(row):
    row["protocol"].update(name="unnamed")
    row["id"] = row_id(row)
    assert "its protocol is unnamed" in refusal(row, schema_errors)


def test_the_row_that_the_space_is_tested_with_has_the_fields_of_today(row, rows):
    assert set(row) == set(rows[0])
