import subprocess

import pytest
import torch
from torch import nn

from rmcl_hub.evaluation.provenance import batch_digest, code_revision, library_versions, model_digest


def model(dtype=torch.float32):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.5)
    return network


def test_model_digest_sees_every_value_buffer_name_and_type():
    digests = {"same": model_digest(model())}
    assert model_digest(model()) == digests["same"]
    changed = model()
    with torch.no_grad():
        changed[0].weight[1, 2] += 1e-6
    digests["weight"] = model_digest(changed)
    changed = model()
    changed[1].running_mean[0] = 1.0
    digests["buffer"] = model_digest(changed)
    digests["name"] = model_digest(nn.Sequential(*model(), nn.Identity(), nn.Linear(1, 1)))
    digests["type"] = model_digest(model(torch.bfloat16))
    assert len(set(digests.values())) == 5
    assert all(len(digest) == 16 for digest in digests.values())


@pytest.mark.parametrize("field", ["pixel_values", "pixel_mask", "labels", "text"])
def test_batch_digest_sees_what_the_model_sees(field):
    def batch():
        return {
            "pixel_values": torch.zeros(1, 3, 2, 2),
            "pixel_mask": torch.ones(1, 2, 2),
            "labels": torch.zeros(1),
            "text": ["a dog"],
        }

    changed = batch()
    if field == "text":
        changed["text"] = ["a cat"]
    else:
        changed[field].view(-1)[0] = 0.5
    assert batch_digest([batch()]) == batch_digest([batch()])
    assert batch_digest([changed]) != batch_digest([batch()])
    assert batch_digest([batch(), changed]) != batch_digest([changed, batch()])


def test_code_revision_is_the_commit_of_the_checkout():
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout
    revision = code_revision()
    assert revision.startswith("rmcl-hub ") or revision.split("+")[0] == head.strip()


def test_versions_name_what_numbers_depend_on():
    assert library_versions()["torch"] == torch.__version__.split("+")[0]
    assert {"python", "transformers", "datasets"} <= set(library_versions())
