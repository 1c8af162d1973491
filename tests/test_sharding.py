"""One network on several ranks is the network that one process trains. What the ranks do is in sharded.py."""

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import sharded
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import on_ranks, until_all_end
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

import normgeo as ng
from normgeo.optim.balance import assign, polar_flops
from normgeo.optim.layout import boxes
from normgeo.optim.shards import Euclidean

DOCS = Path(__file__).parents[1] / "docs"


@given(st.data())
def test_boxes_are_those_of_torch(data):
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    mesh = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
    kinds = [Replicate(), *map(Shard, range(len(shape)))]
    placements = [data.draw(st.sampled_from(kinds)) for _ in mesh]
    if len(mesh) == 2 and placements[1].is_shard() and data.draw(st.booleans()):
        dim = placements[1].dim
        shape[dim] = mesh[0] * mesh[1] * data.draw(st.integers(1, 3))
        placements[0] = _StridedShard(dim, split_factor=mesh[1])  # fully_shard after tensor parallelism
    found = boxes(shape, mesh, placements)
    for coordinate, box in zip(itertools.product(*map(range, mesh)), found, strict=True):
        size, start = _compute_local_shape_and_global_offset(shape, mesh, list(coordinate), placements)
        assert box.size == tuple(size)
        assert box.start == tuple(start) or not box.entries


@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.integers(1, 4))
def test_assignment_is_within_grahams_bound_of_the_best(costs, ranks):
    def busiest(owners):
        return max(sum(c for c, o in zip(costs, owners, strict=True) if o == rank) for rank in range(ranks))

    best = min(map(busiest, itertools.product(range(ranks), repeat=len(costs))))
    assert busiest(assign(costs, ranks)) <= (4 / 3 - 1 / (3 * ranks)) * best * (1 + 1e-12)


def test_costs_count_blocks_and_sides():
    assert polar_flops((3, 2, 5)) == 3 * polar_flops((5, 2)) == 18 * (4 * 4 * 5 + 2 * 8)


def test_parts_that_see_more_than_entries_do_not_claim_otherwise():
    """A leaf cut in two gives what the whole one gives, for rules, constraints and iterates that say entrywise."""
    shape = (1, 6, 4)
    generator = torch.Generator().manual_seed(0)
    G, W, D = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    rate = ng.constraints.base.Rate(torch.tensor(0.1), torch.tensor(0.5), radius=0.5)

    def after(part, constraint, rule, iterate):
        constraint_state, rule_state, iterate_state = (
            constraint.init(W[part]),
            rule.init(W[part]),
            iterate.init(W[part]),
        )
        g = constraint.tangent(W[part], G[part], constraint_state)
        m = rule.update(g, rule_state)
        new = iterate.write(W[part], D[part] + m, rate.eta, iterate_state)
        return constraint.retract(new, W[part], rate, constraint_state)

    constraints = [ng.constraints.Decay(0.2), ng.constraints.DecoupledDecay(0.2), ng.constraints.CorrectedDecay(0.2)]
    constraints += [ng.constraints.L2Penalty(0.2), ng.constraints.FrankWolfe(2.0), ng.constraints.Free()]
    rules = [ng.rules.Momentum(0.9, nesterov=True), ng.rules.HeavyBall(), ng.rules.Plain()]
    iterates = [ng.optim.Descent(), ng.optim.EMA(), ng.optim.BEMA(), ng.optim.ScheduleFree()]
    assert all(part.entrywise for part in (*constraints, *rules, *iterates))
    for parts in itertools.product(constraints, rules, iterates):
        for cut in (2, 6):
            left, right = (slice(None), slice(0, cut)), (slice(None), slice(cut, None))
            halves = torch.cat([after(left, *parts), after(right, *parts)], 1)
            assert torch.equal(halves, after((slice(None),), *parts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_length_from_shards_is_that_of_the_whole_at_any_scale(dtype):
    """Parts of several sizes, one empty and one 0, two leaves at once, one of them 0."""
    heard = []

    class Others:
        """The other ranks: first they listen, then they tell."""

        def each(self, x):
            heard.append(x)
            return torch.stack(heard[:4] if len(heard) > 4 else [x] * 4)

    norm, generator = 3 * ng.norms.Frobenius(), torch.Generator().manual_seed(0)
    G = torch.randn(2, 7, 3, generator=generator, dtype=dtype)
    G[:, 5:] = G[1] = 0
    for scale in (2.0**-140, 2.0**-100, 1.0, 2.0**100):
        M = G * scale
        parts = [M[:, :2], M[:, 2:5], M[:, 5:], M[:, 7:]]
        heard.clear()
        direction = Euclidean(Others(), (0, 1, 2, 3), length=1 / 3)
        for part in parts:
            direction(part, {}, part)
        D = torch.cat([direction(part, {}, part) for part in parts], 1)
        torch.testing.assert_close(D, norm.dualize(M), rtol=1e-6, atol=0)


def test_two_ranks():
    on_ranks(2, sharded.two_ranks)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_data_parallel_and_fully_sharded(world):
    on_ranks(world, sharded.trajectories, timeout=900)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_every_part_on_any_placement(world):
    on_ranks(world, sharded.parts_and_placements, timeout=900)


@pytest.mark.slow
def test_tensor_parallel_and_two_dimensions():
    on_ranks(4, sharded.tensor_parallel, timeout=900)


@pytest.mark.slow
def test_checkpoints_of_n_ranks_continue_on_m(tmp_path):
    on_ranks(2, sharded.resume, str(tmp_path), 0, 3, False, timeout=600)
    on_ranks(4, sharded.resume, str(tmp_path), 3, 6, timeout=600)
    on_ranks(2, sharded.resume, str(tmp_path), 6, 9, timeout=600)
    on_ranks(1, sharded.resume, str(tmp_path), 9, sharded.FULL, timeout=600)
    on_ranks(2, sharded.resume, str(tmp_path), 9, sharded.FULL, timeout=600)


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_the_job_goes_on(tmp_path):
    on_ranks(2, sharded.resume, str(tmp_path), 0, 3, False, timeout=600)
    report = tmp_path / "report"
    assert until_all_end(2, sharded.killed, str(report), timeout=120) == [3, -9]
    assert "rank 0 of 2 lost the others in the middle of an optimizer step" in report.read_text()
    on_ranks(2, sharded.resume, str(tmp_path), 3, 6, timeout=600)


def test_the_page_on_scaling_is_what_the_optimizer_would_do():
    spec = importlib.util.spec_from_file_location("generate_scaling", DOCS / "generate_scaling.py")
    generate = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = generate  # dataclasses look their module up
    spec.loader.exec_module(generate)
    assert generate.TARGET.read_text(encoding="utf-8") == generate.page(), "run python docs/generate_scaling.py"


@pytest.mark.slow
def test_ranks_send_no_more_than_they_must(tmp_path):
    out = tmp_path / "out"
    command = ["normgeo", "bench", "distributed", "--width", "32", "--depth", "1", "--ranks", "4", "--out", str(out)]
    program = f"import sys; sys.argv = {command}\nif __name__ == '__main__':\n    from normgeo.cli import main; main()"
    (tmp_path / "bench.py").write_text(program, encoding="utf-8")
    subprocess.run([sys.executable, "-W", "ignore", str(tmp_path / "bench.py")], check=True, timeout=600)
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))["traffic"]
    assert {each["way"] for each in found} >= {"copies, ranks=", "fully_shard", "both", "replicas of shards"}
    for each in found:
        # Beside the matrices: flags of a byte per parameter and leaf, for NaN and for what moved.
        assert each["least"] <= each["sent"] <= each["least"] + 200, each
        assert each["sent"] <= each["most"]


@pytest.mark.slow
def test_accelerate_may_shard_the_model_after_the_optimizer_is_made():
    on_ranks(2, sharded.accelerated, timeout=600)


@pytest.mark.slow
def test_trainer_of_transformers_on_two_ranks(tmp_path):
    on_ranks(2, sharded.trained_by_transformers, str(tmp_path), timeout=900)
