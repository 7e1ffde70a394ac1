"""RMCL: attack the clean pairs on the fly and pull attacked and clean joint embeddings together."""

from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback

from rmcl_hub.attacks.base import (
    Attack,
    AttackResult,
    Batch,
    CleanPass,
    JointObjective,
    frozen,
    model_inputs,
)
from rmcl_hub.modeling_rmcl.contrastive_losses import (
    barlow_twins_loss,
    barlow_twins_loss_per_example,
    gather_embeddings,
    info_nce_loss,
)
from rmcl_hub.modeling_rmcl.momentum_encoder import MomentumEncoder

from .arguments import RMCLArguments
from .attack_seeding import seed_attack
from .guarded_trainer import GuardedTrainer
from .processes import means_over_processes, require_whole_weights
from .view_statistics import view_statistics

STATE_FILE = "rmcl_state.pt"


class RMCLTrainer(GuardedTrainer):
    """Trainer of robust multimodal contrastive learning (thesis section 2.4, Eq. 2.9-2.11).

    The projector of the model chooses the objective: `"moco"` keeps a momentum encoder and a queue as the key
    branch, `"barlow_twins"` uses the same weights without gradient. Accumulating 8 batches of 1 equals one
    batch of 8 with MoCo; Barlow Twins correlates over what is in one forward. Parameters that only ViLT's own
    objectives use are frozen unless `args.pretraining_weight` keeps these.

    Args:
        image_attack: Attack of the image view; must be given when `args.views` has `"image"` or `"both"`. If
            it has a `generator`, this trainer seeds it before every use.
        text_attack: Attack of the text view; must be given when `args.views` has `"text"` or `"both"`.
        *args: Passed to `transformers.Trainer`; `args` is an `RMCLArguments`, batches carry `text`.
        **kwargs: Likewise.

    Raises:
        TypeError: If `args` are not `RMCLArguments`.
        ValueError: If a view has no attack.
    """

    args: RMCLArguments
    model: Any  # what it must offer, not what it must be: joint_embedding, config, the heads of pre-training

    def __init__(
        self, *args: Any, image_attack: Attack | None = None, text_attack: Attack | None = None, **kwargs: Any
    ) -> None:
        given = kwargs.get("args", args[1] if len(args) > 1 else None)
        if not isinstance(given, RMCLArguments):
            raise TypeError(f"RMCLTrainer needs args of RMCLArguments, got {type(given).__name__}.")
        # Searching for unused parameters would look at one forward only, but every view has its own.
        # Set before `Trainer` reads it.
        given.ddp_find_unused_parameters = False
        super().__init__(*args, **kwargs)
        self.attacks: dict[str, Attack] = {}
        for view, attack in (("image", image_attack), ("text", text_attack)):
            if {view, "both"} & set(self.args.views):
                if attack is None:
                    raise ValueError(
                        f"views {self.args.views} need a {view}_attack, got None; pass one or change views."
                    )
                self.attacks[view] = attack
        config = self.model.config
        self.key_branch: MomentumEncoder | None = None
        if config.projector == "moco":
            self.key_branch = MomentumEncoder(
                self.model, config.projection_dim, config.queue_size, config.momentum, self.args.queue_init
            ).to(self.args.device)
        self.current_gradient_accumulation_steps = 1  # until `Trainer` counts them
        self._pending_keys: list[Tensor] = []
        self._statistics: dict[str, list[Any]] = defaultdict(list)
        self.encoder_passes = 0  # rows through the encoder, forward or backward, on this process
        self.add_callback(_StepCallback(self))
        self._prepare_for_processes()

    # The RMCL step, top to bottom ---------------------------------------------------------------------------

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **_: Any) -> Any:
        """Loss of one RMCL step; `Trainer` then takes its gradient, moves the weights, calls `end_step`.

        In training, the gradients of all views but the last are there when it returns: each is taken as soon
        as its loss is known, so that the activations of one view are kept at a time.
        """
        encoder = self.accelerator.unwrap_model(model)
        with frozen(encoder):
            key = self._embed_keys(encoder, inputs)  # (batch, dim), constants
            keys = gather_embeddings(key)  # (processes * batch, dim)
            results = self._attack(encoder, inputs, key, keys)
        views, losses = self._views(results), {}
        for view, attacked in views.items():
            early = self._goes_back_early(model, view)
            with self.accelerator.no_sync(model) if early else nullcontext():
                query = model(**model_inputs(attacked)).embeds  # (batch, dim)
                losses[view] = self._contrastive_loss(query, key, keys)
                self._record_distances(view, losses[view], query, keys)
                if early:
                    losses[view] = self._take_gradient(losses[view])
        self._record(_attack_statistics(inputs, results, losses))
        loss = torch.stack(list(losses.values()))
        loss = loss.mean() if self.args.reduction == "mean" else loss.sum()
        if model.training:  # an evaluation must not feed the queue
            self._pending_keys.append(key)
            self.encoder_passes += len(key) * (1 + 2 * len(views))
        if self.args.pretraining_weight:
            loss = loss + self.args.pretraining_weight * self._pretraining_loss(model, inputs)
        return (loss, losses) if return_outputs else loss

    @torch.no_grad()
    def _embed_keys(self, encoder: Any, inputs: Batch) -> Tensor:
        """Clean pairs seen by MoCo's momentum branch, or by Barlow Twins' shared weights.

        In evaluation mode, also Barlow Twins' normalisation layers: one key then serves the adversary, which
        needs an embedding per pair, and the loss.
        """
        with self.accelerator.autocast():
            return (self.key_branch or encoder.joint_embedding)(**model_inputs(inputs)).float()

    def _attack(self, encoder: Any, inputs: Batch, key: Tensor, keys: Tensor) -> dict[str, AttackResult]:
        """What each attack made of the clean pairs; one modality at a time (thesis 2.5.2)."""
        batch = {**inputs, "positive_key": key, "row": self._rows(key)}
        objective, results = self._adversary(encoder, keys, CleanPass(batch)), {}
        place = (self.state.global_step, len(self._pending_keys), self.args.process_index)
        for view, attack in self.attacks.items():  # the image first: its clean pass serves the text, too
            seed_attack(attack, self.args.seed, place)
            results[view] = attack(batch, objective)
            self.encoder_passes += results[view].forwards + results[view].backwards
        return results

    def _views(self, results: dict[str, AttackResult]) -> dict[str, Batch]:
        """Attacked batches by view; `both` combines the two modalities (thesis 2.5.2)."""
        views = {view: result.batch for view, result in results.items()}
        if "both" in self.args.views:
            views["both"] = {**views["text"], "pixel_values": views["image"]["pixel_values"]}
        return {view: views[view] for view in self.args.views}

    def _adversary(self, encoder: Any, keys: Tensor, clean: CleanPass) -> JointObjective:
        """What the adversary maximises (Eq. 2.11): each pair's contrastive loss against its own clean key."""

        def embed_images(batch: Batch) -> dict[str, Tensor]:
            with self.accelerator.autocast():
                tokens, mask = encoder.embed_image(batch["pixel_values"], batch.get("pixel_mask"))
            return {"image_embeds": tokens, "pixel_mask": mask}  # (batch, tokens, hidden), padding last

        def embed(batch: Batch) -> Tensor:
            inputs = model_inputs(batch)
            if "image_embeds" in inputs:  # chosen rows may need less padding than the batch
                longest = int(inputs["pixel_mask"].sum(dim=1).max())
                inputs |= {name: inputs[name][:, :longest] for name in ("image_embeds", "pixel_mask")}
            with self.accelerator.autocast():
                embedding = encoder.joint_embedding(**inputs).float()
            return embedding if self.key_branch is None else F.normalize(embedding, dim=1)

        def loss(query: Tensor, batch: Batch) -> Tensor:
            config = encoder.config
            if self.key_branch is None:
                return barlow_twins_loss_per_example(query, batch["row"], keys, keys, config.barlow_lambda)
            queue, temperature = self.key_branch.queue, config.contrastive_temperature
            return info_nce_loss(query, batch["positive_key"], queue, temperature, reduction="none")

        return JointObjective(embed, loss, encoder.get_input_embeddings(), clean, embed_images)

    def _contrastive_loss(self, query: Tensor, key: Tensor, keys: Tensor) -> Tensor:
        """Loss of one attacked view against the clean keys (Eq. 2.9, 2.10); `keys` are of all processes."""
        config = self.model.config
        if self.key_branch is None:
            query = gather_embeddings(query)
            return barlow_twins_loss(query, keys, config.barlow_lambda, self.args.barlow_center)
        query, queue = F.normalize(query, dim=1), self.key_branch.queue
        return info_nce_loss(query, key, queue, config.contrastive_temperature)

    def _goes_back_early(self, model: nn.Module, view: str) -> bool:
        """Whether a view's gradient is taken before the next view; DeepSpeed moves the weights after one."""
        trains = model.training and torch.is_grad_enabled() and not self.is_deepspeed_enabled
        return trains and view != self.args.views[-1]

    def _take_gradient(self, loss: Tensor) -> Tensor:
        """Add the gradient of a view's share in the step, as `Trainer` does with the rest; the loss alone."""
        share = loss / len(self.args.views) if self.args.reduction == "mean" else loss
        self.accelerator.backward(share / self.current_gradient_accumulation_steps)
        return loss.detach()

    def end_step(self) -> None:
        """After the optimiser: move the key branch, and enqueue the step's keys of all processes.

        Once per optimiser step, not per micro-batch: while gradients accumulate, the negatives stay.
        """
        if self.key_branch is not None:
            self.key_branch.update(self.accelerator.unwrap_model(self.model))
            self.key_branch.enqueue(cast(Tensor, self.accelerator.gather(torch.cat(self._pending_keys))))
        self._pending_keys.clear()

    # Around the step ----------------------------------------------------------------------------------------

    def _pretraining_loss(self, model: nn.Module, inputs: Batch) -> Tensor:
        targets = ("mlm_input_ids", "mlm_labels", "itm_image_index", "itm_labels")
        given = {name: inputs[name] for name in targets if name in inputs}
        passes = ("mlm_labels" in given) + ("itm_labels" in given) + bool(self.model.config.itc_weight)
        if model.training:
            self.encoder_passes += 2 * passes * len(inputs["input_ids"])
        return model(**model_inputs(inputs), **given).loss

    def _record(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self._statistics[name].append(value)

    def _rows(self, own: Tensor) -> Tensor:
        """Where this process's rows are among those of all, `(batch,)`."""
        return torch.arange(len(own), device=own.device) + self.args.process_index * len(own)

    @torch.no_grad()
    def _record_distances(self, view: str, loss: Tensor, query: Tensor, keys: Tensor) -> None:
        """The thesis's curves (Fig. 4.11-4.15): distances to the own key and to negatives, L2 and cosine."""
        query, keys, rows = F.normalize(query, dim=1), F.normalize(keys, dim=1), self._rows(query)
        key = keys[rows]
        if self.key_branch is not None:
            negative = query @ F.normalize(self.key_branch.queue, dim=1).T  # (batch, queue_size)
        else:  # the other pairs of the batch
            others = torch.arange(len(keys), device=keys.device) != rows[:, None]
            negative = (query @ keys.T)[others]
        self._record(
            {
                f"loss_{view}": loss.detach(),
                f"positive_cosine_{view}": (query * key).sum(dim=1).mean(),
                f"positive_l2_{view}": (query - key).norm(dim=1).mean(),
                f"negative_cosine_{view}": negative.mean(),
                f"negative_l2_{view}": (2 - 2 * negative).clamp_min(0).sqrt().mean(),
                # 0 collapsed, 1 spread evenly over the sphere
                "embedding_std": keys.std(dim=0, correction=0).mean() * keys.shape[1] ** 0.5,
            }
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of RMCL's curves since the last log, and the passes, of all processes together."""
        means = means_over_processes(self._statistics)
        self._statistics.clear()
        super().log({**logs, **means, "encoder_passes": self.total_encoder_passes()}, *args, **kwargs)

    def total_encoder_passes(self) -> int:
        """Rows through the encoder on all processes; all have to ask."""
        return sum(gather_object([self.encoder_passes]))

    def save_state_beside(self, checkpoint: Path) -> None:
        """Save what a resumed run needs and `Trainer` does not know: key branch, queue, counted passes."""
        encoder_passes = self.total_encoder_passes()
        if self.args.process_index == 0:
            key_branch = None if self.key_branch is None else self.key_branch.state_dict()
            torch.save({"key_branch": key_branch, "encoder_passes": encoder_passes}, checkpoint / STATE_FILE)

    def load_state_beside(self, checkpoint: Path) -> None:
        """Go on with the key branch (momentum encoder, queue, pointer) and the counted passes, too.

        Raises:
            FileNotFoundError: If the checkpoint was not saved by this trainer.
        """
        if not (checkpoint / STATE_FILE).is_file():
            raise FileNotFoundError(
                f"Cannot resume RMCL from {checkpoint}: it holds no {STATE_FILE}. Give a checkpoint folder "
                "that this trainer saved; weights alone can start a new run through init_from."
            )
        state = torch.load(checkpoint / STATE_FILE, map_location="cpu", weights_only=True)
        self.encoder_passes = state["encoder_passes"] if self.args.process_index == 0 else 0
        if self.key_branch is not None:
            self.key_branch.load_state_dict(state["key_branch"])

    def _prepare_for_processes(self) -> None:
        """On several processes, wait for no gradient that will not come."""
        require_whole_weights(self.accelerator.distributed_type)
        if not self.args.pretraining_weight:
            for name, parameter in self.model.named_parameters():
                if not name.startswith(("vilt.", "projector.")):
                    parameter.requires_grad_(False)


def _attack_statistics(
    inputs: Batch, results: dict[str, AttackResult], losses: dict[str, Tensor]
) -> dict[str, Any]:
    """How hard the attacks hit; where one did not score what it found, the loss of its query says so.

    That loss has the query's dropout in it and, with Barlow Twins, all pairs attacked at once, so that such a
    gain compares with that of other steps, not with a scored one.
    """
    statistics = view_statistics(dict(inputs), results)
    clean = [result.loss_before for result in results.values() if not result.loss_before.isnan().any()]
    for view, result in results.items():
        if result.forwards and result.loss_after.isnan().all():
            statistics.pop(f"attack_gain_{view}", None)
            if clean and view in losses:
                statistics[f"attack_gain_{view}"] = losses[view].detach() - clean[0].mean()
    return statistics


class _StepCallback(TrainerCallback):
    """Calls the trainer back at the end of a step, which `Trainer` tells only to callbacks."""

    def __init__(self, trainer: RMCLTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer.end_step()
