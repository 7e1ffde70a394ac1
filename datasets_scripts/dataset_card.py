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
    """Counts of the splits as a table, and a sentence for each that differs from what is documented."""
    lines = [
        "| split | rows | pictures | texts | documented (pictures, texts) | left out |",
        "|---|---|---|---|---|---|",
    ]
    for name, split in manifest.splits.items():
        size = corpus.documented.get(name)
        documented = f"{size.images:,}, {size.texts:,}" if size else "-"
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in split.dropped.items()) or "none"
        lines.append(
            f"| {name} | {split.rows:,} | {split.images:,} | {split.texts:,} | {documented} | {dropped} |"
        )
    differences = [
        sentence
        for name, split in manifest.splits.items()
        if (sentence := _difference(name, split, corpus.documented.get(name)))
    ]
    return [*lines, *(["", *differences] if differences else [])]


def _difference(name: str, split: SplitManifest, documented: SplitSize | None) -> str | None:
    if documented is None or (split.images, split.texts) == (documented.images, documented.texts):
        return None
    parts = [
        f"{abs(count - expected):,} {'more' if count > expected else 'fewer'} {what}"
        for count, expected, what in (
            (split.images, documented.images, "pictures"),
            (split.texts, documented.texts, "texts"),
        )
        if count != expected
    ]
    left_out = sum(split.dropped.values())
    return f"- {name} has {' and '.join(parts)} than documented; {left_out:,} rows were left out."
