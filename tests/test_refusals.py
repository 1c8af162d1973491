"""What cannot be compiled as it is, in real models: the path, the cause and the line to write."""

import os
import re

import pytest
import torch
from architectures import ARCHITECTURES
from models import GPT, Only, Opaque, rows
from torch import nn
from torch.nn import functional

import normgeo as ng
from normgeo.plan.lost import patterns_of

os.environ["HF_HUB_OFFLINE"] = "1"


def refused(model, args, kwargs=None, **options):
    with pytest.raises(ValueError, match=r"\w") as error:
        ng.compile(model, args, kwargs, **options)
    return str(error.value)


def other(name):
    pytest.importorskip("transformers")
    factory, options = ARCHITECTURES[name]
    return (*factory(), options)


def line(message, option):
    """What the message says to write, as Python reads it."""
    return eval(re.search(rf"{option}=(\{{.*?\}}|\(.*?\)|'.*?')", message)[1])


@pytest.mark.parametrize("name", ["dinov2", "fnet", "xlnet", "wav2vec2"])
def test_a_parameter_that_the_output_does_not_reach_is_named_with_the_line_that_leaves_it(name):
    model, args, kwargs, _ = other(name)
    message = refused(model, args, kwargs)
    parameter = re.match(r"parameter (\S+) is (not )?used", message)[1]
    plan = ng.compile(model, args, kwargs, roles=line(message, "roles"))
    leaf = next(leaf for leaf in plan.leaves if leaf.name == parameter)
    assert (leaf.role, leaf.mass, leaf.radius) == ("unused", 0, 0)
    assert "no mass" in plan.why(parameter)
    before = model.get_parameter(parameter).clone()
    opt = plan.optimizer(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    assert torch.equal(model.get_parameter(parameter), before)
    assert parameter in dict(plan.optimizer(model, dry_run=True))
    frozen = re.search(r'get_parameter\("(\S+)"\)', message)[1]
    assert frozen == parameter


def test_several_outputs_are_listed_and_may_count_together():
    model, args, kwargs, _ = other("clip")
    message = refused(model, args, kwargs)
    assert "4 tensors that could be its output" in message
    assert "text_embeds (2, 16)" in message
    assert ng.compile(model, args, kwargs, output=line(message, "output")).leaves[0].role == "scalar"
    plan = ng.compile(model, args, output=("text_embeds", "image_embeds"), roles={"logit_scale": "unused"})
    assert {leaf.role for leaf in plan.leaves if "projection.weight" in leaf.name} == {"linear"}

    model, args, kwargs, options = other("detr")
    message = refused(model, args, kwargs)
    assert line(message, "output") == options["output"]
    heads = [leaf.name for leaf in ng.compile(model, args, kwargs, **options).leaves if leaf.role == "head"]
    assert heads == ["class_labels_classifier.weight", "bbox_predictor.layers.2.weight"]


def test_several_outputs_have_the_size_of_the_largest():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6, bias=False), nn.Linear(4, 2, bias=False)

        def forward(self, x):
            return self.a(x), self.b(x).unsqueeze(1)

    model, x = Two().double(), rows(3, 4).double()
    assert "2 tensors that could be its output" in refused(model, (x,))
    plan = ng.compile(model, (x,), output=(0, 1), sensitivity="measured")
    assert [leaf.role for leaf in plan.leaves] == ["head", "head"]
    # ‖J Δ‖ = ‖Δ x‖, at most RMS(x) for the largest row of x, whichever output it is.
    largest = x.square().mean(-1).sqrt().max().item()
    assert [leaf.input_norm * leaf.sensitivity for leaf in plan.leaves] == pytest.approx([largest, largest])


def test_a_role_of_unused_for_what_is_used_is_refused():
    message = refused(GPT(), (torch.zeros(1, 4, dtype=torch.long),), roles={"blocks.1.up.bias": "unused"})
    assert re.search(
        r"blocks.1.up.bias is called unused, .* through bias.*masses=\{\"blocks.1.up.bias\": 0.0\}", message
    )


class Branching(nn.Module):
    """Goes one of two ways, by the value of its input."""

    def __init__(self):
        super().__init__()
        self.first, self.inside = nn.Linear(4, 4), nn.ModuleDict({"low": nn.Linear(4, 4), "high": nn.Linear(4, 4)})

    def forward(self, x):
        x = self.first(x)
        return self.inside["high" if x.sum() > 0 else "low"](x)


def test_control_flow_that_depends_on_data_is_named():
    model = nn.Sequential(nn.Linear(4, 4), Branching())
    message = refused(model, (rows(3, 4),))
    assert re.match(r"parameter 1.inside.(low|high).weight is not used in this forward", message)
    assert (
        "give example inputs that reach it (1 asks for the value of a tensor, so other inputs may go another way)"
        in message
    )
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), Branching())
    message = refused(model, (torch.empty(3, 4, device="meta"),))
    assert "in 1 (Branching): its way depends on values of tensors" in message
    assert "compile it on the CPU" in message


def test_an_input_that_the_model_rejects_is_told_with_the_module_that_rejects_it():
    model, _, kwargs, _ = other("roberta")
    message = refused(model, (torch.full((2, 12), 65),), kwargs)
    assert "rejects example_inputs of shape (2, 12), in roberta.embeddings.word_embeddings (Embedding): " in message
    model, args, _, _ = other("bart")
    assert "the model rejects example_inputs of shape" in refused(model, args)


def test_an_unknown_module_with_raw_parameters_is_named_with_the_line_that_registers_it():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.layers = nn.Linear(4, 2), nn.ModuleList([Opaque()])

        def forward(self, x):
            return self.head(functional.relu(self.layers[0](x)))

    assert "module Holder (the model itself) has no geometry; write @normgeo.geometry.register(Holder)" in refused(
        Holder(), None
    )
    message = refused(Holder(), (rows(3, 4),), strict=True)
    assert re.search(
        r"what Opaque \(1 times\), first in layers.0, does .* write @normgeo.geometry.register\(Opaque\)", message
    )
    assert {leaf.name: leaf.role for leaf in ng.compile(Holder(), (rows(3, 4),)).leaves}["layers.0.w"] == "assumed"


def test_patterns_match_what_is_lost_and_nothing_else():
    names = ["a.0.w", "a.0.b", "a.1.w", "a.1.b", "a.1.c", "top"]
    assert patterns_of(["a.0.w", "a.1.w"], names) == ["a.*.w"]
    assert patterns_of(["a.0.w", "a.0.b"], names) == ["a.0"]
    assert patterns_of(["a.0.w", "top"], names) == ["a.0.w", "top"]
    assert patterns_of(names, names) == ["a", "top"]


def test_tensors_on_the_meta_device_are_told_apart():
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(6, 4))

        def forward(self, x):
            return functional.linear(x, self.w.t().contiguous()) + x.sum()

    with torch.device("meta"):
        model, x = Transposed(), torch.empty(3, 6)
    there, here = ng.compile(model, (x,)), ng.compile(Transposed(), (torch.ones(3, 6),))
    assert there == here


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_are_covered(name):
    model, args, kwargs, options = other(name)
    plan = ng.compile(model, args, kwargs, strict=True, **options)
    for parameter in (p for p in model.named_parameters() if p[1].requires_grad):
        seen = torch.zeros_like(parameter[1])
        for leaf in plan.leaves:
            if leaf.parameter == parameter[0]:
                leaf.write(seen, leaf.read(seen) + 1)
        assert (seen == 1).all(), parameter[0]


def test_the_trunk_of_a_model_with_unused_parameters_is_what_it_is_without():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    plain = ng.compile(model, (rows(3, 4),))
    holder = Only(model, slice(None))
    holder.extra = nn.Parameter(torch.zeros(3, 3))
    plan = ng.compile(holder, (rows(3, 4),), roles={"extra": "unused"})
    assert [leaf.radius for leaf in plan.leaves if leaf.name != "extra"] == [leaf.radius for leaf in plain.leaves]
    assert ng.Plan.from_json(plan.to_json()) == plan
