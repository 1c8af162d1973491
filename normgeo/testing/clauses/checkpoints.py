"""State that is saved, copied, sent and resumed, to the bit."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from typing import Any

import torch
from torch import nn

from normgeo.testing.clauses.clause import clause
from normgeo.testing.report import NotAsked
from normgeo.testing.subject import Subject, moved, quietly, same, same_state, state_of, weights

Pair = tuple[nn.Module, torch.optim.Optimizer]


def _continues(s: Subject, one: Pair, two: Pair) -> None:
    """Both train on alike."""
    for model, opt in (one, two):
        s.train(opt, model, s.steps)
    assert same(weights(one[0]), weights(two[0])), "training continues differently"
    assert same_state(state_of(one[1]), state_of(two[1])), "its state differs later"


def _through_disk(content: Any) -> Any:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _resumed(s: Subject, model: nn.Module, opt: torch.optim.Optimizer) -> Pair:
    saved = _through_disk({"model": model.state_dict(), "opt": opt.state_dict()})
    twin, other = s.fresh(model)
    twin.load_state_dict(saved["model"])
    other.load_state_dict(saved["opt"])
    return twin, other


@clause("state_dict resumes to the bit, weights_only=True", "quick")
def _(s: Subject) -> None:
    model, opt = s.fresh()
    s.train(opt, model, s.steps)
    _continues(s, (model, opt), _resumed(s, model, opt))


@clause("state_dict before the first step resumes")
def _(s: Subject) -> None:
    model, opt = s.fresh()
    _continues(s, (model, opt), _resumed(s, model, opt))


@clause("state_dict resumes with weights that never had a gradient")
def _(s: Subject) -> None:
    model, opt = s.fresh()
    if len(weights(model)) < 2:
        raise NotAsked("it takes two weights")
    next(model.parameters()).requires_grad_(False)
    s.train(opt, model, s.steps)
    _continues(s, (model, opt), _resumed(s, model, opt))


@clause("state_dict hooks run")
def _(s: Subject) -> None:
    _, opt = s.fresh()
    calls: list[str] = []
    opt.register_state_dict_pre_hook(lambda *_: calls.append("saving"))
    opt.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    opt.register_load_state_dict_pre_hook(lambda *_: calls.append("loading"))
    opt.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    opt.load_state_dict(opt.state_dict())
    assert calls == ["saving", "saved", "loading", "loaded"], f"hooks ran as {calls}"


@clause("deepcopy continues to the bit, on its own", "quick")
def _(s: Subject) -> None:
    model, opt = s.fresh()
    s.train(opt, model, s.steps)
    twin, other = copy.deepcopy((model, opt))
    before = weights(twin)
    s.train(opt, model)
    assert same(before, weights(twin)), "the copy shares its weights"
    twin_again, other_again = copy.deepcopy((twin, other))
    _continues(s, (twin, other), (twin_again, other_again))
    s.train(opt, model, s.steps - 1)
    assert same(weights(model), weights(twin)), "the copy trains differently"


@clause("pickle continues to the bit", "quick")
def _(s: Subject) -> None:
    model, opt = s.fresh()
    s.train(opt, model, s.steps)
    _continues(s, (model, opt), pickle.loads(pickle.dumps((model, opt))))


def _distributed(flat: bool) -> None:
    kind = "flattened distributed checkpoint" if flat else "distributed checkpoint"

    @clause(f"{kind}: its hidden step moves nothing, and it resumes")
    def _(s: Subject) -> None:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint import state_dict as sd

        if s.closure != "none":
            raise NotAsked("its steps take a closure; torch's hidden step has none")
        options = sd.StateDictOptions(flatten_optimizer_state_dict=flat)
        model, opt = s.fresh()
        before = weights(model)
        sd.get_optimizer_state_dict(model, opt, options=options)
        assert same(before, weights(model)), f"the hidden step moves {moved(before, weights(model))[0]}"
        s.train(opt, model, s.steps)
        twin, other = s.fresh(model)
        with tempfile.TemporaryDirectory() as folder, quietly():  # it warns that there is one process
            dcp.save(
                {"opt": sd.get_optimizer_state_dict(model, opt, options=options)}, checkpoint_id=folder, no_dist=True
            )
            read = {"opt": sd.get_optimizer_state_dict(twin, other, options=options)}
            dcp.load(read, checkpoint_id=folder, no_dist=True)
        sd.set_optimizer_state_dict(twin, other, read["opt"], options=options)
        _continues(s, (model, opt), (twin, other))


_distributed(False)
_distributed(True)
