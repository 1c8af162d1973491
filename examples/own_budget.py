"""A budget of your own: operators that commute with shifts, for filters driven by a stationary signal.

The task is to identify the 64 taps of a filter from its noisy output, when some frequencies of the input are a thousand
times as strong as others (an echo in a voice, a channel in a radio). All taps see the same variance, so prices on taps,
Adam's, tell nothing. What is known is that shifted inputs are as likely: the moment commutes with shifts, and so may the
operator, which leaves one number per frequency to price and to learn. The prices are S^{3/2}, S the power spectrum of 64
inputs: with a few samples in a batch the moment of the gradients is about S, and the best operator then S^{-1/2}.

`python examples/own_budget.py --seeds 5` compares all contenders at their best learning rates.
"""

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

import normgeo as ng
from normgeo.budgets import DataMetric, DiagonalMoment, Ellipsoid, Frobenius, FullMoment, Spectral
from normgeo.optim import Direction, Operate

TAPS, BATCH = 64, 4


@dataclass(frozen=True, eq=False)
class ShiftInvariant(ng.Budget):
    """{Q ≽ 0 : Q commutes with shifts, Σ c_f·q_f² ≤ 1}, q_f the gain of Q at frequency f;  q_f* ∝ max(m_f, 0)/c_f."""

    costs: Tensor

    def gains(self, q: Tensor) -> Tensor:  # (*b, d, d) -> (*b, d): the diagonal of F Q F⁻¹
        return torch.fft.ifft(torch.fft.fft(q, dim=-2), dim=-1).diagonal(dim1=-2, dim2=-1).real

    def operator(self, gains: Tensor) -> Tensor:  # (*b, d) -> (*b, d, d)
        shift = torch.arange(gains.shape[-1])
        return torch.fft.ifft(gains).real[..., (shift[:, None] - shift) % len(shift)]

    def maximizer(self, m: Tensor) -> Tensor:
        m_f = self.gains(ng.budgets.checked(m, self)).clamp_min(0)
        size = (m_f.square() / self.costs).sum(-1, keepdim=True).sqrt()
        return self.operator(m_f / self.costs / torch.where(size > 0, size, 1)).to(m.dtype)

    def gauge(self, q: Tensor) -> Tensor:
        gains, noise = self.gains(q), 1e-6 * q.abs().amax((-2, -1))
        outside = ((q - self.operator(gains)).abs().amax((-2, -1)) > noise) | (gains.amin(-1) < -noise)
        return torch.where(outside, torch.inf, (self.costs * gains.square()).sum(-1).sqrt())


POWER = 1 / (1 + (torch.fft.fftfreq(TAPS, dtype=torch.float64) / 0.016) ** 2)  # of the input, falling by 30 dB


def inputs(n: int, draw: torch.Generator) -> Tensor:  # (n, TAPS), stationary
    white = torch.randn(n, TAPS, generator=draw, dtype=torch.float64)
    return torch.fft.ifft(torch.fft.fft(white) * POWER.sqrt()).real


def ours(x: Tensor) -> Direction:
    spectrum = torch.fft.fft(x).abs().square().mean(0) / TAPS
    return Operate(ShiftInvariant(spectrum**1.5), FullMoment(0.95), every=5)


def ellipsoid(x: Tensor) -> Direction:
    s, u = torch.linalg.eigh(x.T @ x / len(x))
    return Operate(Ellipsoid((u * (s + 1e-3 * s[-1]) ** 1.5) @ u.T), FullMoment(0.95), every=5)


CONTENDERS = {
    "ShiftInvariant": ours,
    "Ellipsoid, same prices without the shifts": ellipsoid,
    "DataMetric(1.5), full (AdaGrad)": lambda x: Operate(DataMetric(1.5, damping=1e-3), FullMoment(0.95), every=5),
    "DataMetric(1.5), diagonal (RMSProp)": lambda x: Operate(DataMetric(1.5), DiagonalMoment(0.95), every=5),
    "Spectral(8, 1)": lambda x: Operate(Spectral(trace=8.0, cap=1.0), FullMoment(0.95), every=5),
    "Frobenius": lambda x: Operate(Frobenius(), FullMoment(0.95), every=5),
    "no budget": lambda x: None,
}


def error(contender: str, lr: float, seed: int, steps: int = 200) -> float:
    """‖w - w*‖²/‖w*‖² after so many steps."""
    draw = torch.Generator().manual_seed(seed)
    target = torch.randn(TAPS, generator=draw, dtype=torch.float64)
    direction = CONTENDERS[contender](inputs(64, draw))
    model = ng.nn.Linear(TAPS, 1, zero=True).double()
    opt = ng.optimizer(model, direction=direction, lr=lr, step=ng.steps.Linear(total=steps))
    for _ in range(steps):
        x = inputs(BATCH, draw)
        y = x @ target + 0.1 * torch.randn(BATCH, generator=draw, dtype=torch.float64)
        opt.zero_grad()
        (model(x).squeeze(-1) - y).square().mean().backward()
        opt.step()
    return float((model.weight.detach() - target).square().sum() / target.square().sum())


def main(seeds: int) -> None:
    for contender in CONTENDERS:
        runs = {lr: torch.tensor([error(contender, lr, seed) for seed in range(seeds)]) for lr in (1.0, 2.0, 4.0, 8.0)}
        lr, errors = min(runs.items(), key=lambda run: float(run[1].mean()))
        print(
            f"{contender:42s} lr {lr:<4g} error {errors.mean():.4f} ({errors.min():.4f} to {errors.max():.4f})",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=0, help="compare all contenders over so many seeds")
    seeds = parser.parse_known_args()[0].seeds
    ng.testing.check_budget(ShiftInvariant(POWER**1.5), dim=TAPS)
    if seeds:
        main(seeds)
    else:
        found, plain = error("ShiftInvariant", 2.0, 0), error("DataMetric(1.5), diagonal (RMSProp)", 2.0, 0)
        print(f"error {found:.4f} with the budget, {plain:.4f} with RMSProp's")
        assert found < plain / 2
