"""Mutants of the attacks; see mutation.py.

    python tests/mutate_attacks.py [--jobs 2] [NAME ...]

Exit status: the number of survivors.
"""

# ruff: noqa: E501 - one mutant a line

import sys

import torchattacks  # noqa: F401 - imported before forking, with torch
from mutation import Mutant, main

MUTANTS = (
    Mutant("PGD is the identity", "pgd.py", "best = torch.where(_per_example(better, clean), adversarial, best)", "pass"),
    Mutant("PGD descends", "pgd.py", "return self.step_size * direction / std", "return -self.step_size * direction / std"),
    Mutant("no projection", "pgd.py", "lower, upper = clean - radius, clean + radius", "lower, upper = clean - 9, clean + 9"),
    Mutant("projection of twice the radius", "pgd.py", "radius = self.epsilon / std\n", "radius = 2 * self.epsilon / std\n"),
    Mutant("no valid range, bright", "pgd.py", "torch.minimum(upper, brightest)", "upper"),
    Mutant("no valid range, dark", "pgd.py", "torch.maximum(lower, darkest)", "lower"),
    Mutant("rounding out of the ball", "pgd.py", "upper.nextafter(clean), upper)", "upper, upper)"),
    Mutant("padding is attacked", "pgd.py", "real = (pixel_mask != 0)", "real = (pixel_mask > -1)"),
    Mutant("mask upside down", "pgd.py", "real = (pixel_mask != 0)", "real = (pixel_mask == 0)"),
    Mutant("padding scales the step", "pgd.py", "gradient.masked_fill(lower == upper, 0.0)", "gradient"),
    Mutant("gradient of another point", "pgd.py", '"pixel_values": pixels}), len(pixels))\n        if',
           '"pixel_values": pixels + 0.1 * pixels.detach().sign()}), len(pixels))\n        if'),
    Mutant("detached gradient", "pgd.py", "torch.autograd.grad(losses.sum(), pixels)",
           "torch.autograd.grad((0 * pixels).sum() + 0 * losses.sum(), pixels)"),
    Mutant("one step too few", "pgd.py", "for step in range(self.num_steps + 1):", "for step in range(self.num_steps):"),
    Mutant("one step too many", "pgd.py", "if step < self.num_steps:\n                        loss, gradient",
           "if step <= self.num_steps:\n                        loss, gradient"),
    Mutant("last iterate, not best", "pgd.py", "better = loss > best_loss", "better = loss > -torch.inf"),
    Mutant("worst iterate", "pgd.py", "better = loss > best_loss", "better = loss < best_loss"),
    Mutant("best of the batch, not of the example", "pgd.py", "better = loss > best_loss",
           "better = (loss.sum() > best_loss.sum()).expand_as(loss)"),
    Mutant("norm over the batch", "pgd.py", "dims = tuple(range(1, gradient.ndim))", "dims = tuple(range(gradient.ndim))"),
    Mutant("l2 is sign", "pgd.py", 'if self.gradient == "sign":', 'if self.gradient in ("sign", "l2"):'),
    Mutant("step in normalised units", "pgd.py", "return self.step_size * direction / std", "return self.step_size * direction"),
    Mutant("no random start", "pgd.py", "if not self.random_start:", "if True:"),
    Mutant("every restart is the same", "pgd.py", "generator=self.generator,", "generator=self.generator.manual_seed(0),"),
    Mutant("global random state", "pgd.py", "with isolated_rng(clean):", "if True:"),
    Mutant("NaN gradient", "pgd.py", "gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)", "gradient"),
    Mutant("parameters get gradients", "pgd.py", "(gradient,) = torch.autograd.grad(losses.sum(), pixels)",
           "losses.sum().backward(); gradient = pixels.grad"),
    Mutant("geometry is the identity", "geometry.py", "sentence.text, sentence.loss, sentence.stale = trial.text,",
           "sentence.text, sentence.loss, sentence.stale = sentence.text,"),
    Mutant("absolute projection", "geometry.py", "(displacement @ trial.sentence.direction).argmax()",
           "(displacement @ trial.sentence.direction).abs().argmax()"),
    Mutant("projection downhill", "geometry.py", "(displacement @ trial.sentence.direction).argmax()",
           "(displacement @ trial.sentence.direction).argmin()"),
    Mutant("first candidate", "geometry.py", "int((displacement @ trial.sentence.direction).argmax())", "0"),
    Mutant("projection of the embedding", "geometry.py", "candidates - trial.sentence.embedding", "0 * candidates"),
    Mutant("always accept", "geometry.py", "if trial.loss > trial.sentence.loss:", "if True:"),
    Mutant("accept a lower loss", "geometry.py", "if trial.loss > trial.sentence.loss:", "if trial.loss < trial.sentence.loss:"),
    Mutant("least influential word", "geometry.py", "index = max(sentence.untried", "index = min(sentence.untried"),
    Mutant("first word", "geometry.py", "(sentence.influence[index], -index)", "-index"),
    Mutant("first piece of a word", "geometry.py", "word.first : word.last + 1].mean(dim=0).norm()",
           "word.first].norm()"),
    Mutant("pieces summed by norm", "geometry.py", ".mean(dim=0).norm()", ".norm()"),
    Mutant("stale gradients", "geometry.py", "trial.text, trial.loss, True", "trial.text, trial.loss, False"),
    Mutant("gradients of all, always", "geometry.py", "if sentence.stale and sentence.untried", "if sentence.untried"),
    Mutant("budget ignored", "geometry.py", "if sentence.budget == 0:", "if False:"),
    Mutant("budget off by one", "geometry.py", "if sentence.budget == 0:", "if sentence.budget == -1:"),
    Mutant("budget rounded up", "geometry.py", "+ 1e-9)", "+ 0.999)"),
    Mutant("no word in short texts", "geometry.py", "budget = max(budget, 1)", "pass"),
    Mutant("stop words attacked", "geometry.py", "if text[word.start : word.end].lower() not in STOP_WORDS", "if True"),
    Mutant("compounds attacked", "geometry.py", ".isalpha() and not joined", ".isalpha()"),
    Mutant("truncation ignored", "geometry.py", "if rest_unchanged and spelled", "if spelled"),
    Mutant("unknown words substituted", "geometry.py", "self.tokenizer.unk_token_id not in middle", "True"),
    Mutant("min_cosine ignored", "geometry.py", "if cosine >= self.min_cosine", "if True"),
    Mutant("max_candidates ignored", "geometry.py", "candidates[: self.max_candidates]", "candidates"),
    Mutant("max_loops off by one", "geometry.py", "in range(self.max_loops)", "in range(self.max_loops + 1)"),
    Mutant("casing lost", "geometry.py", "match_case(candidate, word)", "candidate"),
    Mutant("ids of the clean text", "geometry.py", "**search.encode([sentence.text for sentence in sentences])}",
           '"text": [sentence.text for sentence in sentences]}'),
    Mutant("rows of other examples", "geometry.py", "rows = [trial.sentence.row for trial in trials for _ in trial.variants]",
           "rows = [0 for trial in trials for _ in trial.variants]"),
    Mutant("candidates of another chunk", "geometry.py", "texts[first : first + self.chunk])", "texts[: self.chunk])"),
    Mutant("image half dropped", "joint.py", 'image.batch["pixel_values"]}', 'batch["pixel_values"]}'),
    Mutant("text half dropped", "joint.py", "**attacked_text, ", ""),
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main("attacks", MUTANTS, __doc__))
