"""Mass, sensitivity, sharpness and the graph: how a change of each weight reaches the output of the network."""

import normgeo.geometry.operations  # noqa: F401 - fills the registry
from normgeo.geometry.bounds import Linearized, Measure, linearization
from normgeo.geometry.curvature import LINEAR, PIECEWISE_LINEAR, Curvature, entrywise
from normgeo.geometry.declare import GeometryError, declare, register, trace, unwrapped
from normgeo.geometry.differentiable import differentiable
from normgeo.geometry.factor import Factor, assumed, bound, typical
from normgeo.geometry.graph import Graph, Node, Use
from normgeo.geometry.inputs import Input
from normgeo.geometry.layout import Layout
from normgeo.geometry.leaf import Leaf, View
from normgeo.geometry.mass import mass, tare
from normgeo.geometry.measure import Measurement, measure, norming
from normgeo.geometry.reading import Operation
from normgeo.geometry.registry import operation
from normgeo.geometry.sharpness import Sharpness, Term, curvature, sharpness

__all__ = [
    "LINEAR",
    "PIECEWISE_LINEAR",
    "Curvature",
    "Factor",
    "GeometryError",
    "Graph",
    "Input",
    "Layout",
    "Leaf",
    "Linearized",
    "Measure",
    "Measurement",
    "Node",
    "Operation",
    "Sharpness",
    "Term",
    "Use",
    "View",
    "assumed",
    "bound",
    "curvature",
    "declare",
    "differentiable",
    "entrywise",
    "linearization",
    "mass",
    "measure",
    "norming",
    "operation",
    "register",
    "sharpness",
    "tare",
    "trace",
    "typical",
    "unwrapped",
]
