"""The rules of the audit, one function each, from what was measured to whether it holds and why."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np

from .attack_suite import EXHAUSTIVE, SANITY
from .evidence import Evidence, changed_protected_words
from .intervals import wilson_interval
from .metrics import within_radius
from .outcomes import Outcome

Status: TypeAlias = Literal["pass", "fail", "not applicable", "not measured", "by the test suite"]
Found: TypeAlias = tuple[Status, str]
"""Whether a rule holds, and the figures that say so."""

HALF_A_POINT = 0.005
A_FIFTH_OF_A_POINT = 0.002
LOGIT_TOLERANCE = 1e-4  # AutoAttack's rule for randomised models


def _result(passed: bool, detail: str) -> Found:
    return ("pass" if passed else "fail"), detail


def _not_applicable(why: str) -> Found:
    return "not applicable", why


def by_tests(where: str) -> Callable[[Evidence], Found]:
    """A rule that the project's own tests answer for."""
    return lambda evidence: ("by the test suite", where)


def _share(count: float, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else "none"


def broken(rows: Sequence[Outcome]) -> set[str]:
    """Ids of the examples that are right at first and wrong under attack."""
    return {row.id for row in rows if row.clean_correct and not row.adversarial_correct}


def robust_share(rows: Sequence[Outcome]) -> float:
    """Share of examples that are right before and after the attack."""
    return sum(row.clean_correct and row.adversarial_correct for row in rows) / len(rows)


def _pixels(evidence: Evidence) -> bool:
    return evidence.threat.modality != "text"


def _words(evidence: Evidence) -> bool:
    return evidence.threat.modality != "image"


def declared(evidence: Evidence) -> Found:
    """1: the threat model is in the record, with its hash."""
    return _result(True, f"{evidence.threat} [{evidence.threat.digest}]")


def valid(evidence: Evidence) -> Found:
    """2: every stored example is within the budgets, recomputed."""
    rows = [row for name, group in evidence.outcomes.items() for row in group if name != "all"]
    norm = "delta_linf" if evidence.threat.norm == "linf" else "delta_l2"
    largest = max(getattr(row, norm) for row in rows)
    epsilon = evidence.threat.epsilon or 0.0
    over_budget = sum(row.words_changed > evidence.threat.word_budget(row.text) for row in rows)
    inside = within_radius(largest, epsilon) and over_budget == 0
    finite = all(np.isfinite([row.loss_after, row.delta_linf, row.delta_l2]).all() for row in rows)
    return _result(
        inside and finite,
        f"largest pixel change {255 * largest:.3f}/255 of {255 * epsilon:.3f}/255 allowed, "
        f"{over_budget} of {len(rows)} texts over the word budget; padding, labels and range are checked "
        "batch by batch",
    )


def survives_8_bits(evidence: Evidence) -> Found:
    """3: rounding the attacked pixels to 256 levels leaves the number where it is."""
    if not _pixels(evidence):
        return _not_applicable("no pixel changes")
    rows = evidence.outcomes["all"]
    exact = robust_share(rows)
    rounded = sum(row.clean_correct and row.correct_8bit for row in rows) / len(rows)
    low, high = wilson_interval(round(exact * len(rows)), len(rows))
    return _result(
        low <= rounded <= high,
        f"robust accuracy {100 * exact:.1f} %, with attacked pixels rounded to 8 bits {100 * rounded:.1f} %",
    )


def end_to_end_text(evidence: Evidence) -> Found:
    """4: the ids that the model saw are those of the adversarial string."""
    if not _words(evidence):
        return _not_applicable("no word changes")
    return _result(True, "every attacked string was tokenised again and gave the ids that were scored")


def deterministic(evidence: Evidence) -> Found:
    """5: the same batch gets the same answer."""
    spread = evidence.probes["answer_spread"]
    return _result(spread <= LOGIT_TOLERANCE, f"logits of five equal forwards differ by {spread:.2g} at most")


def batch_invariant(evidence: Evidence) -> Found:
    """6: neither the other rows nor padding matter; evaluation mode, single precision."""
    difference = evidence.probes["batch_dependence"]
    return _result(
        difference <= 10 * LOGIT_TOLERANCE and evidence.setting.float32,
        f"logits alone and in a batch differ by {difference:.2g} at most; "
        f"{'float32' if evidence.setting.float32 else 'not all parameters are float32'}, evaluation mode",
    )


def gradients_are_there(evidence: Evidence) -> Found:
    """7: the pixels have a gradient, and the head gives logits."""
    health = evidence.probes["gradients"]
    if health["zero_share"] is None:
        return "not measured", "no example of the probe is answered right"
    outputs = "probabilities instead of logits" if health["probabilities"] else "logits"
    return _result(
        health["zero_share"] <= 0.01 and not health["probabilities"],
        f"{_share(health['zero_share'], 1)} of {health['num_examples']} right answers have no gradient with "
        f"respect to the pixels; the head gives {outputs}",
    )


def losses_rise(evidence: Evidence) -> Found:
    """8: the attack on pixels raises the loss of nearly every example, that on words of some."""
    if not _pixels(evidence):
        rows = evidence.outcomes["all"]
        risen = sum(row.words_changed > 0 and row.loss_after > row.loss_before for row in rows)
        # Many texts have no substitute, or none that raises the loss; but an attack that moves none is none.
        return _result(risen > 0, f"changed words raised the loss of {_share(risen, len(rows))} of the texts")
    if evidence.threat.epsilon == 0:
        return _not_applicable("no pixel may change")
    rows = evidence.outcomes["pgd"]
    risen = sum(row.loss_after > row.loss_before for row in rows)
    return _result(risen >= 0.95 * len(rows), f"PGD raised the loss of {_share(risen, len(rows))}")


def stronger_is_stronger(evidence: Evidence) -> Found:
    """9: robust accuracy does not rise with the radius."""
    if not _pixels(evidence):
        return _not_applicable("a search among words has no radius; budgets are nested by construction")
    curve = evidence.probes["curve"]
    alone, n = curve["attack_alone"], curve["num_examples"]
    # 1.96 standard errors of a share of n: what a search may miss by chance
    tolerance = max(1.96 * (0.25 / n) ** 0.5, 1 / n)
    rise = max(later - earlier for position, earlier in enumerate(alone) for later in alone[position:])
    points = ", ".join(
        f"{255 * e:.3g}/255: {100 * a:.0f}" for e, a in zip(curve["epsilons"], alone, strict=True)
    )
    return _result(
        rise <= tolerance,
        f"attack by attack {points} (%, {n} examples); the largest rise is {100 * rise:.1f} points",
    )


def ends_of_the_scale(evidence: Evidence) -> Found:
    """10: no radius changes nothing; radius one does what any other picture does."""
    changed = evidence.probes["changed_at_zero"]
    if not _pixels(evidence):
        return _result(changed == 0, f"at epsilon 0, {changed} answers changed")
    ends, clean = evidence.probes["at_one"], evidence.probes["curve"]["attack_alone"][0]
    chance = 1 / evidence.probes["num_classes"]
    bound = max(chance, ends["other_images"])
    looks = ends["attacked"] < clean  # a model that never looks at the picture is robust for nothing
    return _result(
        changed == 0 and ends["attacked"] <= bound + 1e-9 and looks,
        f"of {100 * clean:.1f} % right answers, at epsilon 0, {changed} answers changed; "
        f"at epsilon 1 PGD leaves {100 * ends['attacked']:.1f} % "
        f"right, other pictures {100 * ends['other_images']:.1f} %, chance {100 * chance:.1f} %"
        + ("" if looks else ": nothing done to the pictures changes an answer"),
    )


def white_box_is_strongest(evidence: Evidence) -> Found:
    """11: attacks without gradients find nothing that attacks with gradients miss."""
    access = {name: attack.attack.threat_model.access for name, attack in evidence.suite.items()}
    # What tries everything is no sign of hidden gradients where it finds more; rule 15 asks about that.
    with_gradient = [name for name in evidence.suite if access[name] == "white-box" or name == EXHAUSTIVE]
    without = [name for name in evidence.suite if name not in with_gradient]
    if not without:
        return _not_applicable("no attack without gradients ran")
    found = set[str]().union(*(broken(evidence.outcomes[name]) for name in with_gradient))
    extra = set[str]().union(*(broken(evidence.outcomes[name]) for name in without)) - found
    total = len(evidence.outcomes["all"])
    noise = ""
    if "noise" in without:
        noise = f"; noise breaks {_share(len(broken(evidence.outcomes['noise'])), total)}"
    return _result(
        len(extra) <= max(1, A_FIFTH_OF_A_POINT * total),
        f"{', '.join(without)} break {_share(len(extra), total)} that {', '.join(with_gradient)} do not"
        f"{noise}",
    )


def iterations_help(evidence: Evidence) -> Found:
    """12: PGD is no weaker than FGSM, APGD than PGD, and the whole ensemble than any of its parts."""
    rows = evidence.outcomes
    whole = broken(rows["all"])
    weaker = [name for name in evidence.suite if not broken(rows[name]) <= whole]
    pairs = [("pgd", "fgsm"), ("apgd-ce", "pgd")] if "apgd-ce" in rows else []
    tolerance = max(1, HALF_A_POINT * len(rows["all"]))
    behind = [
        f"{strong} breaks {len(broken(rows[strong]))}, {weak} {len(broken(rows[weak]))}"
        for strong, weak in pairs
        if len(broken(rows[strong])) < len(broken(rows[weak])) - tolerance
    ]
    detail = "; ".join(behind) or "FGSM <= PGD <= APGD" if pairs else "no iterated attack on pixels"
    members = (
        f"the ensemble misses examples of {', '.join(weaker)}" if weaker else "no part beats the ensemble"
    )
    return _result(not weaker and not behind, f"{detail}; {members}")


def converged(evidence: Evidence) -> Found:
    """13: twice the steps and queries, from other starts, find nothing more."""
    longer = evidence.probes.get("longer")
    if longer is None:
        return "not measured", "no longer search was run"
    total = len(evidence.outcomes["all"])
    return _result(
        longer["newly_broken"] < HALF_A_POINT * total,
        f"twice the steps, queries and candidates break {longer['newly_broken']} more of {total} examples",
    )


def losses_differ(evidence: Evidence) -> Found:
    """14: more than one loss was maximised."""
    losses = sorted({attack.loss for attack in evidence.suite.values()})
    return _result({"cross-entropy", "margin"} <= set(losses), f"maximised: {', '.join(losses)}")


def search_is_strong(evidence: Evidence) -> Found:
    """15: the word search reaches what trying everything reaches."""
    if not _words(evidence):
        return _not_applicable("no word changes")
    oracle = evidence.probes["words_oracle"]
    gap = oracle["greedy"] - oracle["exhaustive"]
    return _result(
        gap <= 0,
        f"robust accuracy under the greedy searches {100 * oracle['greedy']:.1f} %, under all combinations "
        f"of up to two words {100 * oracle['exhaustive']:.1f} % ({oracle['num_examples']} examples)",
    )


def defence_was_attacked(evidence: Evidence) -> Found:
    """16: the defence is named, and attacked for what it is."""
    setting = evidence.setting
    if setting.defence is None:
        return "fail", "nobody has said what the model does at test time; pass defence='none' if nothing"
    if setting.defence == "none":
        return (
            "pass",
            "no defence at test time: the attacks differentiate through all that the model computes",
        )
    used = [name for name in setting.adaptive if name in evidence.suite]
    return _result(bool(used), f"defence: {setting.defence}; adaptive attacks: {', '.join(used) or 'none'}")


def attacks_are_new(evidence: Evidence) -> Found:
    """17: at least one attack was not used in training or selection."""
    new = [name for name in evidence.suite if name not in (*evidence.setting.trained_with, *SANITY)]
    trained = ", ".join(evidence.setting.trained_with) or "none named"
    return _result(bool(new), f"in training: {trained}; only here: {', '.join(new)}")


def splits_are_apart(evidence: Evidence) -> Found:
    """18: no picture of the test is in the training data, the protocol is sound, and the sample is random."""
    overlap, sampling = evidence.setting.overlap, evidence.setting.sampling
    faults = evidence.setting.protocol["contamination"]
    warning = f"contaminated protocol: {faults}; " if faults else ""
    if overlap is None:
        status = "fail" if faults else "not measured"
        return status, f"{warning}{sampling}; pass train_dataset to compare the pictures"
    how = f" ({overlap['how']})" if "how" in overlap else ""
    return _result(
        not faults and overlap["same_pixels"] == 0 and overlap["same_ids"] == 0,
        f"{warning}{overlap['same_pixels']} of {overlap['num_test_images']} test pictures and "
        f"{overlap['same_ids']} ids are in the training data too{how}; {sampling}",
    )


def metrics_add_up(evidence: Evidence) -> Found:
    """19: robust accuracy, attack success and flip rate obey their identities."""
    rows = evidence.outcomes["all"]
    clean = sum(row.clean_correct for row in rows) / len(rows)
    robust = robust_share(rows)
    success = len(broken(rows)) / max(1, sum(row.clean_correct for row in rows))
    flips = sum(row.clean_prediction != row.adversarial_prediction for row in rows) / len(rows)
    return _result(
        abs(robust - clean * (1 - success)) < 1e-9 and flips >= clean - robust - 1e-9,
        f"{clean:.4f} x (1 - {success:.4f}) = {robust:.4f}; flip rate {flips:.4f} >= {clean - robust:.4f}",
    )


def statistics_are_stated(evidence: Evidence) -> Found:
    """20: intervals, and several seeds for what is random."""
    if "seeds" not in evidence.probes:
        return "pass", "Wilson intervals; the word attacks are deterministic"
    seeds = evidence.probes["seeds"]
    return _result(
        len(seeds) >= 3,
        "Wilson intervals; PGD from random starts of three seeds leaves "
        + ", ".join(f"{100 * share:.1f}" for share in seeds)
        + " % of the probe",
    )


def control_ran(evidence: Evidence) -> Found:
    """21: a claim of progress has its control."""
    if evidence.setting.control is None:
        return _not_applicable("one model: no claim of progress is made; pass control= to compare")
    return _result(True, f"compared example by example with {evidence.setting.control}")


def surface_is_smooth(evidence: Evidence) -> Found:
    """22: the loss rises along its gradient; that transfer is no stronger is part of rule 11."""
    if not _pixels(evidence):
        return _not_applicable("no pixel changes")
    agree = evidence.probes["surface"]["agree_share"]
    return _result(
        agree >= 0.95, f"an eighth of epsilon along its gradient raises the loss of {_share(agree, 1)}"
    )


def work_is_counted(evidence: Evidence) -> Found:
    """23: what every attack spent."""
    uncounted = [
        name for name, cost in evidence.costs.items() if not (cost.forwards > 0 and cost.seconds > 0)
    ]
    total = evidence.costs["all"]
    return _result(
        not uncounted,
        f"per example {total.forwards:.0f} forwards, {total.backwards:.0f} backwards, {total.seconds:.2f} s"
        + (f"; uncounted: {', '.join(uncounted)}" if uncounted else ""),
    )


def meaning_is_kept(evidence: Evidence) -> Found:
    """24: no number, negation or colour was exchanged; sentences are stored for people to read."""
    if not _words(evidence):
        return _not_applicable("no word changes")
    if evidence.threat.word_edits != "synonyms":
        return _not_applicable("no word becomes another word")
    changed = changed_protected_words(evidence.outcomes["all"])
    return _result(
        changed == 0,
        f"{changed} texts lost a protected word; the likeness of whole sentences and their grammar are not "
        "measured: read the stored texts",
    )


def artefacts_are_stored(evidence: Evidence) -> Found:
    """28: anybody can score the adversarial examples again."""
    return _result(
        evidence.setting.stored,
        "adversarial examples and outcomes are stored" if evidence.setting.stored else "pass output_dir",
    )
