import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from rmcl_hub.evaluation.compare import compare_models
from rmcl_hub.evaluation.robustness_report import render_robustness_report, write_robustness_report
from rmcl_hub.evaluation.rule_explanations import EXPLANATIONS

VOID = ("meta", "img", "path", "rect", "polyline", "polygon")
MINUS = "\u2212"
EVIL = '<script>alert("&")</script>'


class Page(HTMLParser):
    """Tags, attributes, headings and tables of a page; fails on unbalanced tags."""

    def __init__(self, html):
        super().__init__()
        self.html, self.open, self.tags, self.words = html, [], [], []
        self.headings, self.tables, self.lists = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "li":
            self.lists.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1] += data.strip()
        if {"h1", "h2", "h3"} & set(self.open):
            tag, text = self.headings[-1]
            self.headings[-1] = tag, (text + data).strip()
        if "li" in self.open:
            self.lists[-1] = " ".join((self.lists[-1] + data).split()) + " "

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def rows_of(self, *header):
        """The tables whose first columns are so called, each as {row header: other cells}."""
        return [
            {row[0]: row[1:] for row in table[1:]}
            for table in self.tables
            if table[0][: len(header)] == list(header)
        ]

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.fixture
def record():
    return json.loads((Path(__file__).parent / "evaluation_record.json").read_text())


@pytest.fixture
def attacked(outcomes):
    """Outcomes of both threat models of the record: who broke which of the six initially right examples.

    The words of three are changed, of which the last was wrong from the start.
    """
    broken_by = {
        "linf-4/fgsm": {0, 1},
        "linf-4/pgd": {1, 2},
        "linf-4/square": {2},
        "linf-4": {0, 1, 2},
        "words-20pct/geometry": {3},
        "words-20pct/words-random": set(),
        "words-20pct": {3},
    }
    new = {2, 3, 7}
    finder = {"linf-4": "linf-4/pgd", "words-20pct": "words-20pct/geometry"}
    return [
        replace(
            row,
            attack=attack,
            found_by=finder.get(attack, attack),
            label=1,
            clean_prediction=1 if row.clean_correct else 0,
            adversarial_correct=row.clean_correct and index not in broken,
            adversarial_prediction=1 if row.clean_correct and index not in broken else 0,
            text="is the big boat red",
            adversarial_text=f"is the {'large' if index in new and 'words' in attack else 'big'} boat red",
        )
        for attack, broken in broken_by.items()
        for index, row in enumerate(outcomes)
    ]


@pytest.fixture
def page(record, attacked):
    return Page(render_robustness_report(record, attacked))


def shown(rate):
    if rate["value"] is None:
        return "n/a"
    value, low, high = (f"{100 * rate[key]:.1f}" for key in ("value", "low", "high"))
    return f"{value}[{low}, {high}]"


def fail(record, threat, rule, status="fail", detail="planted"):
    """Let a rule fail, as the audit would record it."""
    found = record["threats"][threat]
    check = found["checks"][rule - 1]
    check |= {"status": status, "detail": detail}
    found["reasons"].append(f"rule {rule}, {check['name']}: {detail}")
    found["verdict"] = "unreliable"
    found["publishable"] &= check["level"] != "gate"


class TestNumbers:
    def test_threat_models_at_the_top(self, record, attacked):
        record["threats"]["linf-4"]["numbers"]["overall"]["robust_accuracy_8bit"]["value"] = 0.4
        page = Page(render_robustness_report(record, attacked))
        (rows,) = page.rows_of("threat model", "clean", "robust")
        assert page.headings[1] == ("h2", "Threat models")
        assert list(rows) == list(record["threats"])
        for name, threat in record["threats"].items():
            keys = ("clean_accuracy", "robust_accuracy", "attack_success_rate", "robust_accuracy_8bit")
            assert rows[name][:4] == [shown(threat["numbers"]["overall"][key]) for key in keys]
            assert rows[name][4].endswith("trusted")
            assert rows[name][5] == "yes"

    def test_attacks(self, record, page):
        tables = page.rows_of("attack", "maximises")
        for rows, threat in zip(tables, record["threats"].values(), strict=True):
            assert list(rows) == [*threat["attacks"], "all attacks"]
            for name, attack in threat["attacks"].items():
                numbers, cost = attack["numbers"], attack["cost"]
                keys = ("robust_accuracy", "attack_success_rate", "flip_rate")
                assert rows[name][0] == attack["loss"] + attack["threat_model"]["access"]
                assert rows[name][1:4] == [shown(numbers[key]) for key in keys]
                work = [f"{cost['forwards']:.1f}", f"{cost['backwards']:.1f}", f"{cost['seconds']:.3f}"]
                assert rows[name][-3:] == work
            assert rows["all attacks"][1] == shown(threat["numbers"]["overall"]["robust_accuracy"])
        assert tables[0]["pgd"][6] == "4.00/255"
        assert tables[1]["geometry"][6] == "7.1 % of words"

    def test_who_found_what(self, page):
        """fgsm breaks 0 and 1, pgd 1 and 2, square 2: pgd adds one, only fgsm has one of its own."""
        pixels, words = page.rows_of("attack", "maximises")
        assert {name: row[4:6] for name, row in pixels.items()} == {
            "fgsm": ["2", "1"],
            "pgd": ["1", "0"],
            "square": ["0", "0"],
            "all attacks": ["3", ""],
        }
        assert words["geometry"][4:6] == ["1", "1"]
        assert words["words-random"][4:6] == ["0", "0"]

    def test_an_attack_that_ran_for_another_threat_model_too(self, record, attacked):
        """The joint threat model has no outcomes of its own for the attacks on one modality."""
        record["threats"]["joint"] = record["threats"]["words-20pct"]
        joint = [replace(row, attack="joint") for row in attacked if row.attack == "words-20pct"]
        page = Page(render_robustness_report(record, [*attacked, *joint]))
        rows = page.rows_of("attack", "maximises")[2]
        assert rows["geometry"][4:6] == ["1", "1"]
        assert page.text.count("geometry; q3") == 2

    def test_question_types(self, record, page):
        tables = page.rows_of("question type")
        for rows, threat in zip(tables, record["threats"].values(), strict=True):
            assert set(rows) == set(threat["numbers"]) - {"overall"}
            for stratum, row in rows.items():
                numbers = threat["numbers"][stratum]
                keys = ("clean_accuracy", "robust_accuracy", "attack_success_rate", "flip_rate")
                assert row == [str(numbers["clean_accuracy"]["n"]), *(shown(numbers[key]) for key in keys)]
        assert tables[0]["gender"][3] == "n/a"  # nothing was initially right

    def test_curve(self, record, page):
        curve = record["threats"]["linf-4"]["probes"]["curve"]
        curve_rows = page.rows_of("epsilon (linf, in 1/255)")
        assert len(curve_rows) == 1
        assert list(curve_rows[0]) == ["0", "1", "2", "4", "8", "16"]
        for index, row in enumerate(curve_rows[0].values()):
            rate = dict(zip(("value", "low", "high"), curve_keys(curve, index), strict=True))
            assert row == [shown(rate), f"{100 * curve['attack_alone'][index]:.1f}"]

    def test_diagrams_are_of_these_numbers(self, page):
        labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
        assert len(labels) == 4  # attacks of both; the curve and the loss surface of the pixels
        assert sum("Robust accuracy over the radius" in label for label in labels) == 1
        assert sum(tag == "polygon" for tag, _ in page.tags) == 1

    def test_what_was_measured(self, record, page):
        (facts,) = [dict(table) for table in page.tables if table[0][0] == "model"]
        assert facts["model"] == f"RMCLViltForQuestionAnswering, parameters {record['model']['digest']}"
        assert facts["data"] == f"{record['data']['sampling']}, digest {record['data']['digest']}"
        assert facts["training data"].startswith("0 of 60 test pictures and 0 ids are among its 2249 ")
        assert facts["attacks used in training"] == "pgd, geometry"
        assert facts["code"] == record["code"]["revision"]
        for name, version in record["code"]["versions"].items():
            assert f"{name} {version}" in facts["versions"]
        assert facts["protocol"] == "embedded openpairs, test"
        assert "Data: embedded openpairs, test. Per cent" in page.text
        assert "contaminated" not in page.text
        for threat in record["threats"].values():
            assert f"{threat['sentence']} [{threat['digest']}]" in page.text.replace("[ ", "[")


def curve_keys(curve, index):
    return curve["robust_accuracy"][index], curve["low"][index], curve["high"][index]


class TestAudit:
    def test_all_rules_of_every_threat_model(self, record, page):
        for threat in record["threats"].values():
            for check in threat["checks"]:
                head = f"Rule {check['rule']}, {check['name']} ({check['level']})"
                found = [item for item in page.lists if head in item and check["detail"] in item]
                assert found, head
                assert any(check["status"] in item.split(head)[0] for item in found)
        assert sum(": pass" in text for text in page.words) == 2

    def test_nothing_failed(self, page):
        assert page.text.count("No rule failed.") == 2
        assert "Why " not in page.text

    def test_failures_come_first_and_are_explained(self, record, attacked):
        fail(record, "linf-4", 13)
        fail(record, "linf-4", 18, status="not measured")
        html = render_robustness_report(record, attacked)
        page = Page(html)
        rules = [int(found) for found in re.findall(r"<b>Rule (\d+),", html)][:28]
        assert rules[:2] == [13, 18]
        assert sorted(rules) == list(range(1, 29))
        for rule in (13, 18):
            assert EXPLANATIONS[rule] in page.text
        assert EXPLANATIONS[12] not in page.text
        # What failed is open; the rest is folded away.
        assert html.index("<b>Rule 18,") < html.index("rules: pass</summary>") < html.index("<b>Rule 1,")

    def test_a_refusal_is_shown_with_its_reasons(self, record, attacked):
        fail(record, "linf-4", 13)
        fail(record, "linf-4", 18, status="not measured", detail="pass train_dataset")
        page = Page(render_robustness_report(record, attacked))
        (rows,) = page.rows_of("threat model", "clean", "robust")
        assert rows["linf-4"][5] == "no: rule 18"  # a flag alone does not refuse
        assert rows["words-20pct"][5] == "yes"
        assert ("h3", "Why linf-4 is unreliable and not for publication") in page.headings
        assert "rule 18, splits are apart: pass train_dataset" in page.text
        assert "1 unreliable, 1 trusted; 1 of 2 may be published." in page.text

    def test_every_rule_has_its_explanation(self, record):
        assert list(EXPLANATIONS) == [check["rule"] for check in record["threats"]["linf-4"]["checks"]]
        assert len(set(EXPLANATIONS.values())) == 28


class TestExamples:
    def test_broken_texts(self, page):
        """Of the two changed texts one broke, so that one is shown."""
        assert "2 initially right examples have other words under attack, and 1 of them fool" in page.text
        assert page.text.count("is the big large boat red") == 1
        assert re.search(r"is the <del>big</del> <ins>large</ins> boat red", page.html)
        assert "geometry; q3" in page.text
        assert "right: medium-light; clean: medium-light; attacked: light" in page.text

    def test_texts_that_held_where_none_broke(self, record, attacked):
        held = [
            replace(row, adversarial_correct=row.clean_correct) if row.attack == "words-20pct" else row
            for row in attacked
        ]
        text = Page(render_robustness_report(record, held)).text
        assert "0 of them fool the model. Here are 2 of those that do not" in text

    def test_characters_that_cannot_be_seen_are_named(self, record, attacked):
        record["threats"]["words-20pct"]["pairs"][0] |= {
            "text": "a caf\u00e9 boat",
            "adversarial_text": "a caf\u00e9 b\u043e\u200bat",
        }
        html = render_robustness_report(record, attacked)
        assert "<del>boat</del> <ins>b\u043e[U+043E]\u200b[U+200B]at</ins>" in html
        assert "U+00E9" not in html

    def test_pictures(self, record, page):
        pictures = [attrs for tag, attrs in page.tags if tag == "img"]
        assert len(pictures) == 4  # a triptych of the pixels, one picture where only words change
        assert all(attrs["src"].startswith("data:image/png;base64,") and attrs["alt"] for attrs in pictures)
        pair = record["threats"]["linf-4"]["pairs"][0]
        assert f"largest pixel change {255 * pair['delta_linf']:.2f}/255" in page.text

    def test_the_outcome_knows_what_counts_as_right(self, record, attacked):
        """Several answers can be right: the index alone would call this one fooled."""
        pair = record["threats"]["linf-4"]["pairs"][0]
        pair |= {"id": "q5", "label": 1, "clean_prediction": 1, "adversarial_prediction": 2}
        html = render_robustness_report(record, attacked)
        badge = "holds</span>\nright: medium-light; clean: medium-light; attacked: medium<"
        assert badge in html
        assert "pgd; largest pixel change" in Page(html).text
        assert badge.replace("holds", "fooled") in render_robustness_report(record, [])

    def test_answers_without_names(self, record, attacked):
        record["answers"] = []
        assert (
            "right: no. 1; clean: no. 1; attacked: no. 0"
            in Page(render_robustness_report(record, attacked)).text
        )


class TestOptionalParts:
    def test_comparisons(self, record, attacked, outcomes):
        control = [replace(row, adversarial_correct=False, adversarial_prediction=0) for row in attacked]
        record["comparisons"] = compare_models(
            {0: [row for row in control if "/" not in row.attack]},
            {0: [row for row in attacked if "/" not in row.attack]},
            task="vqa",
            protocol="",
            num_resamples=50,
        )
        page = Page(render_robustness_report(record, attacked))
        (rows,) = page.rows_of("threat model", "clean", "robust", "attack success", "p")
        for row in record["comparisons"]:
            robust = row["differences"]["robust_accuracy"]
            value, low, high = (
                f"{100 * robust[key]:+.1f}".replace("-", MINUS) for key in ("value", "low", "high")
            )
            assert rows[row["attack"]][1] == f"{value}[{low}, {high}]"
            assert rows[row["attack"]][3] == f"{row['mcnemar_p']['0']:.2g}"
            assert row["verdict"] in page.text

    def test_without_anything_optional(self, record):
        for threat in record["threats"].values():
            threat["pairs"] = []
            for name in ("curve", "surface", "at_one", "seeds", "words_oracle", "longer"):
                threat["probes"].pop(name, None)
            threat["numbers"] = {"overall": threat["numbers"]["overall"]}
        record["data"]["overlap"] = record["settings"]["defence"] = None
        page = Page(render_robustness_report(record, []))
        names = {name for _, name in page.headings}
        gone = {"Compared with a control", "Attacked examples", "Attacked texts", "By question type"}
        assert not gone & names
        assert "Alone:" not in page.text
        assert "first" not in page.tables[2][0]
        assert "nobody has said" in page.text
        assert "whether a test picture was trained on is unknown" in page.text

    def test_a_contaminated_protocol_is_warned_of_at_the_top(self, record):
        record["protocol"] |= {"name": "thesis", "corpus": "vqav2", "splits": ["rest_val"], "location": "/v"}
        record["protocol"]["contamination"] = f"trained on it {EVIL}"
        record["data"]["overlap"]["how"] = "file by file with 5 of 9 rows"
        page = Page(render_robustness_report(record, []))
        warning = (
            f"contaminated thesis protocol of vqav2, rest_val (contaminated): trained on it {EVIL}. These"
        )
        assert warning in page.text
        assert page.text.index(warning) < page.text.index("Threat models")
        (facts,) = [dict(table) for table in page.tables if table[0][0] == "model"]
        assert facts["what is wrong with it"] == f"trained on it {EVIL}"
        assert facts["read from"] == "/v"
        assert facts["training data"].endswith("pictures too, file by file with 5 of 9 rows")
        assert "Training and test pictures were compared file by file with 5 of 9 rows; near" in page.text

    def test_measures_of_the_task(self, record, page):
        assert "VQA accuracy" not in page.text
        record["threats"]["linf-4"]["vqa_accuracy"] = {"clean": 0.614, "robust": 0.205}
        record["threats"]["linf-4"]["consistency"] = {"clean": 0.3, "robust": 0.0}
        text = Page(render_robustness_report(record, [])).text
        assert "VQA accuracy (mean soft score), clean and under attack: linf-4 61.4 and 20.5 %." in text
        assert "NLVR2 consistency, clean and under attack: linf-4 30.0 and 0.0 %." in text

    def test_name(self, record, page):
        assert page.headings[0] == ("h1", "Robustness of RMCLViltForQuestionAnswering: vqa")
        record["name"] = "RMCL (MoCo)"
        assert Page(render_robustness_report(record, [])).headings[0] == (
            "h1",
            "Robustness of RMCL (MoCo): vqa",
        )

    def test_examples_of_few_concepts_are_not_independent(self, page, record, attacked):
        assert "The 64 examples are about 2 concepts or pictures" in page.text
        assert "concepts or pictures" not in Page(render_robustness_report(record, [])).text


class TestPage:
    def test_needs_nothing_from_outside(self, page):
        assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
        ids = page.attributes("id")
        assert len(ids) == len(set(ids))
        assert all(link[0] == "#" and link[1:] in ids for link in page.attributes("href"))
        assert not re.search(r"url\(|@import|https?://| on[a-z]+=", page.html)

    def test_every_text_is_escaped(self, record, attacked):
        record |= {"name": EVIL, "task": EVIL, "answers": [EVIL] * 17}
        record["threats"] = {EVIL: record["threats"]["words-20pct"]}
        threat = record["threats"][EVIL]
        fail(record, EVIL, 2, detail=EVIL)
        threat |= {"sentence": EVIL, "attacks": {EVIL: threat["attacks"]["geometry"] | {"run": EVIL * 2}}}
        threat["numbers"][EVIL] = threat["numbers"]["overall"]
        threat["pairs"][0] |= {"id": EVIL, "text": EVIL, "adversarial_text": f"{EVIL} now"}
        record["settings"] |= {"defence": EVIL, "trained_with": [EVIL]}
        record["data"]["sampling"] = EVIL
        rows = [
            replace(row, attack=EVIL, found_by=EVIL * 2, id=f"{EVIL}{row.id}", text=EVIL)
            for row in attacked
            if row.attack == "words-20pct"
        ]
        page = Page(render_robustness_report(record, rows))
        assert "<script" not in page.html
        assert page.text.count(EVIL) > 25

    def test_headings_go_down_one_by_one(self, page):
        levels = [int(tag[1]) for tag, _ in page.headings]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))

    def test_tables_and_diagrams_can_be_read_aloud(self, page):
        assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
        assert all(attrs["role"] == "img" and attrs["aria-label"] for tag, attrs in page.tags if tag == "svg")
        boxes = [attrs for _, attrs in page.tags if attrs.get("class") == "scroll"]
        assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in boxes)

    def test_wide_tables_have_a_box_of_their_own(self, page):
        narrow = [attrs for tag, attrs in page.tags if tag == "table" and "class" in attrs]
        assert [attrs["class"] for attrs in narrow] == ["cards", "facts"]
        boxes = sum(attrs.get("class") == "scroll" for _, attrs in page.tags)
        assert boxes == len(page.tables) - len(narrow)

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_contrast(self, page, scheme):
        light, dark = (
            dict(re.findall(r"--(\w+):\s*(#[0-9a-f]{6})", block))
            for block in re.findall(r":root \{([^}]+)\}", page.html)
        )
        colours = light if scheme == "light" else dark
        assert set(light) == set(dark)
        pairs = [(text, back) for text in ("ink", "soft", "accent") for back in ("paper", "back")]
        pairs += [("ink", back) for back in ("good", "bad", "warn", "plain")]
        for text, back in pairs:
            assert contrast(colours[text], colours[back]) >= 4.5, (text, back)

    def test_verdicts_are_words_and_not_only_colours(self, page):
        badges = re.findall(
            r'<span class="badge \w+"><span aria-hidden="true">(.)</span> ([^<]+)</span>', page.html
        )
        assert page.html.count('class="badge') == len(badges) > 60
        assert ("\u2714", "trusted") in badges


def contrast(one, other):
    """WCAG 2 contrast ratio of two colours."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


class TestWrite:
    def test_writes_one_file(self, record, attacked, tmp_path):
        path = write_robustness_report(record, attacked, tmp_path / "run")
        assert path == tmp_path / "run" / "evaluation.html"
        assert [file.name for file in path.parent.iterdir()] == ["evaluation.html"]
        assert path.read_text(encoding="utf-8") == render_robustness_report(record, attacked)

    def test_refuses_what_is_no_record(self, record, attacked, tmp_path):
        del record["threats"]["linf-4"]["verdict"]
        with pytest.raises(ValueError, match=r"threats.linf-4.verdict: is missing \(How far the numbers"):
            write_robustness_report(record, attacked, tmp_path)
        assert list(tmp_path.iterdir()) == []
