"""A norm of your own: three functions, checked by the law-suite, and the network trains in it."""

from dataclasses import dataclass

import torch
from torch import Tensor

import normgeo as ng
from normgeo.norms import Norm


@dataclass(frozen=True)
class Frobenius(Norm):
    """‖W‖ = √Σ wᵢⱼ². Self-dual; its steepest descent is normalised gradient descent, matrix by matrix."""

    ndim = 2

    def norm(self, w: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(w)

    def dual_norm(self, g: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(g)

    def dualize(self, g: Tensor) -> Tensor:
        x = ng.linalg.shift(g, -ng.linalg.exponent(g, 2))  # a power of two: tiny and huge gradients are safe
        return x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(0.25)

    def project(self, w: Tensor) -> Tensor:
        return w / self.norm(w)[..., None, None].clamp_min(1)


ng.testing.check_norm(Frobenius(), shape=(5, 3))

torch.manual_seed(0)
model = ng.nn.MLP(16, 32, 4)
plan = ng.compile(model, norms={"*": Frobenius()})
print(plan)
optimizer = plan.optimizer(model, lr=0.5, step=ng.steps.Linear(total=200))
x, y = torch.randn(64, 16), torch.randint(4, (64,))
for _ in range(200):
    loss = torch.nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
assert loss < 0.5
