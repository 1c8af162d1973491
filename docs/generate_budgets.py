"""Writes docs/budgets.md: `python docs/generate_budgets.py`. Its table is the registry of optimizers as budgets."""

from pathlib import Path

from normgeo.budgets import registry

TARGET = Path(__file__).with_name("budgets.md")


def table(head: list[str], rows: list[list[str]]) -> str:
    # A bar inside a cell would end it.
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *cells])


def page() -> str:
    rows = registry()
    what = [[r.name, r.moment, r.budget, r.restriction, ", ".join(r.errata)] for r in rows]
    how = [[r.name, r.closed_form, r.hyperparameters, r.meaning] for r in rows]
    return TEXT.format(
        what=table(["optimizer", "moment", "budget", "restricted to", "corrects"], what),
        how=table(["optimizer", "closed form", "hyper-parameters", "in one line"], how),
    )


TEXT = """# Budgets

Made by `python docs/generate_budgets.py`.

An optimizer turns a gradient into a change of the weights, θ̇ = Q g. A **budget** is a convex set of operators Q ≽ 0 that
are allowed, a **moment** M = E[g gᵀ] says what gradients are like, and ⟨Q, M⟩ is the rate at which the loss falls. The best
optimizer of a budget is the one that learns fastest from the moment: `budget.maximizer(M)`, with power `budget.support(M)`.

```python
import torch, normgeo as ng

b = ng.budgets.Spectral(trace=1.0, cap=0.4)
g = torch.randn(100, 8)
q = b.maximizer(g.T @ g / 100)  # water-filling: 0.4 for the two largest directions, 0.2 for the third
```

| budget | set | best operator |
|---|---|---|
| `Frobenius(B)` | ‖Q‖²_F ≤ B | in proportion to M₊ |
| `Spectral(trace, cap)` | tr Q ≤ τ, Q ≼ λI | λ on the largest eigenvalues until τ is used up |
| `Diagonal(costs, B)` | Σ cⱼqⱼ² ≤ B, diagonal | Mⱼⱼ/cⱼ |
| `Ellipsoid(W, B)` | tr(QWQ) ≤ B | WQ + QW = c·M |
| `DataMetric(power, B)` | the ellipsoid of W = Mᵖ | M^(1-p): 3/2 RMSProp, Shampoo; 2 natural gradient |
| `LayerWise(sizes, dims, B)` | one scalar per layer, Σ ‖θ_ℓ‖²‖Q_ℓ‖² ≤ B | S_ℓ/(d_ℓ‖θ_ℓ‖²) |
| `Step(norm, radius)` | ‖θ̇‖ ≤ τ | τ·dualize(g); as a price: `Penalty` |
| `c * b`, `a & b`, `a + b` | scaled, intersection, sum | |
| `Product(b)`, `Blocks(b)`, `OnDiagonal(b)` | leaf by leaf, blocks that share, diagonals | |

M may be indefinite (cross moments with validation gradients are): what is negative gets nothing, because Q ≽ 0.

## Moments

| | kept | eigendecompositions |
|---|---|---|
| `FullMoment` | d² | d × d |
| `BlockMoment` | d_row² per row | rows of them |
| `KroneckerMoment` | a² + b² for a leaf (a, b) | a × a and b × b |
| `SketchMoment(rank)` | rank·d | rank × rank |
| `DiagonalMoment` | d | none |

`moment.estimate(G)` is the mean over a batch, `moment.observe(G, state)` an unbiased exponential average; with a second
argument both are cross moments. The best operator of an invariant budget (Frobenius, Spectral) is diagonal in the moment's
basis, so with any of these moments it is the best of ALL operators for that moment, and no full matrix is formed.

## In training

```python
model = ng.nn.MLP(16, 32, 4)
plan = ng.compile(model, budgets={{"2": ng.budgets.Spectral(trace=4.0, cap=1.0)}})
opt = plan.optimizer(model, lr=0.1)
```

`ng.optim.Operate(budget, moment, every=10)` says more: which moment, and how many steps a decomposition lasts. By default
the direction is brought to norm 1 in the leaf's norm, so lr means what it always means and only the shape of the budget
matters; `size="budget"` leaves it as it is.

### On validation data

`source="cross"` takes the moment from pairs of a training and a validation gradient, E[g vᵀ]: then ⟨Q, M⟩ is how fast the
validation loss falls while the steps follow training gradients, and what the two disagree about is not learned.
`"validation"` takes E[v vᵀ]. `opt.validation()` makes v, before the first step and then as often as one likes.

```python
cross = ng.optim.Operate(ng.budgets.Frobenius(), source="cross")
opt = ng.compile(model, budgets={{"*": cross}}).optimizer(model, lr=0.1)
with opt.validation():
    model(torch.randn(8, 16)).square().mean().backward()
model(torch.randn(8, 16)).square().mean().backward()
opt.step()
```

Where twelve of sixteen inputs carry the label in the training set alone, 100 steps of an MLP come to a test error of 1.81,
1.44, 0.90 (Frobenius, Spectral, Diagonal) for "cross" and 3.86, 1.88, 3.47 for "train" (`tests/test_validation.py`; "cross"
saw a validation batch in every step). `Filter(..., source="cross")` is the same for filters, and so for the best momentum.

Training with a fixed Q ends at the shortest displacement in the size that Q defines, `ng.budgets.endpoint(Q, J, residual)`
for the Jacobian J of the outputs, so a budget chooses among interpolants too; `tangent_kernel` is the kernel J Q Jᵀ.

## With memory

A filter θ̇[n] = Σ_k Q[k] g[n-k] has a power too, ⟨Q, R⟩ = Σ_k tr(Q[k] R[k]) with the lag moments R[k] = E[g[n] g[n-k]ᵀ], and
so there are budgets on filters, with the same three functions and laws. Lags are the first axis: (K, d) for filters of
coordinates, (K, d, d) for symmetric matrices. Q[k] ≽ 0 is not asked.

| budget | set | best filter |
|---|---|---|
| `DynamicFrobenius(B)` | Σ_k ‖Q[k]‖²_F ≤ B | in proportion to R |
| `DynamicDiagonal(costs, B)` | Σⱼ cⱼ Σ_k qⱼ[k]² ≤ B | Rⱼⱼ[k]/cⱼ |
| `DynamicEllipsoid(W, B)` | Σ_k tr(Q[k] W Q[k]) ≤ B | W Q[k] + Q[k] W = c·R[k] |
| `DynamicDataMetric(power, B)` | `DynamicDiagonal` with costs vᵖ, v = R[0] | v^(1-p) times the autocorrelation |
| `PerFrequency(b)` | Re Q(ω) in the static budget b, at every ω | b's best for the spectral density, made causal |
| `OnePole(b)`, `Nesterov(b)` | momentum: filters η·βᵏ·P within b | β from the lags, then η so that b is used up |

`LagMoment(lags, moment)` measures R from the last gradients, with a bias correction for each lag.
`ng.budgets.transfer` has the transfer functions of heavy ball, averages, Nesterov, quasi-hyperbolic, Lion and two averages.

```python
one_pole = ng.budgets.OnePole(ng.budgets.DynamicDiagonal())
plan = ng.compile(model, budgets={{"2": ng.budgets.DynamicDiagonal(), "4": one_pole}})
opt = plan.optimizer(model, lr=0.1)
```

A filter is a memory of its own: these leaves have no momentum in front unless `plan.groups({{"2": dict(rule=...)}})` gives
them one. `ng.optim.Filter(budget, lags=8, each="leaf")` says more. It keeps as many gradients as lags;
`rules.TunedMomentum` is what to take where one pole is enough and memory is dear.

## One's own

Give one of `maximizer`, `gauge`, `project`, `constraints`; the others are found numerically to a relative 1e-6, and a
`NumericalWarning` says once what that takes. `ng.testing.check_budget(MyBudget())` names the law that fails.

| given | gauge | maximizer |
|---|---|---|
| constraints | bisection | barrier method with Newton steps |
| projection | bisection | the projection of α·M for a large α |
| gauge | | BFGS over Q = LLᵀ |
| maximizer | BFGS on the polar | |

`examples/own_budget.py` is a worked example: operators that commute with shifts, priced by the power spectrum of a few
inputs, for a filter of 64 taps that is driven by a coloured signal. ‖w - w*‖²/‖w*‖² after 200 steps of 4 samples, each
contender at the best of the learning rates 1, 2, 4, 8, mean and range over 5 seeds
(`python examples/own_budget.py --seeds 5`):

| budget | lr | error |
|---|---|---|
| **ShiftInvariant, the new one** | 2 | **0.021** (0.016 to 0.028) |
| DataMetric(1.5), full moment (AdaGrad) | 4 | 0.032 (0.025 to 0.044) |
| Ellipsoid with the same prices, without the shifts | 8 | 0.116 (0.067 to 0.187) |
| none, the dual of the leaf's norm | 4 | 0.118 (0.104 to 0.146) |
| DataMetric(1.5), diagonal moment (RMSProp) | 4 | 0.123 (0.068 to 0.162) |
| Spectral(8, 1) | 4 | 0.434 (0.343 to 0.515) |
| Frobenius | 4 | 0.564 (0.468 to 0.679) |

The last two put power where the gradient has most of it, which is the contrary of what a badly conditioned problem needs.

## Known optimizers as budgets

Each is the saturated point of its budget in a family of operators (`restricted to`), not always the budget's best operator:
Adam's 1/√v, for one, is a ray in a set whose best point grows with √v. The last column names printed mistakes that the row
corrects ([errata](errata.md)).

{what}

{how}
"""

if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
