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


def test_a_recipes_own_settings_of_accelerate_join_the_shared_ones(tmp_path):
    given = {"use_cpu": True, "accelerator_config": {"split_batches": True}}
    config = training_arguments(TrainingArguments, str(tmp_path), given).accelerator_config
    assert (config.split_batches, config.dispatch_batches) == (True, False)
    given["accelerator_config"] = {"dispatch_batches": True}
    assert training_arguments(TrainingArguments, str(tmp_path), given).accelerator_config.dispatch_batches
