"""Mass, sensitivity and the graph: how a change of each weight reaches the output of the network."""

from normgeo.geometry.declare import GeometryError, declare, register, trace, unwrapped
from normgeo.geometry.factor import Factor, assumed, bound, typical
from normgeo.geometry.graph import Graph, Node, Use
from normgeo.geometry.layout import Layout
from normgeo.geometry.leaf import Leaf, View
from normgeo.geometry.mass import mass, tare
from normgeo.geometry.reading import Operation, operation

__all__ = [
    "Factor",
    "GeometryError",
    "Graph",
    "Layout",
    "Leaf",
    "Node",
    "Operation",
    "Use",
    "View",
    "assumed",
    "bound",
    "declare",
    "mass",
    "operation",
    "register",
    "tare",
    "trace",
    "typical",
    "unwrapped",
]
