"""What torch.export says of the weights of recorded models: the same as the recording."""

import os

import pytest
import torch
from models import PLAIN, TRANSFORMERS, made
from torch import nn

import normgeo as ng

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.mark.slow
@pytest.mark.parametrize("factory", [*PLAIN, *TRANSFORMERS])
def test_export_and_the_recording_agree(factory):
    if factory in TRANSFORMERS:
        pytest.importorskip("transformers")
    model, args, kwargs = made(factory)
    if hasattr(model, "config"):
        model.config.use_cache = False
    plan = ng.compile(model, args, kwargs)
    try:
        found = ng.testing.check_recording(model, args, kwargs, plan=plan)
    except AssertionError:
        raise
    except Exception as error:
        pytest.skip(f"torch.export refuses it: {str(error).splitlines()[0]}")
    named = {leaf.parameter for leaf in plan.leaves}
    assert len(found) > 0.6 * len(named), f"unseen: {sorted(named - set(found))}"


def test_a_recording_that_is_wrong_is_found():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    ids = torch.zeros(2, dtype=torch.long)
    found = ng.testing.check_recording(model, (ids,))
    assert found == {"0.weight": {"lookup"}, "1.weight": {"contraction"}, "1.bias": {"sum"}}
    wrong = ng.compile(model, (ids,), roles={"1.weight": "embedding"})
    with pytest.raises(AssertionError, match=r"1.weight is recorded as embedding, .* sees it in a contraction"):
        ng.testing.check_recording(model, (ids,), plan=wrong)


def test_views_tied_weights_and_functions_of_weights_are_followed():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.scale = nn.Embedding(6, 4), nn.Parameter(torch.zeros(4))

        def forward(self, ids):
            return (self.table(ids) * (1 + self.scale)) @ self.table.weight.t()

    found = ng.testing.check_recording(Tied(), (torch.zeros(2, dtype=torch.long),))
    assert found == {"table.weight": {"lookup", "contraction"}, "scale": {"product"}}
