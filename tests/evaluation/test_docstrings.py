import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize("module", ["metrics", "intervals"])
def test_examples_are_true(module):
    results = doctest.testmod(import_module(f"rmcl_hub.evaluation.{module}"))
    assert results.attempted > 0
    assert results.failed == 0
