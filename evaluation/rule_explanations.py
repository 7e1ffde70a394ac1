"""What it means when a rule of the audit fails, and what to do: for the reader of the report."""

EXPLANATIONS: dict[int, str] = {
    1: "A robustness figure without its threat model cannot be compared with any other. Name one.",
    2: "The attack did more than it may, so the figure is too low. Correct its projection or its word count.",
    3: "The effect is in the rounding: an attacker who sends a picture file gets another figure. "
    "Quote the one at 8 bits.",
    4: "Word pieces that no text gives are no attack. Tokenise the attacked text again before scoring it.",
    5: "A random model hides its weak spots from one try. Fix its randomness, or attack its expectation.",
    6: "Answers that depend on the neighbours in a batch cannot be scored again. Check padding, evaluation "
    "mode and precision.",
    7: "Attacks that climb a gradient have nothing to climb here. Attack the logits before any saturation.",
    8: "An attack whose loss does not rise is not attacking. Check its step size and the sign of its loss.",
    9: "A larger radius contains the smaller one, so the attack is at fault. Search longer before quoting "
    "any figure.",
    10: "Radius zero must change nothing, and at radius one any picture may become any other. A model that "
    "stays right there has hidden its gradient, or the radius is not what it says.",
    11: "An attacker without gradients found what those with gradients missed: the sign of hidden gradients. "
    "Attack without the part that hides it.",
    12: "More iterations found less, which is a fault of the attack. Check its step size and restarts.",
    13: "The figure would fall further with more work, so it is an upper bound only. Evaluate with more "
    "effort.",
    14: "One loss has one blind spot. Let at least cross entropy and a margin be maximised.",
    15: "Trying every combination of words finds more than the search does. Raise the number of candidates.",
    16: "Who knows of a defence attacks it. Say what the model does at test time and add an attack on it.",
    17: "A model can learn to resist the attacks that it was trained with. Add one that it has not seen.",
    18: "Pictures that were trained on are remembered, or nobody has looked. Give the training data, drop "
    "what is in both, and evaluate under a clean protocol.",
    19: "The figures contradict each other, so at least one is computed wrongly. Report this as a bug.",
    20: "A figure without an interval, or from one random start, says little. Run at least three seeds.",
    21: "Progress over what? Evaluate the same model without the treatment on the same examples.",
    22: "The gradient does not say where the loss rises, so attacks that follow it are weak here. Smooth the "
    "model for the attack, or attack without gradients.",
    23: "Work that is not counted cannot be compared. Count the forwards and backwards of each attack.",
    24: "A text that claims something else has another right answer. Protect such words from the attack.",
    25: "The attacks are tested against closed forms and planted errors in the project's own tests.",
    26: "The attacks are compared with an independent implementation in the project's own tests.",
    27: "Several processes give the number that one gives: shown by the project's own tests.",
    28: "Nobody can score the attacked examples again. Evaluate with a folder to write them to.",
}
