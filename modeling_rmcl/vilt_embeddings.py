"""Word and patch embeddings of ViLT (arXiv:2102.03334, section 3.1), named as in Transformers' ViLT."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_rmcl import RMCLViltConfig


class TextEmbeddings(nn.Module):
    """BERT's sum of word, position and segment embeddings, normalised."""

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inputs_embeds: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Embed word vectors `(batch, length, hidden)`; `token_type_ids` default to zeros."""
        length, longest = inputs_embeds.shape[1], self.position_embeddings.num_embeddings
        if length > longest:
            raise ValueError(
                f"The text has {length} tokens but the model has max_position_embeddings={longest}; "
                f"tokenise with truncation=True, max_length={longest}."
            )
        segments = (
            inputs_embeds.new_zeros(1, length, dtype=torch.long) if token_type_ids is None else token_type_ids
        )
        positions = self.position_embeddings.weight[:length]  # (length, hidden)
        embeddings = inputs_embeds + self.token_type_embeddings(segments) + positions
        return self.dropout(self.LayerNorm(embeddings))  # (batch, length, hidden)


class PatchEmbeddings(nn.Module):
    """Linear embedding of non-overlapping square patches.

    A convolution by its weights, so that they are those of ViLT; computed as one matrix product over all
    patches, whose gradient with respect to the pixels costs a fraction of a convolution's.
    """

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__()
        self.patch_size = _side(config.patch_size)
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed `(batch, channels, height, width)` as `(batch, rows, columns, hidden)`."""
        batch, channels, height, width = pixel_values.shape
        side = self.patch_size
        patches = pixel_values.to(self.projection.weight.dtype).reshape(
            batch, channels, height // side, side, width // side, side
        )
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (batch, rows, columns, pixels of a patch)
        return F.linear(patches, self.projection.weight.flatten(1), self.projection.bias)


class ViltEmbeddings(nn.Module):
    """Embeddings of both modalities, each marked with its modality type (0 text, 1 image, 2 second image)."""

    def __init__(self, config: RMCLViltConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_size = _side(config.patch_size)
        self.grid_size = _side(config.image_size) // self.patch_size
        self.text_embeddings = TextEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = PatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.zeros(1, self.grid_size**2 + 1, config.hidden_size))
        self.token_type_embeddings = nn.Embedding(config.modality_type_vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def embed_text(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Text tokens `(batch, length, hidden)` from ids, or from word vectors of the same length."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.text_embeddings.word_embeddings(input_ids)
        return self.text_embeddings(inputs_embeds, token_type_ids) + self.token_type_embeddings.weight[0]

    def embed_image(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Image tokens without their modality type, in row-major patch order.

        Transformers' ViLT shuffles the patches with the global random generator. The encoder does not care
        about order, but a fixed one makes patch states comparable and leaves the generator alone.

        Args:
            pixel_values: `(batch, channels, height, width)`, both sides multiples of the patch size.
            pixel_mask: `(batch, height, width)`, 1 = real pixel; the real pixels fill a top left rectangle. A
                patch counts as real when its first pixel is. Default: all are real.

        Returns:
            Tokens `(batch, 1 + patches, hidden)`, class token first, and their mask `(batch, 1 + patches)`.
            `patches` is the largest number of real patches in the batch; padding patches come last.

        Raises:
            ValueError: If shapes do not fit, an image is fully masked, or one has more patches than
                `config.max_image_length`.
        """
        patches = self.patch_embeddings(self._check_pixels(pixel_values))  # (batch, rows, columns, hidden)
        if pixel_mask is None:
            patches = (patches + self._stretched_positions(patches.shape[1:3])).flatten(1, 2)
            patch_mask = torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device)
        else:
            patch_mask = self._patch_mask(pixel_values, pixel_mask)  # (batch, rows, columns)
            heights, widths = patch_mask[:, :, 0].sum(1), patch_mask[:, 0, :].sum(1)
            patches = (patches + self._stretched_positions(patches.shape[1:3], heights, widths)).flatten(1, 2)
            patches, patch_mask = _move_padding_last(patches, patch_mask.flatten(1))
        if 0 < self.config.max_image_length < patches.shape[1]:
            raise ValueError(
                f"An image has {patches.shape[1]} patches but config.max_image_length is "
                f"{self.config.max_image_length}. Transformers' ViLT would drop patches at random; "
                "resize the image or set max_image_length=-1."
            )
        class_token = self.cls_token + self.position_embeddings[:, :1]  # (1, 1, hidden)
        tokens = torch.cat([class_token.expand(len(patches), -1, -1), patches], dim=1)
        return self.dropout(tokens), F.pad(patch_mask, (1, 0), value=1)

    def _check_pixels(self, pixel_values: Tensor) -> Tensor:
        patch, channels = self.patch_size, self.config.num_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values must have shape (batch, {channels}, height, width), "
                f"got {tuple(pixel_values.shape)}."
            )
        height, width = pixel_values.shape[2:]
        if height % patch or width % patch or not height or not width:
            raise ValueError(
                f"Image sides must be multiples of the patch size {patch}, got {height} x {width}; "
                f"resize or pad with the processor (size_divisor={patch})."
            )
        return pixel_values

    def _patch_mask(self, pixel_values: Tensor, pixel_mask: Tensor) -> Tensor:
        """A patch is real when its first pixel is; the real patches of an image must fill a rectangle."""
        expected = (len(pixel_values), *pixel_values.shape[2:])
        if pixel_mask.shape != expected:
            raise ValueError(
                f"pixel_mask must have shape {expected} to match pixel_values, got {tuple(pixel_mask.shape)}."
            )
        patch = self.patch_size
        patch_mask = pixel_mask[:, ::patch, ::patch].long()  # (batch, rows, columns)
        area = patch_mask[:, :, 0].sum(1) * patch_mask[:, 0, :].sum(1)  # (batch,)
        bad = ((area == 0) | (area != patch_mask.sum(dim=(1, 2)))).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"pixel_mask of image(s) {bad} in the batch is empty or no top left rectangle; "
                "mark real pixels with 1, starting at the top left corner, and padding with 0."
            )
        return patch_mask

    def _stretched_positions(
        self, grid: tuple[int, int], heights: Tensor | None = None, widths: Tensor | None = None
    ) -> Tensor:
        """Position embeddings stretched over each image's own rectangle, bilinear with aligned corners.

        Bilinear interpolation is separable and linear, so two small matrices per image replace a loop over
        images.

        Args:
            grid: Rows and columns of patches in the batch.
            heights: Real rows of each image `(batch,)`; default all.
            widths: Real columns of each image `(batch,)`; default all.

        Returns:
            `(batch or 1, rows, columns, hidden)`; values at padding patches are meaningless.
        """
        size, device = self.grid_size, self.position_embeddings.device
        positions = self.position_embeddings[0, 1:].view(size, size, -1)  # (size, size, hidden)
        if heights is None or widths is None:
            heights, widths = (torch.tensor([length], device=device) for length in grid)
        row_weights = _interpolation_matrix(heights, grid[0], size).to(positions.dtype)
        column_weights = _interpolation_matrix(widths, grid[1], size).to(positions.dtype)
        rows = torch.einsum("brp,pqd->brqd", row_weights, positions)
        return torch.einsum("bcq,brqd->brcd", column_weights, rows)


def _side(size: int | list[int] | tuple[int, int]) -> int:
    """Side of a square; ViLT's configuration has room for oblongs."""
    if isinstance(size, int):
        return size
    raise ValueError(f"image_size and patch_size must be one number each, the side of a square, got {size}.")


def _interpolation_matrix(lengths: Tensor, padded_length: int, source_length: int) -> Tensor:
    """Weights `(batch, padded_length, source_length)` of linear interpolation with aligned corners."""
    target = torch.arange(padded_length, device=lengths.device)
    source = torch.arange(source_length, device=lengths.device)
    step = (source_length - 1) / (lengths - 1).clamp_min(1)  # (batch,); one target point sits on source 0
    position = target * step[:, None]  # (batch, padded_length)
    return (1 - (position[:, :, None] - source).abs()).clamp_min(0)


def _move_padding_last(patches: Tensor, patch_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Stable-sort real patches first and cut to the longest image of the batch."""
    longest = int(patch_mask.sum(dim=1).max())
    if bool(patch_mask.all()):
        return patches, patch_mask
    order = patch_mask.argsort(dim=1, descending=True, stable=True)[:, :longest]  # (batch, longest)
    index = order[:, :, None].expand(-1, -1, patches.shape[2])
    return patches.gather(1, index), patch_mask.gather(1, order)
