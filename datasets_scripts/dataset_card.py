"""Cards of a prepared corpus: splits for `datasets.load_dataset` and the Hub, counts for the reader."""

import yaml

from .official_builder import OfficialBuilder, SplitSize
from .schema import image_columns
from .shards import SUFFIXES, Manifest, SplitManifest


def dataset_card(corpus: type[OfficialBuilder], manifest: Manifest) -> str:
    """Text of `README.md`: shards per split, licence, counts beside the documented ones, how to load it."""
    suffix = SUFFIXES[manifest.format]
    head = {
        "pretty_name": corpus.__name__,
        "license": "other",
        "license_name": f"{manifest.corpus}-terms",
        "license_link": corpus.homepage,
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"data/{split}-*{suffix}"} for split in manifest.splits
                ],
            }
        ],
    }
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {corpus.__name__}

{_description(corpus, manifest)}

`manifest.json` has the checksums of the shards.

```python
from rmcl_hub.datasets_scripts.corpora import load_corpus

load_corpus("hf://datasets/USER/NAME@COMMIT", "{next(iter(manifest.splits), "train")}")  # or a folder
```
"""


def annotations_card(corpus: type[OfficialBuilder], manifest: Manifest) -> str:
    """Text of the card, without front matter, of a corpus's rows without their pictures."""
    columns = " and ".join(f"`{column}`" for column in image_columns(corpus.task))
    return f"""# {corpus.__name__}, without pictures

{_description(corpus, manifest)}

Pictures are not included: {columns} tells where they are in the corpus's archives. Whoever has these gets
the rows with pictures by `rmcl-hub data prepare`.

```python
from datasets import load_dataset

load_dataset("USER/NAME", split="{next(iter(manifest.splits), "train")}", revision="COMMIT")
```
"""


def _description(corpus: type[OfficialBuilder], manifest: Manifest) -> str:
    checked = ", ".join(manifest.checked) or "none"
    facts = [
        f"- Source: {corpus.homepage}",
        f"- Licence: {manifest.licence}. Whoever publishes this has to hold to it.",
        f"- Version of the preparation: {manifest.version}.",
        f"- Archives whose published checksum was compared: {checked}.",
    ]
    found, documented = _texts(corpus, manifest)
    if found < documented / 2:
        facts.append(
            f"- **Not the corpus as it is published**, but a part or a miniature of it: {found:,} of "
            f"{documented:,} texts. No number from here compares with those of the corpus."
        )
    return "\n".join(
        [" ".join((corpus.__doc__ or "").split()), "", *facts, "", *split_table(corpus, manifest)]
    )


def _texts(corpus: type[OfficialBuilder], manifest: Manifest) -> tuple[int, int]:
    """Texts that are there and that are documented, of the documented splits that are there."""
    there = {
        joined: size
        for joined, size in corpus.documented.items()
        if set(joined.split("+")) <= set(manifest.splits)
    }
    splits = [manifest.splits[name] for joined in there for name in joined.split("+")]
    return sum(split.texts for split in splits), sum(size.texts for size in there.values())


def split_table(corpus: type[OfficialBuilder], manifest: Manifest) -> list[str]:
    """Counts of the splits as a table, and a sentence for each size that differs from the documented one."""
    lines = [
        "| split | rows | pictures | texts | documented (pictures, texts) | left out |",
        "|---|---|---|---|---|---|",
    ]
    for name, split in manifest.splits.items():
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in split.dropped.items()) or "none"
        lines.append(
            f"| {name} | {split.rows:,} | {split.images:,} | {split.texts:,} | {_documented(corpus, name)} | "
            f"{dropped} |"
        )
    differences = [
        sentence
        for joined, size in corpus.documented.items()
        if set(joined.split("+")) <= set(manifest.splits)
        if (sentence := _difference(joined, [manifest.splits[name] for name in joined.split("+")], size))
    ]
    return [*lines, *(["", *differences] if differences else [])]


def _documented(corpus: type[OfficialBuilder], name: str) -> str:
    for joined, size in corpus.documented.items():
        names = joined.split("+")
        if name in names:
            images = "-" if size.images is None else f"{size.images:,}"
            others = [other for other in names if other != name]
            return f"{images}, {size.texts:,}" + (f" with {', '.join(others)}" if others else "")
    return "-"


def _difference(joined: str, splits: list[SplitManifest], documented: SplitSize) -> str | None:
    images, texts = sum(split.images for split in splits), sum(split.texts for split in splits)
    parts = [
        f"{abs(count - expected):,} {'more' if count > expected else 'fewer'} {what}"
        for count, expected, what in (
            (images, documented.images, "pictures"),
            (texts, documented.texts, "texts"),
        )
        if expected not in (None, count)
    ]
    if not parts:
        return None
    left_out = sum(sum(split.dropped.values()) for split in splits)
    has = "have" if len(splits) > 1 else "has"
    return (
        f"- {' and '.join(joined.split('+'))} {has} {' and '.join(parts)} than documented; {left_out:,} rows "
        "were left out."
    )
