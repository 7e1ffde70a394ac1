"""Mutants of the metrics, of retrieval and of the outcomes; see mutation.py.

    python tests/mutate_evaluation.py [--jobs 2] [NAME ...]

Exit status: the number of survivors.
"""

# ruff: noqa: E501 - one mutant a line

import sys

import datasets  # noqa: F401 - imported before forking, like the two below
import evaluate  # noqa: F401
import torchmetrics.functional.retrieval  # noqa: F401
from mutation import Mutant, main

ROBUST = "test_robust_retrieval.py"

MUTANTS = (
    Mutant("repaired counts as robust", "metrics.py", "return float((clean & adversarial).mean())", "return float(adversarial.mean())"),
    Mutant("robust over the initially correct", "metrics.py", "return float((clean & adversarial).mean())", "return float(adversarial[clean].mean())"),
    Mutant("success over all", "metrics.py", "return float((~adversarial[clean]).mean())", "return float((clean & ~adversarial).mean())"),
    Mutant("success is a flip", "metrics.py", "return float((~adversarial[clean]).mean())", "return float((clean != adversarial).mean())"),
    Mutant("flips of the unflipped", "metrics.py", "return float((clean != adversarial).mean())", "return float((clean == adversarial).mean())"),
    Mutant("ties count for the model", "metrics.py", "(~right & (values >= best_relevant))", "(~right & (values > best_relevant))"),
    Mutant("right answers push each other down", "metrics.py", "(~right & (values >= best_relevant))", "(values > best_relevant)"),
    Mutant("rank of the worst right answer", "metrics.py", "np.where(right, values, -np.inf).max(axis=1", "np.where(right, values, np.inf).min(axis=1"),
    Mutant("k off by one", "metrics.py", "<= k).mean())", "< k).mean())"),
    Mutant("VQA score of the first answer", "metrics.py", "chosen.astype(int)]", "0]"),
    Mutant("insertions are free", "metrics.py", "distances[column - 1] + 1)", "distances[column - 1])"),
    Mutant("rate over the attacked text", "metrics.py", "/ len(clean.split()))", "/ len(adversarial.split()))"),
    Mutant("l2 is a mean", "metrics.py", "np.linalg.norm(change)", "np.linalg.norm(change) / len(change)"),
    Mutant("only brighter pixels count", "metrics.py", "np.abs(change).max()", "change.max()"),
    Mutant("normalised pixels pass", "metrics.py", "values.min() >= -PIXEL_TOLERANCE", "values.min() >= -1"),
    Mutant("Wald, not Wilson", "intervals.py", "centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)", "centre = rate"),
    Mutant("Wilson without its root's correction", "intervals.py", "rate * (1 - rate) / n + z**2 / (4 * n**2)", "rate * (1 - rate) / n"),
    Mutant("one-sided quantile", "intervals.py", "inv_cdf((1 + confidence) / 2)", "inv_cdf(confidence)"),
    Mutant("clusters ignored", "intervals.py", 'cluster_of_row = _codes(clusters,', 'cluster_of_row = _codes(None,'),
    Mutant("unpaired bootstrap", "intervals.py", "statistic(rows[:, 0]) - statistic(rows[:, 1])", "statistic(rows[:, 0]) - statistic(second)"),
    Mutant("one-sided McNemar", "intervals.py", "min(1.0, 2 * tail / 2**discordant)", "min(1.0, tail / 2**discordant)"),
    Mutant("McNemar over all examples", "intervals.py", "int((a & ~b).sum()), int((~a & b).sum())", "int(a.sum()), int(b.sum())"),
    Mutant("success over everyone", "outcomes.py", "rate(~correct[:, 1], initially_correct)", "rate(~correct[:, 1], everyone)"),
    Mutant("robust without clean", "outcomes.py", "rate(correct[:, 0] & correct[:, 1], everyone)", "rate(correct[:, 1], everyone)"),
    Mutant("seeds taken for examples", "outcomes.py", "if len(np.unique(runs)) > 1:", "if False:"),
    Mutant("chance with replacement", "retrieval.py", "1 - comb(gallery_size - count, k) / comb(gallery_size, k)", "1 - (1 - count / gallery_size) ** k"),
    Mutant("equal captions are two", "retrieval.py", 'return " ".join(caption.casefold().split())', "return caption"),
    Mutant("log odds of no pair", "retrieval.py", "return logits[:, 1] - logits[:, 0]", "return logits[:, 0] - logits[:, 1]"),
    Mutant("scores in the order of length", "retrieval.py", "scores[chunk.cpu().numpy(), column] =", "scores[np.arange(len(chunk)), column] ="),
    Mutant("texts cut to the shortest", "retrieval.py", "longest = int(lengths[chunk[-1]])", "longest = int(lengths[chunk[0]])"),
    Mutant("no length buckets", "retrieval.py", "order = lengths.argsort(stable=True)", "order = torch.arange(len(lengths)); lengths = lengths.clone().fill_(lengths.max())"),
    Mutant("patches embedded again", "retrieval.py", 'if not hasattr(self.model, "embed_image"):', "if True:"),
    Mutant("wanted pairs of the wrong texts", "retrieval.py", "order[torch.from_numpy(wanted[:, column])[order.cpu()]]", "order[torch.from_numpy(wanted[:, column])]"),
    Mutant("stacked images without padding mask", "retrieval.py", "padded.append(F.pad(tensor, padding) if any(missing)", "padded.append(F.pad(tensor, padding, value=1) if any(missing)"),
    Mutant("forwards not counted", "retrieval.py", 'self.forwards += len(inputs["pixel_mask"])', "self.forwards += 1"),
    Mutant("objective upside down", "retrieval_attack.py", "scores[:, num_right:].amax(dim=1) - right", "right - scores[:, num_right:].amax(dim=1)", ROBUST),
    Mutant("gallery item raised", "retrieval_attack.py", "if num_right < num_candidates else -right", "if num_right < num_candidates else right", ROBUST),
    Mutant("worst right answer", "retrieval_attack.py", "right = scores[:, :num_right].amax(dim=1)", "right = scores[:, :num_right].amin(dim=1)", ROBUST),
    Mutant("mean of the negatives", "retrieval_attack.py", "scores[:, num_right:].amax(dim=1) - right", "scores[:, num_right:].mean(dim=1) - right", ROBUST),
    Mutant("partners of another item", "retrieval_attack.py", "(rows // candidates.shape[1]).tolist()", "(rows % len(candidates)).tolist()", ROBUST),
    Mutant("backwards of one pair", "retrieval_attack.py", "result.backwards * num_candidates", "result.backwards", ROBUST),
    Mutant("picture not cropped", "retrieval_attack.py", '["pixel_values"][..., :height, :width].detach()', '["pixel_values"].detach()', ROBUST),
    Mutant("threat model not checked", "retrieval_attack.py", "if size > (threat_model.epsilon or 0.0)", "if size > 9 + (threat_model.epsilon or 0.0)", ROBUST),
    Mutant("word budget not checked", "retrieval_attack.py", "if changed > budget:", "if False:", ROBUST),
    Mutant("distance in normalised pixels", "retrieval_attack.py", 'of["pixel_values"].double() * std + mean', '(of["pixel_values"].double() + 1) / 4', ROBUST),
    Mutant("easiest negatives", "attacked_ranking.py", "np.argsort(-ranking.complete(), axis=1", "np.argsort(ranking.complete(), axis=1", ROBUST),
    Mutant("right answers among the negatives", "attacked_ranking.py", "order[row][~right[order[row]]][:num_hard_negatives]", "order[row][:num_hard_negatives]", ROBUST),
    Mutant("better than clean", "attacked_ranking.py", "np.maximum(clean, attacked), clean)", "attacked, clean)", ROBUST),
    Mutant("nobody abstains", "attacked_ranking.py", "scores[rows, items] = np.minimum(scores[rows, items], new)", "scores[rows, items] = new", ROBUST),
    Mutant("only the first right answer attacked", "attacked_ranking.py", "for item in np.flatnonzero(right[row])]", "for item in np.flatnonzero(right[row])[:1]]", ROBUST),
    Mutant("gallery not rescored", "attacked_ranking.py", "scores[rows, items] = np.minimum(scores[rows, items], new)", "pass", ROBUST),
    Mutant("query not rescored", "attacked_ranking.py", "scores[rows] = self._scores(", "_ = self._scores(", ROBUST),
    Mutant("rescored against the wrong query", "attacked_ranking.py", "ranking.queries[rows].tolist()", "list(range(len(rows)))", ROBUST),
    Mutant("exact ranks from the list", "attacked_ranking.py", "return best_ranks(self.scores[self.checked], self", "return best_ranks(self.complete()[self.checked], self", ROBUST),
    Mutant("lost queries count as broken", "robust_retrieval.py", "((clean_ranks <= k) & (ranks > k)).sum()", "(ranks > k).sum()"),
    Mutant("success over all queries", "robust_retrieval.py", "n, broken = int((clean_ranks <= k).sum())", "n, broken = len(ranks)"),
    Mutant("query and gallery side swapped", "robust_retrieval.py", '(words, pixels) if side == "query"', '(words, pixels) if side == "gallery"'),
    Mutant("the first of the data set", "robust_retrieval.py", "np.random.default_rng(seed).choice(population, size, replace=False)", "np.arange(size)"),
    Mutant("no seed", "robust_retrieval.py", "np.random.default_rng(seed).choice", "np.random.default_rng(0).choice"),
    Mutant("clean recall reported", "robust_retrieval.py", '"recall": recall_of_ranks(ranks, clean.relevant)["recall"]', '"recall": numbers["recall"]'),
    Mutant("savings of the clean ranking only", "robust_retrieval.py", "saved += int((~clean.wanted[list(changes)]).sum())", "pass"),
    Mutant("shortlist ignored", "shortlist.py", "[:, :size]", "[:, :]"),
    Mutant("right answers smuggled onto the list", "shortlist.py", "np.lexsort((relevant, -cheap)", "np.lexsort((-cheap, ~relevant)"),
    Mutant("the rest before the list", "shortlist.py", "lowest - 1 - (cheap_best - cheap)", "lowest + 100 - (cheap_best - cheap)"),
    Mutant("the rest upside down", "shortlist.py", "lowest - 1 - (cheap_best - cheap)", "lowest - 100 + (cheap_best - cheap)"),
    Mutant("gains and losses cancel before the interval", "shortlist.py", "low=gain_low - loss_high", "low=gain_low - loss_low"),
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main("evaluation", MUTANTS, __doc__))
