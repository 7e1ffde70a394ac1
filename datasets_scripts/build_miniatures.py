"""Write miniature corpora in the layouts that the real ones publish, to try every command without a download.

python -m rmcl_hub.datasets_scripts.build_miniatures OUTPUT_DIR
"""

import argparse
import sys
from pathlib import Path

from rmcl_hub.datasets_scripts import miniature_tasks, miniatures

WRITERS = {
    "coco_captions": miniatures.write_coco_captions,
    "visual_genome": miniatures.write_visual_genome,
    "sbu_captions": miniatures.write_sbu_captions,
    "conceptual_captions": miniatures.write_conceptual_captions,
    "flickr30k": miniatures.write_flickr30k,
    "vqav2": miniature_tasks.write_vqav2,
    "nlvr2": miniature_tasks.write_nlvr2,
    "snli_ve": miniature_tasks.write_snli_ve,
}


def main(argv: list[str] | None = None) -> int:
    """Write a folder per corpus; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rmcl_hub.datasets_scripts.build_miniatures",
        description="Write miniature corpora in their published layouts.",
    )
    parser.add_argument("output_dir", type=Path, help="gets one folder per corpus")
    output_dir = parser.parse_args(argv).output_dir
    for name, write in WRITERS.items():
        write(output_dir / name)
        sys.stdout.write(f"{output_dir / name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
