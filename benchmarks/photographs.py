"""A prepared corpus as heavy as photographs: the embedded drawings enlarged, with noise, in COCO's layout."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from rmcl_hub.datasets_scripts.coco_captions import CocoCaptions
from rmcl_hub.datasets_scripts.openpairs import load_openpairs
from rmcl_hub.datasets_scripts.prepare import prepare
from rmcl_hub.datasets_scripts.shards import PreparedCorpus

NOISE, QUALITY = 30.0, 90
"""Chosen so that 640 x 480 pixels take about 160 kB, as COCO's do: 13.5 GB for 82,783 pictures."""


def write_photographs(folder: Path, count: int, size: tuple[int, int] = (640, 480)) -> PreparedCorpus:
    """Shards of `count` pictures of `size` (width, height) in the split `train`, below an empty `folder`."""
    drawings = load_openpairs("captions", "train").select(range(min(count, 64)))
    generator = np.random.default_rng(0)
    jpegs = [_photograph(drawing["image"], size, generator) for drawing in drawings]
    pictures = folder / "published" / "train2014"
    pictures.mkdir(parents=True)
    entries = []
    for index in range(count):
        name = f"COCO_train2014_{index:012d}.jpg"
        (pictures / name).write_bytes(jpegs[index % len(jpegs)])
        sentences = [{"raw": text} for text in drawings[index % len(jpegs)]["captions"]]
        entries.append(
            {
                "split": "train",
                "filepath": "train2014",
                "filename": name,
                "cocoid": index,
                "sentences": sentences,
            }
        )
    (folder / "published" / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    prepare(CocoCaptions, folder / "published", folder / "shards", ["train"], num_workers=1, unofficial=True)
    return PreparedCorpus(str(folder / "shards"))


def _photograph(drawing: Image.Image, size: tuple[int, int], generator: np.random.Generator) -> bytes:
    enlarged = np.asarray(drawing.convert("RGB").resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    noisy = enlarged + generator.normal(0, NOISE, enlarged.shape[:2])[:, :, None]
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
