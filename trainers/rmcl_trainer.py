"""RMCL: attack the clean pairs on the fly and pull attacked and clean joint embeddings together."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from rmcl_hub.attacks.base import Attack, AttackResult, JointObjective, frozen, model_inputs
from rmcl_hub.modeling_rmcl.contrastive_losses import (
    barlow_twins_loss,
    barlow_twins_loss_per_example,
    gather_embeddings,
    info_nce_loss,
)
from rmcl_hub.modeling_rmcl.momentum_encoder import MomentumEncoder

from .guarded_trainer import GuardedTrainer
from .view_statistics import view_statistics

KEY_BRANCH_FILE = "key_branch.safetensors"


class RMCLTrainer(GuardedTrainer):
    """Trainer of robust multimodal contrastive learning (thesis section 2.4, Eq. 2.9-2.11).

    The projector of the model chooses the objective: `"moco"` keeps a momentum encoder and a queue as the key branch,
    `"barlow_twins"` uses the same weights without gradient.

    Args:
        image_attack: Attack of the image view; must be given when `args.views` has `"image"` or `"both"`.
        text_attack: Attack of the text view; must be given when `args.views` has `"text"` or `"both"`.
        *args: Passed to `transformers.Trainer`; `args` is an `RMCLArguments`, batches carry `text`.
        **kwargs: Likewise.

    Raises:
        ValueError: If a view has no attack.
    """

    def __init__(
        self, *args: Any, image_attack: Attack | None = None, text_attack: Attack | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = (
            False  # the loss is a batch mean; Trainer must divide it when accumulating
        )
        self.image_attack, self.text_attack = image_attack, text_attack
        for view, attack in (("image", image_attack), ("text", text_attack)):
            if attack is None and {view, "both"} & set(self.args.views):
                raise ValueError(
                    f"views {self.args.views} need a {view}_attack, got None; pass one or change views."
                )
        config = self.model.config
        self.key_branch: MomentumEncoder | None = None
        if config.projector == "moco":
            self.key_branch = MomentumEncoder(
                self.model, config.projection_dim, config.queue_size, config.momentum, self.args.queue_init
            ).to(self.args.device)
        self._pending_keys: list[Tensor] = []
        self._statistics: dict[str, list[float]] = defaultdict(list)
        self.encoder_passes = 0  # rows through the encoder, forward or backward, on this process
        self.add_callback(_KeyBranchCallback(self))

    # The RMCL step, top to bottom ------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """One RMCL step without the optimiser: keys, attacks, queries, loss."""
        encoder = self.accelerator.unwrap_model(model)
        with frozen(encoder):
            key = self._embed_keys(encoder, inputs)
            objective, batch = self._objective(encoder, inputs, key)
            views = self._attack(objective, batch)
        losses = {
            view: self._contrastive_loss(model, attacked, key, view) for view, attacked in views.items()
        }
        self._pending_keys.append(key)
        loss = torch.stack(list(losses.values())).sum()
        if self.args.reduction == "mean":
            loss = loss / len(losses)
        self.encoder_passes += len(key) * (1 + 2 * len(views))
        if self.args.pretraining_weight:
            loss = loss + self.args.pretraining_weight * self._pretraining_loss(model, inputs)
        return (loss, {"losses": losses}) if return_outputs else loss

    @torch.no_grad()
    def _embed_keys(self, encoder: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
        """Embeddings of the clean pairs, constants: MoCo's momentum branch or Barlow Twins' shared weights."""
        if self.key_branch is not None:
            return self.key_branch(**model_inputs(inputs))
        return encoder.joint_embedding(**model_inputs(inputs))

    def _objective(
        self, encoder: PreTrainedModel, inputs: dict[str, Any], key: Tensor
    ) -> tuple[JointObjective, dict[str, Any]]:
        """What the adversary maximises: the contrastive loss of each example, given its own clean key."""
        batch = {**inputs, "positive_key": key, "row": torch.arange(len(key), device=key.device)}
        config = encoder.config
        if self.key_branch is not None:
            queue, temperature = self.key_branch.queue, config.contrastive_temperature

            def loss(embedding: Tensor, batch: dict[str, Any]) -> Tensor:
                return info_nce_loss(embedding, batch["positive_key"], queue, temperature, reduction="none")
        else:

            def loss(embedding: Tensor, batch: dict[str, Any]) -> Tensor:
                return barlow_twins_loss_per_example(embedding, batch["row"], key, key, config.barlow_lambda)

        def embed(batch: dict[str, Any]) -> Tensor:
            embedding = encoder.joint_embedding(**model_inputs(batch))
            return embedding if self.key_branch is None else F.normalize(embedding, dim=1)

        return JointObjective(embed, loss, encoder.get_input_embeddings()), batch

    def _attack(self, objective: JointObjective, batch: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Attacked batches by view; one modality at a time, `both` combines the two (thesis section 2.5.2)."""
        attacked: dict[str, AttackResult] = {}
        for view, attack in (("image", self.image_attack), ("text", self.text_attack)):
            if attack is not None and {view, "both"} & set(self.args.views):
                attacked[view] = attack(batch, objective)
                self.encoder_passes += attacked[view].forwards + attacked[view].backwards
        self._record(view_statistics(batch, attacked))
        views = {view: result.batch for view, result in attacked.items() if view in self.args.views}
        if "both" in self.args.views:
            image = {name: attacked["image"].batch[name] for name in ("pixel_values", "pixel_mask")}
            views["both"] = {**attacked["text"].batch, **image}
        return views

    def _contrastive_loss(self, model: nn.Module, attacked: dict[str, Any], key: Tensor, view: str) -> Tensor:
        """Loss of one attacked view against the clean keys; runs through `model` so that DDP sees the forward."""
        query, config = model(**model_inputs(attacked)).embeds, self.model.config
        if self.key_branch is not None:
            query, negatives = F.normalize(query, dim=1), self.key_branch.queue
            loss = info_nce_loss(query, key, negatives, config.contrastive_temperature)
        else:
            query, key = gather_embeddings(query), gather_embeddings(key)
            negatives = key.roll(1, dims=0)
            loss = barlow_twins_loss(query, key, config.barlow_lambda, self.args.barlow_center)
        self._record_distances(view, loss, query.detach(), key, negatives)
        return loss

    # Around the step -------------------------------------------------------------------------------------------------

    def _pretraining_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        targets = ("mlm_input_ids", "mlm_labels", "itm_image_index", "itm_labels")
        given = {name: inputs[name] for name in targets if name in inputs}
        passes = ("mlm_labels" in given) + ("itm_labels" in given) + bool(self.model.config.itc_weight)
        self.encoder_passes += 2 * passes * len(inputs["input_ids"])
        return model(**model_inputs(inputs), **given).loss

    def end_step(self) -> None:
        """After the optimiser step: move the key branch and put the step's keys of all processes into the queue.

        Once per optimiser step, not per micro-batch, so that accumulating 8 batches of 1 is one batch of 8.
        """
        if self.key_branch is not None:
            self.key_branch.update(self.accelerator.unwrap_model(self.model))
            self.key_branch.enqueue(self.accelerator.gather(torch.cat(self._pending_keys)))
        self._pending_keys.clear()

    def _record(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._statistics[name].append(value)

    @torch.no_grad()
    def _record_distances(
        self, view: str, loss: Tensor, query: Tensor, key: Tensor, negatives: Tensor
    ) -> None:
        """The thesis's curves (Fig. 4.11-4.15): distances to the own key and to the negatives, L2 and cosine."""
        query, key, negatives = (F.normalize(item, dim=1) for item in (query, key, negatives))
        cosine = query @ negatives.T
        self._record(
            {
                f"loss_{view}": loss.item(),
                f"positive_cosine_{view}": (query * key).sum(dim=1).mean().item(),
                f"positive_l2_{view}": (query - key).norm(dim=1).mean().item(),
                f"negative_cosine_{view}": cosine.mean().item(),
                f"negative_l2_{view}": (2 - 2 * cosine).clamp_min(0).sqrt().mean().item(),
                "embedding_std": key.std(dim=0).mean().item() * key.shape[1] ** 0.5,  # 0 collapsed, 1 spread
            }
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of RMCL's curves since the last log to what `report_to` receives."""
        means = {name: sum(values) / len(values) for name, values in self._statistics.items()}
        self._statistics.clear()
        super().log({**logs, **means, "encoder_passes": self.encoder_passes}, *args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; on resume the key branch (momentum encoder, queue, pointer) continues from its checkpoint too."""
        if resume_from_checkpoint and self.key_branch is not None:
            folder = resume_from_checkpoint
            if folder is True:
                folder = get_last_checkpoint(self.args.output_dir)
            if folder is None or not (Path(folder) / KEY_BRANCH_FILE).is_file():
                raise FileNotFoundError(
                    f"Cannot resume RMCL from {folder}: it holds no {KEY_BRANCH_FILE}. Give a checkpoint folder that "
                    "this trainer saved; weights alone can start a new run through init_from."
                )
            self.key_branch.load_state_dict(load_file(Path(folder) / KEY_BRANCH_FILE))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)


class _KeyBranchCallback(TrainerCallback):
    """Calls the trainer back at the two moments that `Trainer` offers only to callbacks."""

    def __init__(self, trainer: RMCLTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer.end_step()

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if self.trainer.key_branch is not None and state.is_world_process_zero:
            state_dict = {
                name: value.contiguous() for name, value in self.trainer.key_branch.state_dict().items()
            }
            save_file(state_dict, Path(args.output_dir) / f"checkpoint-{state.global_step}" / KEY_BRANCH_FILE)
