"""The card of a prepared corpus: splits for `datasets.load_dataset` and the Hub, counts for the reader."""

import yaml

from .official_builder import OfficialBuilder, SplitSize
from .shards import SUFFIXES, Manifest, SplitManifest


def dataset_card(corpus: type[OfficialBuilder], manifest: Manifest) -> str:
    """Text of `README.md`: shards per split, licence, counts beside the documented ones, how to load it."""
    suffix = SUFFIXES[manifest.format]
    head = {
        "pretty_name": corpus.__name__,
        "license": "other",
        "license_name": "see-below",
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"data/{split}-*{suffix}"} for split in manifest.splits
                ],
            }
        ],
    }
    rows = "\n".join(split_table(corpus, manifest))
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {corpus.__name__}

{" ".join((corpus.__doc__ or "").split())}

- Source: {corpus.homepage}
- Licence: {manifest.licence}. Whoever publishes these shards has to hold to it.
- Version of the preparation: {manifest.version}; checksums of the shards are in `manifest.json`.

{rows}

```python
from rmcl_hub.datasets_scripts.corpora import load_corpus

load_corpus("hf://datasets/USER/NAME@COMMIT", "{next(iter(manifest.splits), "train")}")  # or a folder
```
"""


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
