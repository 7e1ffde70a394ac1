"""Fine-tune a task head, on clean batches or on clean and attacked ones."""

from collections import defaultdict
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from rmcl_hub.attacks.base import Attack, Batch, JointObjective, frozen, model_inputs
from rmcl_hub.attacks.joint import IndependentAttack
from rmcl_hub.evaluation.task_losses import cross_entropy_to_label

from .attack_seeding import seed_attack
from .guarded_trainer import GuardedTrainer
from .processes import means_over_processes, require_whole_weights

_TEXT_FIELDS = ("input_ids", "attention_mask", "token_type_ids")


class FinetuneTrainer(GuardedTrainer):
    """Trainer of a task head.

    With an attack it trains adversarially (Madry et al., arXiv:1706.06083): every batch is attacked against
    the weights as they are, and the loss is `(clean + w * adversarial) / (1 + w)`. The two terms with w = 1
    are those of VILLA (arXiv:2006.06195), without its divergence of the two predictions and with attacks on
    pixels and words in place of embeddings; Madry et al. keep the second term alone. Evaluations are clean.

    What the attack maximises is the cross-entropy of each example's labels, for retrieval that of a picture's
    own text among its group. So it is for VQA, too: the binary loss of training is a sum over thousands of
    answers, which can rise without any prediction changing.

    Args:
        image_attack: Attack on pictures. If it has a `generator`, this trainer seeds it before every use.
        text_attack: Attack on words; with both, each attacks alone and the two are combined.
        adversarial_weight: w, positive.
        eval_collator: Collates the validation rows; None: as the training rows.
        *args: Passed to `transformers.Trainer`.
        **kwargs: Likewise.
    """

    def __init__(
        self,
        *args: Any,
        image_attack: Attack | None = None,
        text_attack: Attack | None = None,
        adversarial_weight: float = 1.0,
        eval_collator: Any = None,
        **kwargs: Any,
    ) -> None:
        given = kwargs.get("args", args[1] if len(args) > 1 else None)
        if given is not None:
            # Searching for unused parameters would look at one forward of two, and heads leave none unused.
            # Set before `Trainer` reads it.
            given.ddp_find_unused_parameters = False
        super().__init__(*args, **kwargs)
        self.attack: Any = image_attack or text_attack
        if self.attack is not None:
            require_whole_weights(self.accelerator.distributed_type)
        if image_attack is not None and text_attack is not None:
            self.attack = IndependentAttack(image_attack, text_attack)
        self._seeded = (image_attack, text_attack)
        self.adversarial_weight = adversarial_weight
        self.eval_collator = eval_collator
        self._place = (-1, 0)  # step and micro-batch of the last attack
        self._statistics: dict[str, list[Tensor]] = defaultdict(list)

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **_: Any) -> Any:
        """Loss of a batch; outputs hold `logits`, one row per example `(batch, classes or texts)`."""
        attacked = self._attack(model, inputs) if self.attack is not None and model.training else None
        loss, logits = self._task_loss(model, inputs)
        if attacked is not None:
            adversarial_loss = self._task_loss(model, attacked)[0]
            self._statistics["clean_loss"].append(loss.detach())
            self._statistics["adversarial_loss"].append(adversarial_loss.detach())
            loss = (loss + self.adversarial_weight * adversarial_loss) / (1 + self.adversarial_weight)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def _task_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        output = model(**self._pairs(self.accelerator.unwrap_model(model), batch), labels=labels)
        return output.loss, _by_example(output.logits, labels)

    def _pairs(self, encoder: Any, batch: Batch) -> dict[str, Any]:
        """Inputs of the head; a group of texts shares its picture, whose patches are embedded once."""
        inputs = model_inputs(batch)
        if not hasattr(encoder, "rank_output"):
            return inputs
        with self.accelerator.autocast():
            image, mask = encoder.embed_image(inputs["pixel_values"], inputs["pixel_mask"])
        texts = inputs["input_ids"].shape[1]
        return {
            **{name: inputs[name].flatten(0, 1) for name in _TEXT_FIELDS},  # (batch * texts, length)
            "image_embeds": image.repeat_interleave(texts, dim=0),  # (batch * texts, tokens, hidden)
            "pixel_mask": mask.repeat_interleave(texts, dim=0),
        }

    def _attack(self, model: nn.Module, inputs: Batch) -> Batch:
        encoder: Any = self.accelerator.unwrap_model(model)
        step, micro_batch = self._place
        micro_batch = micro_batch + 1 if step == self.state.global_step else 0
        self._place = (self.state.global_step, micro_batch)
        for attack in self._seeded:
            seed_attack(attack, self.args.seed, (*self._place, self.args.process_index))

        def embed(batch: Batch) -> Tensor:
            with self.accelerator.autocast():
                return encoder.joint_representation(**self._pairs(encoder, batch)).float()

        def loss(joint: Tensor, batch: Batch) -> Tensor:
            logits = encoder.logits_from_joint(joint)
            return cross_entropy_to_label(_by_example(logits, batch["labels"]), batch["labels"])

        with frozen(encoder):
            result = self.attack(inputs, JointObjective(embed, loss, encoder.get_input_embeddings()))
        gain = result.loss_after - result.loss_before
        if not gain.isnan().all():  # an attack that was told not to score knows none
            self._statistics["attack_gain"].append(gain.mean())
        return result.batch

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As in `Trainer`, with the collator of evaluations."""
        training_collator = self.data_collator
        self.data_collator = self.eval_collator or training_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training_collator

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add all processes' means since the last log: clean and adversarial loss, and the attack's gain."""
        if "loss" in logs:  # of training, not of an evaluation
            logs = {**logs, **means_over_processes(self._statistics)}
            self._statistics.clear()
        super().log(logs, *args, **kwargs)


def _by_example(logits: Tensor, labels: Tensor) -> Tensor:
    """One row of logits per example: the scores `(batch * texts, 1)` of a group's pairs become a row."""
    return logits.reshape(len(labels), -1)
