"""Robust multimodal contrastive learning for vision-and-language models."""

from importlib.metadata import version

__version__ = version("rmcl-hub")
