"""Processors of runs come from the folder of a model, and its code stays unread."""

import subprocess
import sys

from rmcl_hub.trainers.processing import build_processor, load_processor

LOAD_AS_THE_COMMAND = """
import sys
sys.argv[0] = "rmcl-hub"  # the package then does not import torch
from rmcl_hub.trainers.processing import load_processor
load_processor(sys.argv[1])
"""


def test_a_saved_processor_comes_back_and_no_code_of_the_folder_is_asked_for(tiny_model, tmp_path):
    processor = build_processor(None, image_size=32, patch_size=16)
    tiny_model().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for loaded in (load_processor(str(tmp_path)), build_processor(str(tmp_path), 64, 32)):
        assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
        assert loaded.image_processor.size["shortest_edge"] == 32
    shown = subprocess.run(
        [sys.executable, "-c", LOAD_AS_THE_COMMAND, tmp_path],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "custom code" not in shown.stdout + shown.stderr
