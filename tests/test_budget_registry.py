"""Each optimizer of the registry saturates the budget that it states, and is what torch computes under its name."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import seeds
from hypothesis import given, settings

from normgeo.budgets import Setting, registry

RECIPES = {recipe.name: recipe for recipe in registry()}
SPEC = importlib.util.spec_from_file_location(
    "generate_budgets", Path(__file__).parents[1] / "docs" / "generate_budgets.py"
)
page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(page)


@pytest.mark.parametrize("name", RECIPES)
@settings(max_examples=5)
@given(seed=seeds)
def test_the_step_saturates_its_budget(name, seed):
    assert float(RECIPES[name].use(Setting.example(seed))) == pytest.approx(1, abs=1e-6)


def test_the_committed_page_is_current():
    assert page.TARGET.read_text(encoding="utf-8") == page.page(), "run python docs/generate_budgets.py"


def test_every_correction_is_in_the_errata():
    text = (page.TARGET.parent / "errata.md").read_text(encoding="utf-8")
    for recipe in registry():
        assert all(erratum in text for erratum in recipe.errata), recipe.name


def last_step(make, at, shape=(12,)):
    """-Δθ of the last of many steps of a torch optimizer on given gradients."""
    w = torch.nn.Parameter(at.weights.clone().reshape(shape))
    opt = make([w])
    for g in at.gradients:
        before = w.detach().clone()
        w.grad = g.clone().reshape(shape)
        opt.step()
    return (before - w.detach()).flatten()


AT = replace(Setting.example(3), gradients=Setting.example(3).gradients[:150])
TORCH = {
    "GD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "Momentum (heavy ball)": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),  # η(1-β)
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "AdaGrad": lambda p: torch.optim.Adagrad(p, lr=0.1, eps=AT.eps),
    "RMSProp": lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=AT.beta2, eps=AT.eps),
    "Adam, AdamW": lambda p: torch.optim.Adam(p, lr=0.1, betas=(AT.beta1, AT.beta2), eps=AT.eps),
    "Adam, validation-aware": lambda p: torch.optim.AdamW(
        p, lr=0.1, betas=(AT.beta1, AT.beta2), eps=AT.eps, weight_decay=0
    ),
    "signSGD": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.0), eps=0.0),
}


@pytest.mark.parametrize("name", TORCH)
def test_it_is_what_torch_computes(name):
    torch.testing.assert_close(RECIPES[name].step(AT, eta=0.1), last_step(TORCH[name], AT), rtol=1e-6, atol=1e-12)


def test_adafactor_is_torchs_up_to_its_clipping():
    """torch scales the step by the size of the weights and clips it; the direction is the ray's. Its averages decay as
    1 - t^-0.8, so it is asked after one step, where both have seen one gradient."""
    at = replace(AT, gradients=AT.gradients[:1])
    ours = RECIPES["Adafactor"].step(at, eta=0.1)
    theirs = last_step(lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.0), at, (3, 4))
    cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-9)


def test_lion_and_lars_are_their_recursions():
    at, m, first = AT, torch.zeros(12).double(), torch.zeros(12).double()
    for g in at.gradients:
        u = (at.beta1 * m + (1 - at.beta1) * g).sign()
        m = at.beta2 * m + (1 - at.beta2) * g
        first = at.beta1 * first + (1 - at.beta1) * g
    torch.testing.assert_close(RECIPES["Lion"].step(at), at.radius * u)
    step = RECIPES["LARS, LAMB"].step(at)
    torch.testing.assert_close(at.sizes(step), at.radius * at.sizes(at.weights))
    for a, b in zip(step.split(at.layers), first.split(at.layers), strict=True):
        torch.testing.assert_close(a / a.norm(), b / b.norm())


def test_shampoo_is_its_two_sided_product():
    left, right = AT.sides()
    step = RECIPES["Shampoo"].step(AT, eta=1.0).reshape(AT.shape)
    for side in (left, right):  # L^-1/4 four times is L⁻¹
        s, u = torch.linalg.eigh(side)
        root = (u * s**0.25) @ u.mT
        step = root @ step if len(side) == 3 else step @ root
    torch.testing.assert_close(step.flatten(), AT.g)


def test_newton_solves_a_quadratic_in_one_step():
    at = replace(AT, damping=0.0)
    optimum = torch.linspace(-1, 1, 12, dtype=torch.float64)
    g = at.curvature @ (at.weights - optimum)
    at = replace(at, gradients=g.unsqueeze(0))
    torch.testing.assert_close(at.weights - RECIPES["Newton, Gauss-Newton"].step(at, eta=1.0), optimum)


def test_polyak_and_cauchy_minimise_what_they_claim():
    """X0-22: what is printed as Polyak's step is the exact line search of Cauchy."""
    h, w = AT.curvature, AT.weights
    g, loss = h @ w, 0.5 * w @ h @ w
    at = replace(AT, gradients=g.unsqueeze(0), excess=float(loss))
    alpha = float(RECIPES["Polyak"].eta(at))
    cauchy = float(g @ g / (g @ h @ g))

    def after(a):
        return float(0.5 * (w - a * g) @ h @ (w - a * g))

    def bound(a):
        return -2 * a * float(loss) + a**2 * float(g @ g)

    for change in (0.99, 1.01):
        assert after(cauchy) < after(change * cauchy)
        assert bound(alpha) < bound(change * alpha)
    assert abs(alpha - cauchy) > 0.1 * cauchy


def test_the_printed_forms_miss_their_budgets():
    at = AT
    h = at.curvature + at.damping * torch.eye(12)
    newton = RECIPES["Newton, Gauss-Newton"]
    printed = float((at.B / torch.linalg.inv(h).trace()).sqrt() / at.g.norm())  # X0-8
    assert abs(float(newton.cost(at, printed * newton.ray(at))) / at.B - 1) > 0.05
    colored = RECIPES["Colored GD"]
    printed = float((at.B / torch.linalg.inv(at.curvature).trace()).sqrt())  # X0-9
    assert abs(float(colored.cost(at, printed * colored.ray(at))) / at.B - 1) > 0.05
    left, right = at.sides()
    shampoo = RECIPES["Shampoo"]
    printed = float((at.B / (torch.linalg.inv(left).trace() * torch.linalg.inv(right).trace())).sqrt())  # X0-11
    assert abs(float(shampoo.cost(at, printed * shampoo.ray(at))) / at.B - 1) > 0.05
