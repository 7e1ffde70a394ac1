"""Where a number comes from: hashes of the model, the data and the code, and the libraries' versions."""

import hashlib
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LIBRARIES = ("torch", "torchvision", "transformers", "datasets", "accelerate", "evaluate", "huggingface_hub")


def model_digest(model: nn.Module) -> str:
    """Sixteen hexadecimal digits over the names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        _add_tensor(digest, name, value)
    return digest.hexdigest()[:16]


def batch_digest(batches: Iterable[Mapping[str, Any]]) -> str:
    """Sixteen hexadecimal digits over pixels, texts and labels, as the model sees them; the order counts."""
    digest = hashlib.sha256()
    for batch in batches:
        for name in ("pixel_values", "pixel_mask", "labels"):
            if name in batch:
                _add_tensor(digest, name, batch[name])
        digest.update("\n".join(batch["text"]).encode())
    return digest.hexdigest()[:16]


def _add_tensor(digest: Any, name: str, value: Tensor) -> None:
    digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
    digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())


def code_revision() -> str:
    """Commit of the checkout that the package runs from, `+changes` if it was changed; else its version."""
    folder = Path(__file__).resolve().parent
    try:
        if Path(_git(folder, "rev-parse", "--show-toplevel")).resolve() != folder.parent:
            raise OSError("installed inside somebody else's checkout")
        revision = _git(folder, "rev-parse", "HEAD")
        return revision + (
            "+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return f"rmcl-hub {version('rmcl-hub')}"


def library_versions() -> dict[str, str]:
    """Version of Python and of every library that a number may depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
