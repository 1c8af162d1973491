"""Models as strangers write them: recorded, every weight found in its role, and trained."""

import importlib.util
import os
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    GPT,
    PLAIN,
    TRANSFORMERS,
    Only,
    Opaque,
    gpt2,
    ids,
    lora,
    made,
    mixtral,
    resnet18,
    rows,
    transformer,
    whisper,
)
from roles import EXPECTED
from torch import nn
from torch.nn import functional

import normgeo as ng
from normgeo.cli.main import commands
from normgeo.geometry.entries import Entries, view_of
from normgeo.geometry.record import record
from normgeo.lab import UserError

os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parents[1]
TRANSFORMERS_HERE = importlib.util.find_spec("transformers") is not None
FACTORIES = [*PLAIN, *TRANSFORMERS]


def compiled(factory, **options):
    if factory in TRANSFORMERS:
        pytest.importorskip("transformers")
    model, args, kwargs = made(factory)
    return model, ng.compile(model, args, kwargs, **options)


def roles(plan):
    """name -> (role, norm, shape), with * for numbers where all that they count are the same."""
    out, alike = {}, {}
    for leaf in plan.leaves:
        name = re.sub(r"(?<=\.)\d+(?=\.)", "*", leaf.name)
        alike.setdefault(name, {})[leaf.name] = (leaf.role, type(leaf.norm).__name__, leaf.shape)
    for name, its in alike.items():
        out |= {name: next(iter(its.values()))} if len(set(its.values())) == 1 else its
    return out


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
    assert all(0 < leaf.radius < 2 for leaf in plan.leaves)


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
    frozen = {leaf.name for leaf in plan.leaves if not leaf.trainable}
    for line in opt.describe().splitlines()[1:]:
        name = line.split()[0]
        if name in frozen:
            continue
        # With B = 0 the first gradient of A is 0.
        assert int(line.split()[-1]) >= (5 if "lora A" in line else 6), line


def test_resnet18_has_convolutions_gains_and_one_head():
    model, plan = compiled(resnet18)
    found = {leaf.name: (leaf.role, leaf.norm, leaf.shape) for leaf in plan.leaves}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert found[f"{name}.weight"] == ("convolution", ng.norms.Conv(2), tuple(module.weight.shape))
        if isinstance(module, nn.BatchNorm2d):
            assert found[f"{name}.weight"][0] == "gain"
            assert found[f"{name}.bias"][0] == "bias"
    assert found["fc.weight"][0] == "head"


def test_hidden_radii_do_not_depend_on_the_depth():
    radii = []
    for depth in (1, 2, 5):
        plan = ng.compile(GPT(depth=depth), (ids(),))
        radii.append({leaf.role: leaf.radius for leaf in plan.leaves if leaf.role in ("linear", "head", "gain")})
        assert len({round(leaf.radius, 9) for leaf in plan.leaves if leaf.role == "linear"}) == 1
    assert radii[0] == pytest.approx(radii[1])
    assert radii[0] == pytest.approx(radii[2])


def test_biases_share_a_mass_of_one_and_add_up():
    for model, inputs in ((GPT(depth=1), ids()), (GPT(depth=3), ids()), (nn.Linear(3, 2), rows(4, 3))):
        plan = ng.compile(model, (inputs,))
        biases = [leaf for leaf in plan.leaves if leaf.role == "bias"]
        assert sum(leaf.mass for leaf in biases) == pytest.approx(1)
        assert all(leaf.radius == pytest.approx(1 / (len(biases) * plan.mass)) for leaf in biases)


def test_rows_of_all_tables_move_alike_tied_or_not():
    for width, logits in ((16, 4), (64, 8), (256, 32)):
        model = GPT(width=width)
        for tied in (False, True):
            if tied:
                model.head.weight = model.wte.weight
            plan = ng.compile(model, (ids(),))
            radii = [leaf.radius * plan.mass for leaf in plan.leaves if leaf.name in ("wte.weight", "wpe.weight")]
            assert radii == pytest.approx([2 / (1 + logits) if tied else 1.0] * 2)


def test_kernels_of_more_taps_have_larger_radii():
    model, inputs, _ = resnet18()
    plan = ng.compile(model, inputs)
    radius = {leaf.name: leaf.radius for leaf in plan.leaves}
    assert radius["layers.2.conv1.weight"] == pytest.approx(3**0.5 * radius["layers.2.down.0.weight"])
    assert radius["stem.weight"] == pytest.approx(3**0.5 * radius["fc.weight"])


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
    with pytest.raises(ng.geometry.GeometryError, match=r"write output='first', .* second \(2, 4\)"):
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
    with pytest.raises(
        ng.geometry.GeometryError, match=r"extra.weight is not used in this forward .* \(so are extra.bias\)"
    ):
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


class PerHead(nn.Module):
    """q, k, v interleaved by head, as in GPT-NeoX."""

    def __init__(self, heads=2, width=8):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, -1)
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Grouped(nn.Module):
    """Two query heads share a key and a value, fused in one weight of unequal parts; positions turn halves of q and k."""

    def __init__(self, width=8):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, width)

    def turned(self, x):
        a, b = x.chunk(2, -1)
        angle = torch.arange(x.shape[-2]).unsqueeze(-1)
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (-1, 4)).transpose(1, 2) for y in self.qkv(x).split((8, 4, 4), -1))
        k, v = (y.expand(-1, 2, -1, -1) for y in (k, v))
        scores = (self.turned(q) @ self.turned(k).mT / 2).softmax(-1)
        return self.out((scores @ v).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.both, self.down = nn.Linear(8, 32), nn.Linear(16, 8)
        self.gain, self.scale = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.full((8,), 1e-3))

    def forward(self, x):
        gate, up = self.both(x * (1 + self.gain)).chunk(2, -1)
        return x + self.scale * self.down(functional.silu(gate) * up)


def test_fused_blocks_are_found_however_they_are_laid_out():
    x = rows(2, 5, 8)
    plan = ng.compile(PerHead(), (x,))
    views = {leaf.name: str(leaf.view) for leaf in plan.leaves if leaf.view}
    assert views["qkv.weight[k]"] == "(o n o2) i -> n (o o2) i [1]"
    model = PerHead()
    q = ng.compile(model, (x,)).leaves[0].read(model.qkv.weight)
    assert torch.equal(q, model.qkv.weight.unflatten(0, (2, 3, 4))[:, 0].flatten(0, 1))

    found = roles(ng.compile(Grouped(), (x,)))
    assert {name: found[name][2] for name in found if "qkv" in name} == {
        "qkv.weight[q]": (8, 8),
        "qkv.weight[k]": (4, 8),
        "qkv.weight[v]": (4, 8),
    }
    found = roles(ng.compile(Gated(), (x,)))
    assert {name: role for name, (role, *_) in found.items()} == {
        **{"both.weight[gate]": "linear", "both.weight[up]": "linear", "down.weight": "linear"},
        **{"both.bias[gate]": "bias", "both.bias[up]": "bias", "down.bias": "bias", "gain": "gain", "scale": "gain"},
    }


def test_blocks_can_be_declared():
    x = rows(2, 5, 8)
    names = [leaf.name for leaf in ng.compile(PerHead(), (x,), splits={"qkv": "(three d) i -> three d i"}).leaves]
    assert names[:6] == [f"qkv.{what}[{i}]" for what in ("weight", "bias") for i in range(3)]
    plan = ng.compile(PerHead(), (x,), splits={"qkv": ("(h three d) i -> three h d i", {"h": 2})})
    assert plan.leaves[1].norm == ng.norms.Blocks(ng.norms.RMSToRMS())
    assert plan.leaves[1].shape == (2, 4, 8)
    model = PerHead()
    k = plan.leaves[1].read(model.qkv.weight)
    assert torch.equal(k, model.qkv.weight.unflatten(0, (2, 3, 4))[:, 1])
    with pytest.raises(ng.geometry.GeometryError, match="give sizes"):
        ng.compile(PerHead(), (x,), splits={"qkv": "(h three d) i -> three h d i"})
    with pytest.raises(ng.geometry.GeometryError, match="not 24"):
        ng.compile(PerHead(), (x,), splits={"qkv": "(five d) i -> five d i"})
    with pytest.raises(ValueError, match="matches no leaf"):
        ng.compile(PerHead(), (x,), splits={"kqv": "(three d) i -> three d i"})


def test_roles_can_be_declared():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    plan = ng.compile(model, (rows(3, 4),), roles={"0.weight": "embedding", "1": "head", "0.bias": "gain"})
    assert [leaf.role for leaf in plan.leaves] == ["embedding", "gain", "head", "head"]
    assert [type(leaf.norm).__name__ for leaf in plan.leaves] == ["L1ToRMS", "Linf", "RMSToRMS", "RMS"]
    with pytest.raises(ValueError, match="there is no role 'matrix'"):
        ng.compile(model, (rows(3, 4),), roles={"0.weight": "matrix"})


def test_what_cannot_be_seen_is_assumed_and_said():
    model = nn.Sequential(nn.Linear(4, 4), Opaque(), nn.Linear(4, 2))
    plan = ng.compile(model, (rows(3, 4),))
    assert plan.assumed == {"Opaque": 1}
    assert [leaf.role for leaf in plan.leaves] == ["linear", "bias", "assumed", "head", "bias"]
    plan = ng.compile(model, (rows(3, 4),), roles={"1.w": "linear"})
    assert plan.leaves[2].role == "linear"


def test_experts_that_got_no_token_are_what_their_siblings_are():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.router, self.experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            weight, choice = self.router(x).softmax(-1).topk(1)
            out = torch.zeros_like(x)
            for i, expert in enumerate(self.experts):
                rows = (choice[:, 0] == i).nonzero()[:, 0]
                if len(rows):
                    out = out.index_add(0, rows, weight[rows] * expert(x[rows]))
            return out

    plan = ng.compile(Routed(), (rows(1, 4),))
    assert [leaf.role for leaf in plan.leaves] == ["router", "bias", *3 * ["linear", "bias"]]
    assert sorted(leaf.known for leaf in plan.leaves if leaf.role == "linear") == ["assumed", "assumed", "typical"]


def test_frozen_tables_are_leaves_and_do_not_move():
    pytest.importorskip("transformers")
    plan = compiled(whisper)[1]
    assert [leaf.name for leaf in plan.leaves if not leaf.trainable] == ["model.encoder.embed_positions.weight"]


def test_the_norm_of_a_recorded_plan_obeys_its_laws():
    for factory in (transformer, lora, *([mixtral] if TRANSFORMERS_HERE else [])):
        model, plan = compiled(factory)
        gs = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
        d = plan.dualize(gs)
        inner = sum((gs[name] * d[name]).sum() for name in gs)
        torch.testing.assert_close(inner, plan.dual_norm(gs), rtol=2e-2, atol=0)
        assert 0.9 < plan.norm(d) <= 1 + 1e-4


LAYERS = {
    "linear": lambda d: nn.Linear(d, d),
    "relu": lambda d: nn.ReLU(),
    "norm": lambda d: nn.LayerNorm(d),
    "gelu": lambda d: nn.GELU(),
    "prelu": lambda d: nn.PReLU(),
    "conv": lambda d: nn.Conv1d(3, 3, 3, padding=1),
    "attention": lambda d: nn.TransformerEncoderLayer(d, 2, 8, batch_first=True),
    "gru": lambda d: Only(nn.GRU(d, d, batch_first=True), 0),
    "residual": lambda d: Residual(nn.Linear(d, d)),
    "gated": lambda d: Halves(d),
}


class Residual(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return x + self.inside(x)


class Halves(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.inside = nn.Linear(d, 2 * d)

    def forward(self, x):
        return functional.glu(self.inside(x), -1) * x


@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=5), st.booleans())
@settings(max_examples=20)
def test_every_network_is_covered_by_leaves_of_its_own(kinds, freeze):
    model = nn.Sequential(nn.Linear(4, 4), *(LAYERS[kind](4) for kind in kinds), nn.Linear(4, 2))
    if freeze:
        next(iter(model.parameters())).requires_grad_(False)
    plan = ng.compile(model, (rows(2, 3, 4),), strict=True)
    assert len({leaf.name for leaf in plan.leaves}) == len(plan.leaves)
    seen = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for leaf in plan.leaves:
        leaf.write(seen[leaf.parameter], leaf.read(seen[leaf.parameter]) + 1)
        assert 0 < leaf.radius < 10
    assert all((count == 1).all() for count in seen.values())
    trainable = sum(leaf.radius * leaf.sensitivity * leaf.input_norm for leaf in plan.leaves if leaf.trainable)
    assert trainable == pytest.approx(1)  # Σ m/M


def test_why_tells_the_way_of_a_change():
    plan = ng.compile(GPT(), (ids(),))
    text = plan.why("blocks.1.up.weight")
    assert "linear, 128×32" in text
    assert "data can go around it" in text
    assert "linear (blocks.1.up) → bias (blocks.1.up) → gelu (blocks.1) → linear (blocks.1.down)" in text
    assert text.endswith("linear (head) → output")
    with pytest.raises(ValueError, match="the plan has no leaf 'up'"):
        plan.why("up")


@pytest.mark.parametrize("option", [[], ["--markdown"], ["--json"], ["--why", "4.weight"], ["--strict"]])
def test_the_command_explains(option, monkeypatch):
    monkeypatch.chdir(ROOT / "tests")
    result = CliRunner().invoke(commands, ["explain", "models:mlp", *option])
    assert result.exit_code == 0
    assert "4.weight" in result.output
    if option == ["--json"]:
        assert ng.Plan.from_json(result.output).leaves[-2].role == "head"


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (["models"], "names no factory"),
        (["models:nothing"], "has no attribute 'nothing'"),
        (["no_such_module:x"], "No module named"),
        (["models:rows"], "must return"),
        (["models:mlp", "--why", "up"], "no leaf 'up'"),
        (["models:mlp", "--output", "up"], "no tensor called 'up'"),
    ],
)
def test_mistakes_on_the_command_line_are_sentences(asked, answer, monkeypatch):
    monkeypatch.chdir(ROOT / "tests")
    result = CliRunner().invoke(commands, ["explain", *asked])
    assert isinstance(result.exception, UserError)
    assert answer in str(result.exception)


def test_the_page_of_models_is_current():
    """But for the seconds, which are those of the machine that made it."""
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("generate_models", ROOT / "docs" / "generate_models.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    seconds = re.compile(r"\| [\d.]+ \|$", re.MULTILINE)
    written = generate.TARGET.read_text(encoding="utf-8")
    assert seconds.sub("", written) == seconds.sub("", generate.page()), "run python docs/generate_models.py"


class Scores(nn.Module):
    """What is added to attention scores, in three ways, and a bias for each head."""

    def __init__(self, heads=2, width=8, context=5):
        super().__init__()
        self.q, self.kv, self.heads = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width), heads
        self.table = nn.Parameter(torch.zeros(2 * context - 1, heads))
        self.mask = nn.Parameter(torch.zeros(heads, context, context))
        self.sinks = nn.Parameter(torch.zeros(heads))
        self.shift = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, x):
        t = x.shape[1]
        split = [y.unflatten(-1, (self.heads, -1)) for y in (self.q(x), *self.kv(x).chunk(2, -1))]
        q, k, v = (y.transpose(1, 2) for y in (split[0] + self.shift, *split[1:]))
        distance = torch.arange(t)[:, None] - torch.arange(t) + t - 1
        scores = q @ k.mT + self.table[distance.flatten()].view(t, t, -1).permute(2, 0, 1)
        sinks = self.sinks.view(1, -1, 1, 1).expand(len(x), -1, t, 1)
        first = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ v
        return first + functional.scaled_dot_product_attention(q, k, v, self.mask)


def test_what_is_added_to_scores_is_a_bias_table():
    found = roles(ng.compile(Scores(), (rows(3, 5, 8),), strict=True))
    assert {name: found[name] for name in ("table", "mask", "sinks", "shift")} == {
        "table": ("bias table", "Linf", (18,)),
        "mask": ("bias table", "Linf", (50,)),
        "sinks": ("bias table", "Linf", (2,)),
        "shift": ("bias", "Blocks", (2, 4)),
    }


class Parametrized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 3))
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
        self.second = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 2))

    def forward(self, x):
        return self.second(functional.relu(self.first(self.conv(x))))


def test_parametrized_weights_are_matrices_and_gains():
    found = roles(ng.compile(Parametrized(), (rows(2, 3, 8),)))
    assert {name: role for name, (role, *_) in found.items() if "bias" not in name} == {
        "conv.parametrizations.weight.original0": "gain",
        "conv.parametrizations.weight.original1": "convolution",
        "first.parametrizations.weight.original0": "gain",
        "first.parametrizations.weight.original1": "linear",
        "second.parametrizations.weight.original": "head",
    }


def test_models_on_the_meta_device_in_other_dtypes_and_grown():
    with torch.device("meta"):
        there = GPT()
    plan = ng.compile(there, (torch.empty(2, 12, dtype=torch.long, device="meta"),))
    here = ng.compile(GPT(), (ids(),))
    assert plan == here
    assert ng.compile(GPT().bfloat16(), (ids(),)) == here
    model = GPT(depth=1)
    plan = ng.compile(model, (ids(),))
    model.blocks.append(GPT(depth=1).blocks[0])
    assert plan.extend(model) == here
    with pytest.raises(ValueError, match=r"write plan = plan.extend\(model\)"):
        plan.optimizer(model)


def test_wrapped_models_are_seen_through():
    here = ng.compile(GPT(), (ids(),))
    assert ng.compile(nn.DataParallel(GPT()), (ids(),)) == here
    assert ng.compile(torch.compile(GPT(), backend="eager"), (ids(),)) == here
    model = GPT()
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    assert ng.compile(model, (ids(),)) == here


def test_a_weight_that_is_scaled_in_place_is_still_that_weight():
    class Scaled(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.weight.mul_(1.0)
            return super().forward(x)

    plan = ng.compile(Scaled(3, 2), (torch.randn(4, 3),), strict=True)
    assert {leaf.name: leaf.role for leaf in plan.leaves} == {"weight": "head", "bias": "bias"}
