import copy
import json
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest

from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.evaluation.attack_loop import VQA_COLUMNS
from rmcl_hub.evaluation.attack_suite import EFFORTS, Effort
from rmcl_hub.evaluation.audit import RULES, Check, Judgement, Level, Verdict
from rmcl_hub.evaluation.audit_rules import Status
from rmcl_hub.evaluation.epsilon_curve import EpsilonCurve
from rmcl_hub.evaluation.evaluation_schema import check_record, evaluation_schema
from rmcl_hub.evaluation.outcomes import AttackCost, AttackNumbers, Rate
from rmcl_hub.evaluation.pictures import AttackedPair
from rmcl_hub.evaluation.protocol_data import ProtocolEntry
from rmcl_hub.evaluation.results import Comparison
from rmcl_hub.evaluation.robustness import evaluate_robustness
from rmcl_hub.evaluation.robustness_report import render_robustness_report
from rmcl_hub.evaluation.split_hygiene import Overlap
from rmcl_hub.evaluation.tasks import Task

SCHEMA = evaluation_schema()
DEFS = SCHEMA["$defs"]
THREAT = ("threats", "linf-4")
RATE = (*THREAT, "numbers", "overall", "robust_accuracy")
CHECK = (*THREAT, "checks", 3)
GONE = object()


@pytest.fixture
def record():
    return json.loads((Path(__file__).parent / "evaluation_record.json").read_text())


def subschemas(schema):
    """The schema and all that it holds."""
    yield schema
    held = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
    held += [*schema.get("prefixItems", []), schema.get("items"), schema.get("additionalProperties")]
    for part in held:
        if isinstance(part, dict):
            yield from subschemas(part)


def plant(record, path, value):
    *parents, last = path
    place = record
    for key in parents:
        place = place[key]
    if value is GONE:
        del place[last]
    else:
        place[last] = value


# Where, what is put there, and what the message says of it.
PLANTED = [
    (
        ("format",),
        "rmcl-hub-evaluation/0",
        'format: is "rmcl-hub-evaluation/0"; expected "rmcl-hub-eval',
    ),
    (("date",), GONE, "date: is missing (Day of the evaluation (UTC), as YYYY-MM-DD)"),
    (("date",), "22.11.2026", 'date: is "22.11.2026"; expected a text like ^[0-9]{4}-'),
    (("task",), "", 'task: is ""; expected a text that is not empty'),
    (("threads",), {}, "threads: is not part of the layout; remove it or correct its name"),
    (("model", "digest"), "8C51", 'model.digest: is "8C51"; expected a text like ^[0-9a-f]{16}$'),
    (("data", "num_examples"), 0, "data.num_examples: is 0; expected at least 1"),
    (("data", "num_examples"), 6.5, "data.num_examples: is 6.5; expected integer"),
    (("data", "num_examples"), True, "data.num_examples: is true; expected integer"),
    (("data", "overlap"), [], "data.overlap: is an array of 0; expected object or null"),
    (("code", "revision"), "yesterday", 'code.revision: is "yesterday"; expected a text like'),
    (("settings", "effort"), "lazy", 'settings.effort: is "lazy"; expected "quick" or "standard" or "full"'),
    (("settings", "trained_with"), ["pgd", 3], "settings.trained_with[1]: is 3; expected string"),
    (("threats",), {}, "threats: is empty; expected at least 1"),
    (
        (*THREAT, "verdict"),
        "fine",
        'threats.linf-4.verdict: is "fine"; expected "trusted" or ',
    ),
    ((*THREAT, "publishable"), 1, "threats.linf-4.publishable: is 1; expected boolean"),
    ((*THREAT, "numbers", "overall"), GONE, "threats.linf-4.numbers.overall: is missing"),
    (
        (*RATE, "value"),
        1.2,
        "linf-4.numbers.overall.robust_accuracy.value: is 1.2; expected at most 1",
    ),
    (
        (*RATE, "low"),
        -0.1,
        "linf-4.numbers.overall.robust_accuracy.low: is -0.1; expected at least 0",
    ),
    ((*RATE, "high"), float("nan"), "overall.robust_accuracy.high: is NaN; expected number"),
    ((*RATE, "n"), "64", 'overall.robust_accuracy.n: is "64"; expected integer'),
    ((*RATE, "method"), "guess", 'robust_accuracy.method: is "guess"; expected "Wilson"'),
    ((*THREAT, "checks"), [], "threats.linf-4.checks: has 0 entries; expected at least 28"),
    ((*CHECK, "rule"), 5, "threats.linf-4.checks[3].rule: is 5; expected 4"),
    ((*CHECK, "status"), "passed", 'threats.linf-4.checks[3].status: is "passed"; expected "pass" or "fail"'),
    ((*CHECK, "level"), "hint", 'threats.linf-4.checks[3].level: is "hint"; expected "gate"'),
    ((*CHECK, "note"), "", "threats.linf-4.checks[3].note: is not part of the layout"),
    ((*THREAT, "threat_model", "norm"), "l1", 'norm: is "l1"; expected "linf" or "l2" or null'),
    ((*THREAT, "attacks", "pgd", "loss"), "mse", 'attacks.pgd.loss: is "mse"; expected "cross-entropy"'),
    (
        (*THREAT, "attacks", "pgd", "cost", "seconds"),
        -1,
        "pgd.cost.seconds: is -1; expected at least 0",
    ),
    (
        (*THREAT, "probes", "curve", "low", 2),
        7,
        "linf-4.probes.curve.low[2]: is 7; expected at most 1",
    ),
    (
        (*THREAT, "pairs", 0, "perturbation"),
        "x.png",
        'pairs[0].perturbation: is "x.png"; expected a text',
    ),
    (("comparisons",), [{}], "comparisons[0].attack: is missing (The threat model, as in threats)"),
]
IDS = [".".join(map(str, path)) + ("" if value is GONE else f"={value}") for path, value, _ in PLANTED]


class TestCheckRecord:
    def test_a_new_evaluation_passes_and_can_be_reported(self, model, rows, collate, monkeypatch):
        """Also at radius zero, where the curve is one point, and with a norm whose radii have no 255."""
        monkeypatch.setitem(EFFORTS, "quick", Effort(apgd_steps=2, square_queries=4, word_candidates=2))
        threats = {"nothing": ThreatModel("image", "linf", 0.0), "l2": ThreatModel("image", "l2", 0.5)}
        task = Task("toy", collate, VQA_COLUMNS)
        found = evaluate_robustness(model.eval(), None, rows, task, threats, effort="quick", num_pairs=1)
        check_record(json.loads(json.dumps(found.record, allow_nan=False)))
        html = render_robustness_report(found.record, found.outcomes)
        for name, threat in found.record["threats"].items():
            rate = threat["numbers"]["overall"]["robust_accuracy"]
            assert f"{100 * rate['value']:.1f}<small>" in html[html.index(f">{name}</a>") :][:500]
        assert "l2 0.5</td>" in html.replace("\n", "")

    def test_a_measured_record_passes(self, record):
        assert check_record(record) is None

    def test_what_may_be_absent(self, record):
        record["data"]["overlap"] = record["settings"]["defence"] = None
        for threat in record["threats"].values():
            threat["pairs"] = []
            for name in ("curve", "surface", "at_one", "seeds", "words_oracle", "longer"):
                threat["probes"].pop(name, None)
        check_record(record)

    def test_what_may_be_there(self, record):
        record |= {"name": "RMCL", "comparisons": [comparison()]}
        record["threats"]["linf-4"]["probes"]["something_new"] = 1
        check_record(record)

    @pytest.mark.parametrize(("path", "value", "message"), PLANTED, ids=IDS)
    def test_every_planted_error_is_named(self, record, path, value, message):
        plant(record, path, value)
        with pytest.raises(ValueError, match=r"^this is no evaluation record:\n- ") as caught:
            check_record(record)
        assert message in str(caught.value)
        assert str(caught.value).endswith("or see evaluation.schema.json for the layout.")

    def test_the_meaning_of_the_field_is_told(self, record):
        plant(record, (*RATE, "value"), 35.9)
        with pytest.raises(ValueError, match="at most 1 \\(The share, in \\[0, 1\\]; null where"):
            check_record(record)

    def test_many_errors_are_cut_short(self, record):
        del record["threats"]["linf-4"]["checks"][0]["rule"]
        for check in record["threats"]["linf-4"]["checks"][1:8]:
            check["status"] = "ok"
        with pytest.raises(ValueError, match="- and 3 more\n") as caught:
            check_record(record)
        assert str(caught.value).count("\n- ") == 6

    def test_a_lost_check_is_one_error(self, record):
        """Not also one for each of those that moved up."""
        del record["threats"]["linf-4"]["checks"][3]
        with pytest.raises(ValueError, match=r"checks: has 27 entries; expected at least 28\nEvaluate"):
            check_record(record)

    def test_no_record_at_all(self):
        with pytest.raises(ValueError, match="the record: is an array of 0; expected object"):
            check_record([])


def comparison():
    row = {"task": "vqa", "protocol": "", "attack": "linf-4", "control": "control", "treated": "rmcl"}
    differences = {
        "clean_accuracy": {"value": 0.0, "low": 0.0, "high": 0.0},
        "robust_accuracy": {"value": 0.1, "low": 0.02, "high": 0.2},
        "attack_success_rate": None,
    }
    points = dict.fromkeys(differences, -0.5) | {"attack_success_rate": None}
    row |= {"differences": differences, "per_seed": {"0": points}, "mcnemar_p": {"0": 0.03}}
    return row | {"num_examples": 64, "num_clusters": 51, "conclusion": "unclear", "verdict": "It helps."}


class TestSchema:
    def test_another_validator_agrees(self, record):
        jsonschema = pytest.importorskip("jsonschema")
        jsonschema.Draft202012Validator.check_schema(SCHEMA)
        validator = jsonschema.Draft202012Validator(SCHEMA)
        record |= {"name": "RMCL", "comparisons": [comparison()]}
        assert list(validator.iter_errors(record)) == []
        for path, value, message in PLANTED:
            wrong = copy.deepcopy(record)
            plant(wrong, path, value)
            # That NaN is no JSON is not the schema's business.
            assert validator.is_valid(wrong) == ("NaN" in message), path

    def test_every_field_says_what_it_is(self):
        silent = [
            name
            for part in subschemas(SCHEMA)
            for name, field in part.get("properties", {}).items()
            if "const" not in field and not {**DEFS.get(target(field), {}), **field}.get("description")
        ]
        assert silent == []

    def test_only_keywords_that_the_check_understands(self):
        understood = (
            "$schema title $defs description $ref type const enum pattern minLength minimum maximum required "
            "properties additionalProperties minProperties items prefixItems minItems"
        ).split()
        used = {keyword for part in subschemas(SCHEMA) for keyword in part}
        assert used <= set(understood)

    @pytest.mark.parametrize(
        ("definition", "names"),
        [
            ("rate", Rate.__annotations__),
            ("numbers", AttackNumbers.__annotations__),
            ("pair", AttackedPair.__annotations__),
            ("comparison", Comparison.__annotations__),
            ("cost", [field.name for field in fields(AttackCost)]),
            ("threat_model", [field.name for field in fields(ThreatModel)]),
            ("check", [field.name for field in fields(Check)]),
        ],
    )
    def test_fields_are_those_of_the_code(self, definition, names):
        assert set(DEFS[definition]["properties"]) == set(DEFS[definition]["required"]) == set(names)
        assert DEFS[definition]["additionalProperties"] is False

    def test_nested_fields_are_those_of_the_code(self):
        assert set(DEFS["probes"]["properties"]["curve"]["required"]) == set(EpsilonCurve.__annotations__)
        overlap = SCHEMA["properties"]["data"]["properties"]["overlap"]
        assert set(overlap["required"]) == Overlap.__required_keys__
        assert set(overlap["properties"]) == set(Overlap.__annotations__)
        protocol = SCHEMA["properties"]["protocol"]
        assert set(protocol["required"]) == set(protocol["properties"]) == set(ProtocolEntry.__annotations__)
        assert {field.name for field in fields(Judgement)} <= set(DEFS["threat"]["required"])

    def test_choices_are_those_of_the_code(self):
        check = DEFS["check"]["properties"]
        assert set(check["status"]["enum"]) == set(get_args(Status))
        assert set(check["level"]["enum"]) == set(get_args(Level))
        assert set(DEFS["threat"]["properties"]["verdict"]["enum"]) == set(get_args(Verdict))
        assert set(SCHEMA["properties"]["settings"]["properties"]["effort"]["enum"]) == set(EFFORTS)
        assert DEFS["threat"]["properties"]["checks"]["minItems"] == len(RULES) == 28

    def test_is_packaged(self):
        packaged = files("rmcl_hub.evaluation") / "evaluation.schema.json"
        assert json.loads(packaged.read_text(encoding="utf-8")) == SCHEMA


def target(field):
    return field.get("$ref", "").rsplit("/", 1)[-1]
