"""A network for any set of shapes, so that an optimizer can be asked about each of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from normgeo.geometry import Graph, Node, register
from normgeo.norms import Absolute, Conv, Linf, Norm, RMSToRMS

__all__ = ["SHAPES", "Probe", "probe_loss"]

SHAPES = {"0-D": (), "1-D": (4,), "2-D": (4, 3), "3-D": (3, 2, 3), "4-D": (3, 2, 3, 2), "5-D": (2, 3, 2, 2, 1)}


class Probe(nn.Module):
    """(mean of C ⊙ W) for each weight W, C fixed numbers of full rank: `probe_loss` wants each of them to be 1."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterDict()
        for name, shape in shapes.items():
            self.weights[name] = nn.Parameter(torch.randn(shape, generator=random).to(dtype) / 2)
            self.register_buffer(f"pattern {name}", torch.randn(shape, generator=random).to(dtype))

    def forward(self) -> Tensor:
        return torch.stack([(w * self.get_buffer(f"pattern {n}")).mean() for n, w in self.weights.items()])


@register(Probe)
def _(module: Probe, graph: Graph, *inputs: Node) -> Node:
    outputs = []
    for weight in module.weights.values():
        role, norm = _role(weight)
        node = graph.op(role, *inputs)
        graph.use(weight, node, role=role, norm=norm)
        outputs.append(node)
    return graph.op("stack", *outputs)


def _role(weight: Tensor) -> tuple[str, Norm]:
    if weight.ndim > 2:
        return "convolution", Conv(weight.ndim - 2)
    norms: tuple[tuple[str, Norm], ...] = (("scalar", Absolute()), ("gain", Linf()), ("linear", RMSToRMS()))
    return norms[weight.ndim]


def probe_loss(model: nn.Module) -> Tensor:
    """½·Σ |mean(C ⊙ W) - 1|², in float32 for weights of 16 bits, real for complex ones."""
    distance = (model() - 1).abs()
    total: Tensor = distance.to(torch.promote_types(distance.dtype, torch.float32)).square().sum()
    return total / 2
