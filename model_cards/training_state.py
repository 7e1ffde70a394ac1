"""Momentum encoder and queue of a run as a repository beside the model's, without pickles."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .dataset_repository import empty_folder
from .staged_repository import CARD, StagedRepository

STATE_FILE = "rmcl_state.pt"  # as trainers.rmcl_trainer saves it in a checkpoint
TRAINING_STATE = "training_state.safetensors"
CARD_TEMPLATE = "training_state_card.md"


def stage_training_state(
    state_file: str | Path, output_dir: str | Path, *, name: str, model_repo: str
) -> StagedRepository:
    """What a run of RMCL needs to go on besides the model, in a repository of its own and without pickles.

    Args:
        state_file: `rmcl_state.pt` of a checkpoint: momentum encoder, queue, its pointer and counted passes.
        output_dir: Folder of the repository, empty or not there yet.
        name: Name on the Hub.
        model_repo: Hub id of the model, for the card.

    Raises:
        FileNotFoundError: If there is no such file.
        FileExistsError: If the folder holds anything.
        ValueError: If the file holds no key branch: Barlow Twins has none.
    """
    import torch
    from safetensors.torch import save_file

    state = torch.load(state_file, map_location="cpu", weights_only=True)
    if state["key_branch"] is None:
        raise ValueError(f"{state_file} holds no momentum encoder and queue: only projector 'moco' has them.")
    folder = empty_folder(output_dir)
    # Cloned, because tied parameters share memory, which safetensors does not store.
    tensors = {key: value.contiguous().clone() for key, value in state["key_branch"].items()}
    save_file(tensors, folder / TRAINING_STATE, {"encoder_passes": str(state["encoder_passes"])})
    card = ModelCard.from_template(
        ModelCardData(license="apache-2.0", base_model=model_repo, tags=["rmcl", "training-state"]),
        template_str=files("rmcl_hub.model_cards").joinpath(CARD_TEMPLATE).read_text(encoding="utf-8"),
        name=name,
        repo_id=f"{model_repo.split('/')[0]}/{name}",
        model_repo=model_repo,
        file=TRAINING_STATE,
        queue=tuple(tensors["queue"].shape),
    )
    (folder / CARD).write_text(str(card), encoding="utf-8")
    return StagedRepository.seal(name, "model", folder)


def read_training_state(file: str | Path) -> dict[str, Any]:
    """The content of `rmcl_state.pt` again, from `training_state.safetensors`.

    `torch.save(read_training_state(file), checkpoint / "rmcl_state.pt")` puts it where the trainer reads it.

    Raises:
        ValueError: If the file is none that `stage_training_state` wrote.
    """
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        passes = (stored.metadata() or {}).get("encoder_passes")
        if passes is None:
            raise ValueError(f"{file} is no training state of RMCL: it does not say encoder_passes.")
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - no dictionary
    return {"key_branch": tensors, "encoder_passes": int(passes)}
