"""Miniature corpora: a few dozen pairs of the embedded pictures in the layouts that the corpora publish."""

import io
import json
import zipfile
from pathlib import Path

from PIL import Image

from .openpairs import read_metadata


def write_coco_captions(root: Path, count: int = 48) -> None:
    """`train2014.zip`, `val2014.zip` and Karpathy's `dataset_coco.json`."""
    root.mkdir(parents=True, exist_ok=True)
    images = []
    with (
        zipfile.ZipFile(root / "train2014.zip", "w") as train,
        zipfile.ZipFile(root / "val2014.zip", "w") as val,
    ):
        for index, row in enumerate(read_metadata("openmoji", "train")[:count]):
            split = ("train", "train", "train", "train", "restval", "val", "test", "test")[index % 8]
            year = "train2014" if split == "train" else "val2014"
            name = f"COCO_{year}_{index + 1:012d}.jpg"
            encoded = io.BytesIO()
            Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").save(encoded, "JPEG")
            (train if split == "train" else val).writestr(f"{year}/{name}", encoded.getvalue())
            images.append(
                {
                    "filepath": year,
                    "filename": name,
                    "imgid": index,
                    "cocoid": index + 1,
                    "split": split,
                    "sentences": [{"raw": caption} for caption in row["captions"]],
                }
            )
    (root / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
