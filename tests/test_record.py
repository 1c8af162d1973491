"""Models as strangers write them: recorded, every weight found in its role, and trained."""

import os
import re

import pytest
import torch
from models import GPT, PLAIN, TRANSFORMERS, gpt, gpt2, ids, made, mlp, raw, rows
from torch import nn
from torch.nn import functional

import normgeo as ng
from normgeo.geometry.entries import Entries, view_of
from normgeo.geometry.record import record

os.environ["HF_HUB_OFFLINE"] = "1"

FACTORIES = [*PLAIN, *TRANSFORMERS]


def compiled(factory, **options):
    if factory in TRANSFORMERS:
        pytest.importorskip("transformers")
    model, args, kwargs = made(factory)
    return model, ng.compile(model, args, kwargs, **options)


def roles(plan):
    """name without numbers -> (role, norm, shape)."""
    out = {}
    for leaf in plan.leaves:
        name = re.sub(r"(?<=\.)\d+(?=\.)", "*", leaf.name)
        out[name] = (leaf.role, type(leaf.norm).__name__, leaf.shape)
    return out


EXPECTED = {
    mlp: {
        "0.weight": ("linear", "RMSToRMS", (16, 8)),
        "0.bias": ("bias", "RMS", (16,)),
        "2.weight": ("linear", "RMSToRMS", (16, 16)),
        "2.bias": ("bias", "RMS", (16,)),
        "4.weight": ("head", "RMSToRMS", (3, 16)),
        "4.bias": ("bias", "RMS", (3,)),
    },
    raw: {
        "first": ("linear", "RMSToRMS", (16, 8)),
        "shift": ("bias", "RMS", (16,)),
        "second": ("head", "RMSToRMS", (3, 16)),
        "temperature": ("scalar", "Absolute", ()),
    },
    gpt: {
        "wte.weight": ("embedding", "L1ToRMS", (65, 32)),
        "wpe.weight": ("embedding", "L1ToRMS", (16, 32)),
        **{f"blocks.*.qkv.weight[{x}]": ("linear", "RMSToRMS", (32, 32)) for x in "qkv"},
        **{f"blocks.*.qkv.bias[{x}]": ("bias", "RMS", (32,)) for x in "qkv"},
        "blocks.*.proj.weight": ("linear", "RMSToRMS", (32, 32)),
        "blocks.*.proj.bias": ("bias", "RMS", (32,)),
        "blocks.*.up.weight": ("linear", "RMSToRMS", (128, 32)),
        "blocks.*.up.bias": ("bias", "RMS", (128,)),
        "blocks.*.down.weight": ("linear", "RMSToRMS", (32, 128)),
        "blocks.*.down.bias": ("bias", "RMS", (32,)),
        **{f"{name}.weight": ("gain", "Linf", (32,)) for name in ("blocks.*.ln1", "blocks.*.ln2", "ln")},
        **{f"{name}.bias": ("bias", "RMS", (32,)) for name in ("blocks.*.ln1", "blocks.*.ln2", "ln")},
        "head.weight": ("head", "RMSToRMS", (65, 32)),
    },
    gpt2: {
        "transformer.wte.weight": ("embedding, head", "L1ToRMS", (65, 32)),
        "transformer.wpe.weight": ("embedding", "L1ToRMS", (32, 32)),
        **{f"transformer.h.*.attn.c_attn.weight[{x}]": ("linear", "RMSToRMS", (32, 32)) for x in "qkv"},
        **{f"transformer.h.*.attn.c_attn.bias[{x}]": ("bias", "RMS", (32,)) for x in "qkv"},
        "transformer.h.*.attn.c_proj.weight": ("linear", "RMSToRMS", (32, 32)),
        "transformer.h.*.attn.c_proj.bias": ("bias", "RMS", (32,)),
        "transformer.h.*.mlp.c_fc.weight": ("linear", "RMSToRMS", (128, 32)),
        "transformer.h.*.mlp.c_fc.bias": ("bias", "RMS", (128,)),
        "transformer.h.*.mlp.c_proj.weight": ("linear", "RMSToRMS", (32, 128)),
        "transformer.h.*.mlp.c_proj.bias": ("bias", "RMS", (32,)),
        **{f"transformer.{n}.weight": ("gain", "Linf", (32,)) for n in ("h.*.ln_1", "h.*.ln_2", "ln_f")},
        **{f"transformer.{n}.bias": ("bias", "RMS", (32,)) for n in ("h.*.ln_1", "h.*.ln_2", "ln_f")},
    },
}


@pytest.mark.parametrize("factory", EXPECTED)
def test_roles_are_what_a_person_would_say(factory):
    assert roles(compiled(factory)[1]) == EXPECTED[factory]


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_blocks_of_a_parameter_are_all_its_entries_once(factory):
    model, plan = compiled(factory, strict=True)
    for name, parameter in model.named_parameters():
        seen = torch.zeros_like(parameter)
        for leaf in plan.leaves:
            if leaf.parameter == name:
                leaf.write(seen, leaf.read(seen) + 1)
        assert (seen == 1).all(), name
    assert all(0 < leaf.radius < 1 for leaf in plan.leaves)


@pytest.mark.parametrize("factory", FACTORIES)
def test_it_trains_at_the_default_lr(factory):
    model, plan = compiled(factory)
    _, args, kwargs = made(factory)
    opt = plan.optimizer(model)
    losses = []
    for _ in range(6):
        out = model(*args, **kwargs)
        out = out if isinstance(out, torch.Tensor) else out.logits
        loss = functional.cross_entropy(out.flatten(0, -2), torch.arange(out.flatten(0, -2).shape[0]) % out.shape[-1])
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(line.split()[-1] == "6" for line in opt.describe().splitlines()[1:]), opt.describe()


def test_hidden_radii_do_not_depend_on_the_depth():
    radii = []
    for depth in (1, 2, 5):
        plan = ng.compile(GPT(depth=depth), (ids(),))
        radii.append({leaf.role: leaf.radius for leaf in plan.leaves if leaf.role in ("linear", "head", "bias")})
        assert len({round(leaf.radius, 9) for leaf in plan.leaves if leaf.role == "linear"}) == 1
    assert radii[0] == pytest.approx(radii[1])
    assert radii[0] == pytest.approx(radii[2])


@pytest.mark.parametrize(
    ("shape", "take"),
    [
        ((12, 2), lambda w: w),
        ((12, 2), lambda w: w.t()),
        ((12, 2), lambda w: w[4:8]),
        ((12, 2), lambda w: w[3:8]),
        ((12, 2), lambda w: w[:10].t()),
        ((12, 2), lambda w: w.view(2, 3, 2, 2)[:, 1]),
        ((12, 2), lambda w: w.view(2, 6, 2)[:, 1:5]),
        ((3, 4, 5), lambda w: w[1].t()),
        ((3, 8, 5), lambda w: w[:, 4:].mT),
        ((1, 4, 5), lambda w: w[0]),
        ((6, 4, 2, 2), lambda w: w[2:4]),
        ((4, 6), lambda w: w.view(-1)),
        ((5,), lambda w: w[None]),
        ((), lambda w: w),
    ],
)
def test_views_follow_views(shape, take):
    """The View found from strides reads and writes what torch's own view does."""
    stored = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
    wanted = take(stored)
    entries = Entries.all(shape).follow(stored, wanted)
    view = view_of(shape, [("oikb"[i], [axis]) for i, axis in enumerate(entries.axes)], entries.offset)
    assert torch.equal(wanted if view is None else view.read(stored), wanted)
    first, second, new = stored.clone(), stored.clone(), torch.randn(wanted.shape)
    take(first).copy_(new)
    second.copy_(new) if view is None else view.write(second, new)
    assert torch.equal(first, second)


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x):
        self.runs += 1
        return {"loss": x.sum(), "logits": self.drop(self.inside(x)), "other": x + torch.randn(4)}


def test_recording_leaves_no_trace():
    model = Stateful().train()
    model.drop.eval()
    torch.manual_seed(3)
    before, state = {n: x.clone() for n, x in model.state_dict().items()}, torch.get_rng_state()
    ng.compile(model, (rows(2, 4),))
    assert [model.training, model.inside.training, model.drop.training] == [True, True, False]
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_use_cache_is_restored():
    pytest.importorskip("transformers")
    model, args, _ = made(gpt2)
    model.config.use_cache = True
    ng.compile(model, args)
    assert model.config.use_cache is True


def test_the_output_can_be_chosen():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return {"first": self.a(x), "second": self.b(self.a(x))}

    model = Two()
    with pytest.raises(ng.geometry.GeometryError, match=r"write output='first' .* second \(2, 4\)"):
        ng.compile(model, (rows(2, 4),))
    with pytest.raises(ng.geometry.GeometryError, match=r"b.weight is used, but not on the way.*get_parameter"):
        ng.compile(model, (rows(2, 4),), output="first")
    assert len(ng.compile(model, (rows(2, 4),), output="second").leaves) == 4
    assert len(ng.compile(model, (rows(2, 4),), output=lambda given: given["second"] + 1).leaves) == 4
    assert [leaf.role for leaf in ng.compile(Stateful(), (rows(2, 4),)).leaves] == ["head", "bias"]


def test_frozen_parameters_keep_leaves_and_unused_ones_are_listed():
    model = GPT()
    model.wte.requires_grad_(False)
    model.extra = nn.Linear(2, 2).requires_grad_(False)
    plan = ng.compile(model, (ids(),))
    assert plan.unused == ("extra.weight", "extra.bias")
    assert "frozen and not used: extra.weight, extra.bias" in str(plan)
    assert [leaf.name for leaf in plan.leaves if not leaf.trainable] == ["wte.weight"]
    assert ("wte.weight", "frozen (requires_grad=False)") in plan.optimizer(model, dry_run=True)
    model.extra.requires_grad_(True)
    with pytest.raises(ng.geometry.GeometryError, match=r"parameter extra.weight is not used in this forward \(so are"):
        ng.compile(model, (ids(),))


def test_mistakes_are_sentences():
    with pytest.raises(ng.geometry.GeometryError, match=r"or give an input.*example_inputs=\(x,\)"):
        ng.compile(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"the model rejects example_inputs of shape \(3, 4\)"):
        ng.compile(nn.Sequential(nn.Linear(5, 2)), (torch.ones(3, 4),))
    with pytest.raises(TypeError, match=r"write example_inputs=\(x,\)"):
        ng.compile(nn.Linear(4, 2), torch.ones(3, 4))


class Strange(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(torch.special.bessel_j0(self.a(x)))


def test_operations_without_a_rule_are_counted_and_refused_when_strict():
    model = Strange()
    plan = ng.compile(model, (rows(3, 4),))
    assert plan.assumed == {"special_bessel_j0": 1}
    assert [leaf.known for leaf in plan.leaves] == ["assumed", "assumed", "typical", "typical"]
    assert "special_bessel_j0 (1)" in str(plan)
    with pytest.raises(ng.geometry.GeometryError, match=r'@normgeo.geometry.operation\("special_bessel_j0"\)'):
        ng.compile(model, (rows(3, 4),), strict=True)


def test_modules_that_declare_themselves_keep_their_declaration_inside_a_strangers_model():
    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = ng.nn.Linear(4, 4) @ ng.nn.ReLU() @ ng.nn.Linear(4, 4)
            self.last = nn.Linear(4, 2)

        def forward(self, x):
            return self.last(self.inside(x) + x)

    plan = ng.compile(Host(), (rows(3, 4),))
    assert [leaf.role for leaf in plan.leaves] == ["linear", "linear", "head", "bias"]
    model = ng.nn.Linear(4, 4) @ nn.Softplus() @ ng.nn.Linear(4, 4)
    assert len(ng.compile(model, (rows(3, 4),)).leaves) == 2


def test_a_tensor_changed_in_place_is_another_value():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = torch.zeros(3, 4)
            y[:, :2] = self.a(x)[:, :2]
            y += self.b(x)
            return y

    recording = record(InPlace(), (rows(3, 4),))
    names = [call.name for call in recording.calls if call.name != "getitem"]
    assert names == ["zeros", "linear", "setitem", "linear", "add"]
    assert len(ng.compile(InPlace(), (rows(3, 4),)).leaves) == 4
