"""Miniature caption corpora: a few dozen pairs in exactly the files and fields that the corpora publish."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .miniature_pictures import MiniaturePicture, unusable_pictures, usable_pictures, write_tar, write_zip

COUNT = 48
"""Usable pictures of a corpus; tasks on COCO's or Flickr30k's pictures take the same number."""
OUTSIDE = "../outside.jpg"
"""A name that leaves the corpus's folder."""
_PAIRS_PER_TAR = 20
_FETCHED = pa.schema(
    [
        *((name, pa.string()) for name in ("caption", "url", "key", "status", "error_message")),
        *((name, pa.int32()) for name in ("width", "height", "original_width", "original_height")),
        *((name, pa.string()) for name in ("exif", "sha256")),
    ]
)
# Karpathy's names, of every eight pictures. Those that cannot be used are numbered so that they are in train.
_COCO_SPLITS = ("train", "train", "train", "train", "restval", "val", "test", "test")
_FLICKR_SPLITS = ("train", "train", "train", "train", "train", "train", "val", "test")
_COCO_YEARS = {"train2014": ("train",), "val2014": ("restval", "val", "test")}
# Positions in openpairs, so that corpora differ.
_FIRST_OF_FLICKR, _FIRST_OF_GENOME, _FIRST_OF_SBU, _FIRST_OF_CC, _FIRST_OF_CC_VALIDATION = range(
    500, 3000, 500
)


def coco_pictures(year: str, count: int = COUNT) -> list[MiniaturePicture]:
    """Usable pictures of `train2014` or `val2014`; their `number` is COCO's image id."""
    return [picture for picture in usable_pictures(count) if _coco_year(picture.number) == year]


def coco_path(image_id: int) -> str:
    """Path in COCO's archives, such as `val2014/COCO_val2014_000000000005.jpg`."""
    year = _coco_year(image_id)
    return f"{year}/COCO_{year}_{image_id:012d}.jpg"


def flickr_pictures(count: int = COUNT) -> list[MiniaturePicture]:
    """Usable pictures of Flickr30k."""
    return usable_pictures(count, _FIRST_OF_FLICKR)


def flickr_name(number: int) -> str:
    """File name of a picture of Flickr30k, such as `1000000007.jpg`."""
    return f"{1_000_000_000 + number}.jpg"


def write_coco_captions(root: Path, count: int = COUNT) -> None:
    """Both archives of pictures, Karpathy's `dataset_coco.json`, and COCO's own annotations, packed.

    Args:
        root: Folder to write; made if need be.
        count: Usable pictures. Five more, all of `train`, cannot be used, each for another reason.
    """
    root.mkdir(parents=True, exist_ok=True)
    pictures = _with_unusable(usable_pictures(count))
    own = {}
    for year in _COCO_YEARS:
        of_year = [picture for picture in pictures if _coco_year(picture.number) == year]
        write_zip(root / f"{year}.zip", _files(of_year, [_coco_path(picture) for picture in of_year]))
        own[f"annotations/captions_{year}.json"] = _json(_coco_annotations(of_year))
    write_zip(root / "annotations_trainval2014.zip", own)
    (root / "dataset_coco.json").write_bytes(_json(_karpathy_coco(pictures)))


def write_flickr30k(root: Path, count: int = COUNT) -> None:
    """`flickr30k-images.tar`, and Karpathy's splits in `caption_datasets.zip`; see `write_coco_captions`."""
    root.mkdir(parents=True, exist_ok=True)
    pictures = _with_unusable(flickr_pictures(count))
    names = [OUTSIDE if picture.outside else flickr_name(picture.number) for picture in pictures]
    write_tar(root / "flickr30k-images.tar", _files(pictures, [f"flickr30k-images/{name}" for name in names]))
    images = [
        _karpathy_image(index, name, _FLICKR_SPLITS, picture)
        for index, (name, picture) in enumerate(zip(names, pictures, strict=True))
    ]
    splits = {"dataset_flickr30k.json": _json({"images": images, "dataset": "flickr30k"})}
    write_zip(root / "caption_datasets.zip", splits)


def write_visual_genome(root: Path, count: int = COUNT) -> None:
    """Pictures in `images.zip` and `images2.zip`, packed annotations, and `dataset_coco.json` beside them.

    The first half of the pictures are COCO's of the same number, so some of them are in val2014; the others
    are not in COCO. For the rest see `write_coco_captions`.
    """
    root.mkdir(parents=True, exist_ok=True)
    in_coco = usable_pictures(count // 2)
    others = usable_pictures(count - count // 2, _FIRST_OF_GENOME)
    numbered = [replace(picture, number=picture.number + len(in_coco)) for picture in others]
    pictures = _with_unusable([*in_coco, *numbered])
    paths = [
        ("VG_100K", "VG_100K_2")[picture.number % 2]
        + "/"
        + (OUTSIDE if picture.outside else f"{picture.number}.jpg")
        for picture in pictures
    ]
    files = _files(pictures, paths)
    for name, folder in (("images.zip", "VG_100K/"), ("images2.zip", "VG_100K_2/")):
        write_zip(root / name, {path: jpeg for path, jpeg in files.items() if path.startswith(folder)})
    image_data = [
        {
            "width": 96,
            "url": f"https://cs.stanford.edu/people/rak248/{path}",
            "height": 96,
            "image_id": picture.number,
            "coco_id": picture.number if picture.number <= len(in_coco) else None,
            "flickr_id": None,
        }
        for picture, path in zip(pictures, paths, strict=True)
    ]
    regions = _regions(pictures)
    write_zip(root / "image_data.json.zip", {"image_data.json": _json(image_data)})
    write_zip(root / "region_descriptions.json.zip", {"region_descriptions.json": _json(regions)})
    (root / "dataset_coco.json").write_bytes(_json(_karpathy_coco(_with_unusable(usable_pictures(count)))))


def write_sbu_captions(root: Path, count: int = COUNT) -> None:
    """The list of addresses, and the shards that img2dataset makes of it; see `write_coco_captions`."""
    root.mkdir(parents=True, exist_ok=True)
    pairs = _addresses("sbu", _with_unusable(usable_pictures(count, _FIRST_OF_SBU)))
    urls, captions = [url for url, _, _ in pairs], [caption for _, caption, _ in pairs]
    users = ["1@N00"] * len(pairs)
    (root / "sbu-captions-all.json").write_bytes(
        _json({"image_urls": urls, "user_ids": users, "captions": captions})
    )
    write_fetched(root / "train", pairs)


def write_conceptual_captions(root: Path, count: int = COUNT) -> None:
    """Both lists of addresses, and the shards that img2dataset makes of them; see `write_coco_captions`.

    `validation` has a quarter of the pictures, all of them usable.
    """
    root.mkdir(parents=True, exist_ok=True)
    train = _with_unusable(usable_pictures(count, _FIRST_OF_CC))
    validation = usable_pictures(count // 4, _FIRST_OF_CC_VALIDATION)
    for split, name, pictures in (
        ("train", "Train_GCC-training.tsv", train),
        ("validation", "Validation_GCC-1.1.0-Validation.tsv", validation),
    ):
        pairs = [(url, " ".join(text.split()), jpeg) for url, text, jpeg in _addresses(split, pictures)]
        (root / name).write_text("".join(f"{text}\t{url}\n" for url, text, _ in pairs), encoding="utf-8")
        write_fetched(root / split, pairs)


def write_fetched(folder: Path, pairs: Sequence[tuple[str, str, bytes | None]]) -> None:
    """What img2dataset 1.47 leaves of a list: 20 pairs a shard here, in the order in which they arrived.

    Args:
        folder: Its output folder.
        pairs: Address, caption, and the JPEG file; None: it is not found.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(pairs), _PAIRS_PER_TAR)):
        files: dict[str, bytes] = {}
        table = []
        for index, (url, caption, jpeg) in reversed(list(enumerate(pairs[start : start + _PAIRS_PER_TAR]))):
            key = OUTSIDE.removesuffix(".jpg") if url.endswith(OUTSIDE) else f"{number:05d}{index:04d}"
            entry = _fetched_entry(url, caption, key, jpeg)
            table.append(entry)
            if jpeg is not None:
                texts = {f"{key}.json": json.dumps(entry, indent=4), f"{key}.txt": caption}
                files |= {f"{key}.jpg": jpeg} | {name: text.encode() for name, text in texts.items()}
        write_tar(folder / f"{number:05d}.tar", files)
        pq.write_table(pa.Table.from_pylist(table, _FETCHED), folder / f"{number:05d}.parquet")
        (folder / f"{number:05d}_stats.json").write_bytes(_json(_statistics(table)))


def _addresses(corpus: str, pictures: Sequence[MiniaturePicture]) -> list[tuple[str, str, bytes | None]]:
    """Address, one caption, and the file of each picture."""
    pairs = []
    for picture in pictures:
        name = OUTSIDE if picture.outside else f"{picture.number}.jpg"
        caption = next((text for text in reversed(picture.captions) if text.strip()), "")
        pairs.append((f"http://pictures.example/{corpus}/{name}", caption, picture.jpeg))
    return pairs


def _fetched_entry(url: str, caption: str, key: str, jpeg: bytes | None) -> dict[str, Any]:
    size = None if jpeg is None else 96
    return {
        "caption": caption,
        "url": url,
        "key": key,
        "status": "failed_to_download" if jpeg is None else "success",
        "error_message": "HTTP Error 404: Not Found" if jpeg is None else None,
        "width": size,
        "height": size,
        "original_width": size,
        "original_height": size,
        "exif": None if jpeg is None else "{}",
        "sha256": None if jpeg is None else hashlib.sha256(jpeg).hexdigest(),
    }


def _statistics(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    successes = sum(entry["status"] == "success" for entry in table)
    return {
        "count": len(table),
        "successes": successes,
        "failed_to_download": len(table) - successes,
        "failed_to_resize": 0,
        "duration": 1.0,
        "start_time": 0.0,
        "end_time": 1.0,
        "status_dict": {"success": successes, "HTTP Error 404: Not Found": len(table) - successes},
    }


def _with_unusable(pictures: list[MiniaturePicture]) -> list[MiniaturePicture]:
    return [*pictures, *unusable_pictures(pictures)]


def _files(pictures: Sequence[MiniaturePicture], paths: Sequence[str]) -> dict[str, bytes]:
    """The pictures that are there, by path; of a duplicated one the first."""
    files: dict[str, bytes] = {}
    for picture, path in zip(pictures, paths, strict=True):
        if picture.jpeg is not None:
            files.setdefault(path, picture.jpeg)
    return files


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _coco_year(image_id: int) -> str:
    split = _COCO_SPLITS[(image_id - 1) % len(_COCO_SPLITS)]
    return next(year for year, splits in _COCO_YEARS.items() if split in splits)


def _coco_path(picture: MiniaturePicture) -> str:
    return f"train2014/{OUTSIDE}" if picture.outside else coco_path(picture.number)


def _coco_annotations(pictures: Sequence[MiniaturePicture]) -> dict[str, Any]:
    """Fields of `captions_train2014.json`; a duplicated id is there twice, but not its captions."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for picture in pictures:
        name = _coco_path(picture).partition("/")[2]
        size = {"height": 96, "width": 96}
        duplicated = any(image["id"] == picture.number for image in images)
        images.append({"license": 1, "file_name": name, **size, "id": picture.number})
        for caption in () if duplicated else picture.captions:
            annotations.append({"image_id": picture.number, "id": len(annotations) + 1, "caption": caption})
    return {"info": {}, "images": images, "licenses": [], "annotations": annotations}


def _karpathy_coco(pictures: Sequence[MiniaturePicture]) -> dict[str, Any]:
    images = []
    for index, picture in enumerate(pictures):
        year, _, name = _coco_path(picture).partition("/")
        entry = _karpathy_image(index, name, _COCO_SPLITS, picture)
        images.append({"filepath": year, **entry, "cocoid": picture.number})
    return {"images": images, "dataset": "coco"}


def _karpathy_image(
    index: int, name: str, splits: Sequence[str], picture: MiniaturePicture
) -> dict[str, Any]:
    sentence_ids = [100 * index + position for position in range(len(picture.captions))]
    return {
        "sentids": sentence_ids,
        "imgid": index,
        "sentences": [
            {"tokens": caption.lower().split(), "raw": caption, "imgid": index, "sentid": sentence_id}
            for sentence_id, caption in zip(sentence_ids, picture.captions, strict=True)
        ],
        "split": splits[(picture.number - 1) % len(splits)],
        "filename": name,
    }


def _regions(pictures: Sequence[MiniaturePicture]) -> list[dict[str, Any]]:
    """Fields of `region_descriptions.json`: each caption describes the whole picture."""
    return [
        {
            "regions": [
                {
                    "region_id": 100 * index + position,
                    "width": 96,
                    "height": 96,
                    "image_id": picture.number,
                    "phrase": caption,
                    "y": 0,
                    "x": 0,
                }
                for position, caption in enumerate(picture.captions)
            ],
            "id": picture.number,
        }
        for index, picture in enumerate(pictures)
    ]
