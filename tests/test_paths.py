"""Every way to run a step moves the weights as a plain loop over the parameters does."""

import re
import warnings
from itertools import pairwise

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

import normgeo as ng
from normgeo.linalg import SVD, TIGHT
from normgeo.norms import with_polar
from normgeo.optim import place
from normgeo.rules import HeavyBall, Momentum, Plain, Stored
from normgeo.steps import Auto

BETA, DECAY, LR = 0.9, 0.1, 0.05


class Net(torch.nn.Module):
    """Wide, tall, square and ragged matrices, gains, biases and a table, of which some rows are never seen."""

    def __init__(self):
        super().__init__()
        sizes = (6, 9, 4, 6, 3)
        self.table = torch.nn.Embedding(7, 6)
        self.maps = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(b) for b in sizes[1:-1])

    def forward(self, ids):
        x = self.table(ids)
        for layer, norm in zip(self.maps[:-1], self.norms, strict=True):
            x = torch.tanh(norm(layer(x)))
        return self.maps[-1](x)


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return Net().to(dtype)


def backward(model, step):
    generator = torch.Generator().manual_seed(step)
    ids, wanted = (torch.randint(n, (5,), generator=generator) for n in (6, 3))
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(ids), wanted)
    loss.backward()


def plan_of(model):
    return ng.compile(model, example_inputs=(torch.arange(5),))


def reference(polar, steps, dtype=torch.float64):
    """No stacks, no state buffers, one parameter after the other."""
    model = net(dtype)
    plan = plan_of(model)
    momenta = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    leaves = {leaf.parameter: leaf for leaf in plan.leaves}
    age = torch.full((7,), torch.inf)
    for step in range(steps):
        backward(model, step)
        for name, p in model.named_parameters():
            m = momenta[name].lerp_(p.grad, 1 - BETA)
            if name == "table.weight":  # rows without a gradient for 1/(1-β) steps are forgotten
                age = torch.where(p.grad.any(1), 0, age + 1)
                m[age >= 10] = 0
            d = with_polar(leaves[name].norm, polar).dualize(torch.lerp(p.grad, m, BETA))
            with torch.no_grad():
                p.copy_(p - LR * leaves[name].radius * d - LR * DECAY * p)
    return model


def run(steps, precision, dtype=torch.float64, **options):
    model = net(dtype)
    rule = options.pop("rule", Momentum(BETA, nesterov=True))
    opt = plan_of(model).optimizer(model, lr=LR, rule=rule, decay=DECAY, precision=precision, **options)
    for step in range(steps):
        backward(model, step)
        opt.step()
    return model, opt


def difference(one, other):
    both = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in both)


PATHS = {
    "plain": {},
    "capturable": {"capturable": True},
    "compiled and capturable": {"compile": "aot_eager", "capturable": True},
    "in backward": {"in_backward": True, "nonfinite": "zero"},
    "one leaf a stack": {"most": 1},
    "chunks": {"most": 100},
    "ragged": {"ragged": True},
    "ragged, one leaf a stack": {"ragged": True, "most": 1},
    "ragged and compiled": {"ragged": True, "compile": "aot_eager"},
    "nothing padded": {"ragged": True, "stack": -1},
}


@pytest.fixture(scope="module")
def plain_loop():
    return {polar: reference(polar, 200) for polar in (SVD(), TIGHT)}


@pytest.mark.parametrize(("path", "polar"), [*((path, TIGHT) for path in PATHS), ("plain", SVD())], ids=str)
def test_two_hundred_steps_end_where_a_plain_loop_ends(path, polar, plain_loop, monkeypatch):
    """In float64, after which weights have moved by more than .1: to 1e-9."""
    options = dict(PATHS[path])
    monkeypatch.setitem(place.MOST, "cpu", options.pop("most", place.MOST["cpu"]))
    monkeypatch.setitem(place.STACK, "cpu", options.pop("stack", place.STACK["cpu"]))
    model, _ = run(200, polar, **options)
    assert difference(model, net()) > 0.1
    assert difference(model, plain_loop[polar]) <= 1e-9


def test_state_in_bfloat16_takes_half_the_memory_and_turns_directions_little():
    """Momentum M of 300 Gaussian gradients with a mean: |M' - M| ≤ .5 % of |M|."""
    torch.manual_seed(0)
    exact, stored = Momentum(0.95, nesterov=True), Stored(Momentum(0.95, nesterov=True))
    W = torch.zeros(1, 64, 64)
    one, other = exact.init(W), stored.init(W)
    for _ in range(300):
        G = torch.randn_like(W) + 0.3
        M, seen = exact.update(G, one), stored.update(G, other)
    assert float((M - seen).norm() / M.norm()) <= 5e-3
    assert sum(x.nbytes for x in other.values()) * 2 == sum(x.nbytes for x in one.values())
    with pytest.raises(ValueError, match="forgets too slowly"):
        Stored(Momentum(0.999))


@pytest.mark.parametrize("rule", [Stored(Momentum(BETA, nesterov=True)), Plain(), HeavyBall(BETA)], ids=str)
@pytest.mark.parametrize("path", ["compiled and capturable", "in backward"])
def test_other_rules_take_the_same_paths(path, rule):
    """In float32, twenty steps: weights differ by the rounding of stacks of other sizes."""
    plain, _ = run(20, TIGHT, torch.float32, rule=rule)
    model, opt = run(20, TIGHT, torch.float32, rule=rule, **PATHS[path])
    assert difference(model, plain) <= 1e-3
    assert difference(model, net(torch.float32)) > 0.1
    if isinstance(rule, Stored):
        assert {s["rule.momentum"].dtype for s in opt.state.values()} == {torch.bfloat16}


@pytest.mark.parametrize("path", ["capturable", "compiled and capturable", "in backward"])
def test_step_sizes_that_look_at_moves_take_the_same_paths(path):
    plain, _ = run(20, TIGHT, step=Auto(20))
    model, opt = run(20, TIGHT, step=Auto(20), **PATHS[path])
    assert all(stack.fused for group in opt._bound for stack in group.stacks)
    assert difference(model, plain) <= 1e-9
    assert difference(model, net()) > 0.1


@pytest.mark.parametrize("compile", [False, "aot_eager"])
def test_a_leaf_that_is_left_out_keeps_what_its_step_size_knows(compile):
    model, opt = run(2, TIGHT, step=Auto(20), nonfinite="zero", compile=compile)
    backward(model, 2)
    p = model.maps[1].weight
    p.grad[0, 0] = torch.nan
    before, state = p.detach().clone(), {name: x.clone() for name, x in opt.state[p].items()}
    with pytest.warns(RuntimeWarning, match=r"maps.1.weight"):
        opt.step()
    assert torch.equal(p, before)
    for name in ("rule.momentum", "step.size", "step.weights"):
        assert torch.equal(opt.state[p][name], state[name])
        assert not torch.equal(opt.state[model.maps[0].weight][name], state[name])


def test_one_state_tensor_of_the_size_of_each_parameter():
    model, opt = run(1, TIGHT)
    for p in model.parameters():
        assert sum(x.numel() >= p.numel() for x in opt.state[p].values() if x.ndim) == 1 or p.numel() == 1
    _, free = run(1, TIGHT, rule=Plain())
    assert not any(name.startswith("rule.") for state in free.state.values() for name in state)


@pytest.mark.parametrize("polar", [SVD(), TIGHT, ng.linalg.FAST, ng.linalg.PolarExpress(gram=True)], ids=str)
def test_zeros_around_a_matrix_stay_and_change_nothing(polar):
    """P([G 0; 0 0]) = [P(G) 0; 0 0], because ‖·‖_F, GGᵀ and products do not see the zeros; and P(Gᵀ) = P(G)ᵀ."""
    g = torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    framed = torch.zeros(12, 10, dtype=torch.float64)
    framed[:9, :5] = g.mT
    p = polar(framed)
    torch.testing.assert_close(p[:9, :5].mT, polar(g), rtol=0, atol=1e-12)
    assert not p[9:].any()
    assert not p[:, 5:].any()


def test_transposed_and_small_ragged_matrices_are_one_stack():
    _, opt = run(1, TIGHT, ragged=True)
    stacks = opt._bound[0].stacks
    spectral = [stack for stack in stacks if isinstance(stack.norm, ng.norms.Spectral)]
    assert [len(stack) for stack in spectral] == [4]
    assert sorted(spectral[0].shape) == [6, 9]
    assert any(p.turned for p in spectral[0].places)
    state = opt.state[next(p for p in opt.state if p.shape == (6, 4))]
    assert state["rule.momentum"].shape == (6, 4)


def test_padding_never_changes_the_work_dtype():
    leaves = [
        (torch.nn.Parameter(torch.zeros(s)), ng.geometry.Leaf(str(s), str(s), s, "linear", ng.norms.RMSToRMS()))
        for s in ((63, 70), (64, 70), (16, 64), (80, 64))
    ]
    assert {tuple(sorted(bunch.shape)) for bunch in place.bunches(leaves, True, True)} == {(63, 70), (64, 80)}


def test_checkpoints_go_from_one_path_to_another():
    model, opt = run(3, SVD())
    twin = net()
    twin.load_state_dict(model.state_dict())
    other = plan_of(twin).optimizer(
        twin,
        lr=LR,
        rule=Momentum(BETA, nesterov=True),
        decay=DECAY,
        precision="exact",
        in_backward=True,
        nonfinite="zero",
    )
    other.load_state_dict(opt.state_dict())
    for each, its in ((model, opt), (twin, other)):
        backward(each, 3)
        its.step()
    assert difference(model, twin) <= 1e-12


# ---- compile


@pytest.mark.parametrize(
    ("norm", "functions"), [(ng.norms.Spectral(), 2), (ng.norms.L1ToLinf(), 1), (ng.norms.L1ToRMS(), 1)]
)
def test_no_lr_and_no_shape_compiles_anything_anew(norm, functions):
    """25 shapes and 50 values of lr, all compiled in the first step: one function for momentum and one for the writing, or
    one for all of a step where a norm needs no products."""
    torch.manual_seed(0)
    shapes = [(8 + k, 70 + 3 * k) for k in range(25)]
    model = torch.nn.ModuleList(torch.nn.Linear(n, m, bias=False) for m, n in shapes)
    leaves = [ng.geometry.Leaf(f"{i}.weight", f"{i}.weight", s, "linear", norm) for i, s in enumerate(shapes)]
    torch._dynamo.reset()
    counters.clear()
    lr = torch.tensor(0.1)
    opt = ng.optim.Optimizer(
        [{"params": list(model.parameters()), "leaves": [(leaf,) for leaf in leaves]}],
        lr=lr,
        decay=0.1,
        compile="aot_eager",
    )
    graphs = []
    for step in range(50):
        lr.fill_(0.1 / (step + 1))
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        opt.step()
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(opt._bound[0].stacks) == 25
    assert graphs == 50 * [functions]
    opt.param_groups[0]["lr"] = 0.3  # numbers, too
    opt.step()
    torch.compile(opt.step, backend="aot_eager")()  # what users of torch do; our own code is not traced
    assert counters["stats"]["unique_graphs"] == functions


def test_matrices_and_kernels_share_what_is_compiled():
    """Momentum and the writing, each for leaves alone and for leaves together."""
    shapes = [(8, 4), (8, 4), (9, 4), (16, 3, 3, 3), (16, 3, 3, 3), (8, 3, 3, 3)]
    norms = {2: ng.norms.RMSToRMS(), 4: ng.norms.Conv(2)}
    params = [torch.nn.Parameter(torch.randn(s)) for s in shapes]
    leaves = [(ng.geometry.Leaf(f"{i}", f"{i}", s, "linear", norms[len(s)]),) for i, s in enumerate(shapes)]
    torch._dynamo.reset()
    counters.clear()
    opt = ng.optim.Optimizer([{"params": params, "leaves": leaves}], decay=0.1, compile="aot_eager")
    for p in params:
        p.grad = torch.randn_like(p)
    opt.step()
    assert counters["stats"]["unique_graphs"] == 4


NO_PRODUCTS = [ng.norms.L1ToLinf(), ng.norms.L1ToRMS(), ng.norms.Frobenius()]


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        (Momentum(BETA, nesterov=True), torch.bfloat16),
        pytest.param(Stored(Momentum(BETA)), torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(HeavyBall(BETA), torch.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "norm", [NO_PRODUCTS[1], *(pytest.param(norm, marks=pytest.mark.slow) for norm in NO_PRODUCTS[::2])], ids=str
)
def test_steps_in_one_function_do_what_steps_in_parts_do(norm, rule, dtype):
    """Weights, state and counts: with a leaf whose gradient is not finite, one without, one of mass 0, and one alone."""
    shapes, ends = [(4, 6), (4, 6), (4, 6), (4, 6), (5, 3)], []
    for compile in (False, "aot_eager"):
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
        masses = [1.0, 1.0, 1.0, 0.0, 2.0]
        leaves = [
            (ng.geometry.Leaf(f"{i}", f"{i}", tuple(p.shape), "linear", norm, mass=mass),)
            for i, (p, mass) in enumerate(zip(params, masses, strict=True))
        ]
        groups = [{"params": params, "leaves": leaves}]
        opt = ng.optim.Optimizer(groups, rule=rule, decay=0.3, compile=compile, nonfinite="zero", lr=0.1)
        assert all((stack.at_once is not None) == bool(compile) for group in opt._ready() for stack in group.stacks)
        for step in range(4):
            for i, p in enumerate(params):
                p.grad = torch.randn(p.shape, generator=generator).to(dtype)
                p.grad[1:] *= step % 2  # of a table, rows that are not always seen
                if i == 1 and step == 2:
                    p.grad[0, 0] = torch.inf
            params[2].grad = None if step == 1 else params[2].grad
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                opt.step()
        ends.append(([p.detach() for p in params], opt.state_dict()["state"]))
    (weights, state), (compiled, other) = ends
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(compiled, weights, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(other, state, atol=tolerance, rtol=tolerance)
    assert [int(its["moved"]) for its in other.values()] == [4, 3, 3, 0, 4]


class Delayed(ng.rules.Rule):
    """Gradients of two steps ago, from state whose tensors change places or shift onto themselves."""

    def __init__(self, kind, entrywise=True):
        self.kind, self.entrywise = kind, entrywise

    def init(self, W, independent=0):
        names = ["past"] if self.kind == "ring" else ["two", "one"]
        return {name: W.new_zeros(len(W), 2, *W.shape[1:]) if self.kind == "ring" else W * 0 for name in names}

    def update(self, G, state):
        if self.kind == "ring":
            M = state["past"][:, 0]
            state["past"] = torch.stack([state["past"][:, 1], G], 1)
        else:
            M, state["one"] = state["one"], state["two"]
            state["two"] = G.double() if self.kind == "wide" else G
        return M


@pytest.mark.parametrize(
    ("kind", "entrywise", "compile"),
    [
        ("ring", True, False),
        ("places", True, False),
        ("places", False, False),
        ("wide", True, False),
        ("wide", False, False),
        ("ring", True, "aot_eager"),
        ("places", True, "aot_eager"),
    ],
)
def test_rules_may_assign_what_their_state_was(kind, entrywise, compile):
    """Against a list of gradients, also while one leaf has none."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(3, 4)) for _ in range(2)]
    leaves = [(ng.geometry.Leaf(f"{i}", f"{i}", (3, 4), "linear", ng.norms.L1ToLinf()),) for i in range(2)]
    groups = [{"params": params, "leaves": leaves}]
    opt = ng.optim.Optimizer(groups, lr=1.0, rule=Delayed(kind, entrywise), compile=compile)
    ends, seen = [torch.zeros(3, 4) for _ in params], [2 * [torch.zeros(3, 4)] for _ in params]
    for step in range(5):
        for i, p in enumerate(params):
            p.grad = None if i == 0 and step == 2 else torch.randn(3, 4, generator=generator)
            if p.grad is not None:
                ends[i] -= 0.5 * seen[i][-2].sign()
                seen[i].append(p.grad)
        opt.step()
    assert torch.equal(torch.stack(list(params)), torch.stack(ends))


def test_rules_made_of_momentum_keep_what_they_are_without_a_gradient():
    class Twice(Momentum):
        def update(self, G, state):
            return super().update(2 * G, state)

    params = [torch.nn.Parameter(torch.zeros(3, 4)) for _ in range(2)]
    leaves = [(ng.geometry.Leaf(f"{i}", f"{i}", (3, 4), "linear", ng.norms.L1ToLinf()),) for i in range(2)]
    opt = ng.optim.Optimizer([{"params": params, "leaves": leaves}], rule=Twice(0.5))
    for p in params:
        p.grad = torch.ones(3, 4)
    opt.step()
    params[0].grad = None
    opt.step()
    assert [float(opt.state[p]["rule.momentum"].mean()) for p in params] == [1.0, 1.5]


def test_state_that_init_does_not_return_is_refused():
    """It would neither be saved nor be there in the next step."""

    class Sum(ng.rules.Rule):
        entrywise = True

        def update(self, G, state):
            state["sum"] = state.get("sum", 0) + G
            return state["sum"]

    model = net()
    opt = plan_of(model).optimizer(model, rule=Sum())
    backward(model, 0)
    with pytest.raises(ValueError, match=r"has \['sum'\] in its state, but its init returned \[\]: return all of it"):
        opt.step()


def test_directions_may_be_narrower_than_weights():
    """The kernel that writes weights in place looks at no shapes."""

    class Rows(ng.optim.Direction):
        def __call__(self, M, state, W):
            return M.sum(-1, keepdim=True).sign()

    p = torch.nn.Parameter(torch.zeros(3, 4))
    p.grad = torch.tensor([1.0, -2.0, 3.0]).unsqueeze(1).expand(3, 4)
    leaf = ng.geometry.Leaf("p", "p", (3, 4), "linear", ng.norms.Frobenius())
    ng.optim.Optimizer([{"params": [p], "leaves": [(leaf,)]}], direction=Rows(), lr=0.5).step()
    assert torch.equal(p, torch.tensor([-0.5, 0.5, -0.5]).unsqueeze(1).expand(3, 4))


def test_what_stays_has_not_moved_whatever_it_is():
    params = [torch.nn.Parameter(torch.tensor([x, 1.0])) for x in (1.0, torch.nan)]
    leaves = [
        (ng.geometry.Leaf(f"{i}", f"{i}", (2,), "gain", ng.norms.Linf(), mass=mass),) for i, mass in enumerate((1, 0))
    ]
    opt = ng.optim.Optimizer([{"params": params, "leaves": leaves}])
    for lr in (0.1, torch.tensor(torch.nan)):
        opt.param_groups[0]["lr"] = lr
        for p in params:
            p.grad = torch.ones(2)
        opt.step()
    assert [int(opt.state[p]["moved"]) for p in params] == [2, 0]
    assert float(params[1].detach()[1]) == 1


@pytest.mark.slow
def test_the_default_backend_of_compile_agrees():
    plain, _ = run(10, TIGHT)
    assert difference(run(10, TIGHT, compile=True)[0], plain) <= 1e-9


# ---- inside backward()


def test_gradients_are_gone_one_by_one():
    model = net()
    opt = plan_of(model).optimizer(model, in_backward=True, nonfinite="zero")
    alive = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(q.grad is not None for q in model.parameters()))
        )
    backward(model, 0)
    assert max(alive) == 0
    assert len(alive) == len(list(model.parameters()))
    assert {float(s["step"]) for s in opt.state.values()} == {0}
    opt.step()
    assert {float(s["step"]) for s in opt.state.values()} == {1}


def test_step_sizes_of_single_leaves_work_in_backward_and_stack_by_stack():
    """A rule that shares nothing between leaves gives the same weights from all moves at once."""

    class AllAtOnce(ng.steps.AdamNorm):
        needs = {"moves": 1}  # noqa: RUF012

    one = ng.steps.AdamNorm()
    end, _ = run(20, TIGHT, step=one)
    assert difference(end, net()) > 1e-3
    assert difference(end, run(20, TIGHT, step=one, in_backward=True, nonfinite="zero")[0]) <= 1e-12
    for step in (AllAtOnce(), ng.steps.Linear(10**9) * one, one * ng.steps.Escape(1.0)):
        assert difference(end, run(20, TIGHT, step=step)[0]) <= 1e-9


@pytest.mark.parametrize("path", ["capturable", "compiled and capturable"])
def test_step_sizes_of_single_leaves_are_those_of_their_decay(path):
    """Also in a stack of two, whose weights are written without their shape."""
    ends = []
    for options in ({}, PATHS[path]):
        params = [torch.nn.Parameter(torch.ones(3, 4, dtype=torch.float64)) for _ in range(2)]
        leaves = [(ng.geometry.Leaf(f"{i}", f"{i}", (3, 4), "linear", ng.norms.Spectral()),) for i in range(2)]
        groups = [{"params": params, "leaves": leaves}]
        opt = ng.optim.Optimizer(groups, step=ng.steps.AdamNorm(), decay=0.5, **options)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(3, 4, generator=generator, dtype=torch.float64)
            opt.step()
        ends.append(torch.stack([p.detach() for p in params]))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


def test_bad_gradients_are_left_out_in_backward():
    model = net()
    opt = plan_of(model).optimizer(model, in_backward=True, nonfinite="zero")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.maps[0].weight.register_hook(lambda g: g * torch.nan)
    with pytest.warns(RuntimeWarning, match=r"maps\.0\.weight"):
        backward(model, 0)
    opt.step()
    assert opt.skipped == 0
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(before) - {"maps.0.weight"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, 'write nonfinite="zero"'),
        ({"nonfinite": "zero", "capturable": True}, "cannot be had together"),
        ({"nonfinite": "zero", "step": ng.steps.Escape()}, "Escape has to see the gradients of the whole group"),
        ({"nonfinite": "zero", "step": ng.steps.MetaOptimize()}, "MetaOptimize has to see"),
    ],
)
def test_what_needs_all_gradients_is_refused_in_backward(options, message):
    model = net()
    with pytest.raises(ValueError, match=re.escape(message)):
        plan_of(model).optimizer(model, in_backward=True, **options)


def test_accumulated_gradients_are_refused_in_backward():
    model = net()
    opt = plan_of(model).optimizer(model, in_backward=True, nonfinite="zero")
    backward(model, 0)
    with pytest.raises(RuntimeError, match="to accumulate gradients write in_backward=False"):
        backward(model, 1)
    del opt
    backward(net(), 1)


# ---- memory


class Allocations(TorchDispatchMode):
    """The most bytes of new tensors that were alive at one time."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        import weakref

        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, list | tuple) else [out]:
            if isinstance(x, torch.Tensor) and (key := x.untyped_storage()._cdata) not in self.alive:
                known = {y.untyped_storage()._cdata for y in _tensors((args, kwargs))}
                if key not in known:
                    self.alive[key] = x.untyped_storage().nbytes()
                    self.now += self.alive[key]
                    self.most = max(self.most, self.now)
                    weakref.finalize(x.untyped_storage(), self._gone, key)
        return out

    def _gone(self, key):
        self.now -= self.alive.pop(key, 0)


def _tensors(tree):
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("layers", [4, 16])
def test_a_step_works_in_the_space_of_a_stack_however_many_there_are(layers, monkeypatch):
    """Chunks of 64·64·4 entries: at most nine tensors of that size are alive, for 4 matrices as for 16."""
    monkeypatch.setitem(place.MOST, "cpu", 4 * 64 * 64)
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False) for _ in range(layers)))
    opt = ng.compile(model, example_inputs=(torch.ones(1, 64),)).optimizer(model)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        with Allocations() as count:
            opt.step()
    assert 0 < count.most <= 9 * 4 * 4 * 64 * 64


def test_channels_last_kernels_keep_their_momentum():
    """A stack of one leaf may have the strides of its parameter; flattening momentum with these would update a copy."""
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 8, 3)
        plan = ng.compile(model, (torch.randn(2, 3, 8, 8),))
        model = model.to(memory_format=layout)
        opt = plan.optimizer(model, lr=0.1)
        for _ in range(5):
            for p in model.parameters():
                p.grad = torch.empty_like(p).copy_(torch.randn(p.shape))
            opt.step()
        ends.append(model.weight.detach().contiguous())
    assert torch.equal(*ends)
