"""A module of your own: say how its output depends on its input and weights, and it composes with everything."""

import torch
from torch import Tensor, nn

import normgeo as ng
from normgeo.geometry import Graph, Node, bound


class TwoPaths(nn.Module):
    """x ↦ A x + ½ B tanh(A x): one weight feeds two paths, so the graph is no tree."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        norm = ng.norms.RMSToRMS()
        self.a, self.b = nn.Parameter(norm.init((dim, dim))), nn.Parameter(norm.init((dim, dim)))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.a.mT
        return y + 0.5 * (y.tanh() @ self.b.mT)


@ng.geometry.register(TwoPaths)
def _(module: TwoPaths, graph: Graph, x: Node) -> Node:
    y = graph.op("A", x)
    graph.use(module.a, y, role="linear", norm=ng.norms.RMSToRMS(), input_norm=x.size)
    t = graph.op("tanh", y, size=bound(1.0))
    z = graph.op("B", t)
    graph.use(module.b, z, role="linear", norm=ng.norms.RMSToRMS(), input_norm=t.size)
    return graph.op("add", y, z, slots=(bound(1.0), bound(0.5)))


torch.manual_seed(0)
model = (ng.nn.Linear(8, 3) @ TwoPaths(8)).double()
x = ng.norms.RMS().init((32, 8), dtype=torch.float64)
plan = ng.compile(model, example_inputs=(x,))
print(plan)

# The promise, searched for its worst case: no change of modular norm 1 changes the output by more than 1.
found = ng.testing.check_geometry(model, (x,), plan=plan)
print(f"largest change found: {found:.3f} of 1")
assert 0.2 < found <= 1
