"""What a recipe's training section means, whatever the version of Transformers."""

import pytest
from transformers import TrainingArguments

from rmcl_hub.trainers.arguments import training_arguments


@pytest.mark.parametrize(
    ("given", "steps"), [({"warmup_steps": 0.1}, 50), ({"warmup_steps": 30}, 30), ({}, 0)]
)
def test_warm_up_is_a_share_of_all_steps_or_their_number(tmp_path, given, steps):
    arguments = training_arguments(TrainingArguments, str(tmp_path), {"use_cpu": True, **given})
    assert arguments.get_warmup_steps(500) == steps
