"""One real forward, recorded: every call of a torch function on tensors, in order, and the module that made it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from normgeo.geometry.declare import GeometryError, declare
from normgeo.geometry.outputs import Wanted, choose, fields
from normgeo.geometry.registry import body, canonical_name, rule_of

__all__ = ["Call", "Recording", "Span", "Value", "record"]

VALUES = {"__bool__", "__int__", "__index__", "item", "tolist"}
"""what a forward calls to decide by the value of a tensor"""
IN_PLACE = {"iadd", "isub", "imul", "idiv", "itruediv", "ifloordiv", "ipow", "imod", "iand", "ior", "ixor"}


@dataclass(eq=False)
class Value:
    """A tensor between two operations. A tensor that is changed in place becomes another value; the first keeps what was
    there before."""

    index: int
    tensor: Tensor = field(repr=False)
    kind: str = "constant"
    """input, parameter, result or constant"""
    call: Call | None = field(default=None, repr=False)
    """what gave it"""

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape


@dataclass(eq=False)
class Call:
    """A function at work, with values in the places of tensors."""

    index: int
    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    path: str
    """the module that called it"""
    outputs: tuple[Value, ...] = ()

    @property
    def inputs(self) -> list[Value]:
        return [x for x in tree_flatten((self.args, self.kwargs))[0] if isinstance(x, Value)]


@dataclass(eq=False)
class Span:
    """The calls first ... last-1 that one run of a module made, and what went in and out."""

    module: nn.Module
    path: str
    args: Any
    first: int
    last: int = 0
    outputs: Any = None


@dataclass(eq=False)
class Recording:
    """What a forward did: its calls in order, the runs of modules inside, and the value that counts as the output."""

    calls: list[Call]
    spans: list[Span]
    inputs: list[Value]
    parameters: list[Value]
    output: Value
    fields: dict[str, Value]
    """everything that the model gave, by name or position"""
    branches: tuple[str, ...] = ()
    """modules that asked for the value of a tensor: other inputs may take another way through them"""
    consumers: dict[int, list[Call]] = field(default_factory=dict)
    """the calls that take a value, by its index"""

    def __post_init__(self) -> None:
        for call in self.calls:
            for value in {x.index: x for x in call.inputs}.values():
                self.consumers.setdefault(value.index, []).append(call)


def record(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    output: Wanted = None,
) -> Recording:
    """Run the model once, in evaluation mode, and leave no trace of it: modes, buffers, random numbers, use_cache."""
    kwargs = dict(kwargs or {})
    recorder = Recorder(model, (args, kwargs))
    with torch.no_grad(), _untouched(model), recorder.watching(), torch.compiler.set_stance("force_eager"):
        try:
            with recorder:
                given = model(*args, **kwargs)
        except GeometryError:
            raise
        except Exception as error:
            tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
            shapes = ", ".join(str(tuple(x.shape)) for x in tensors) or "no tensors"
            raise ValueError(f"the model rejects example_inputs of shape {shapes}{recorder.failure(error)}") from error
        with recorder:
            chosen = choose(given, output)
    return recorder.finish(chosen, fields(given))


class Recorder(TorchFunctionMode):
    """Notes each call of a torch function while it is active."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model = model
        self.calls: list[Call] = []
        self.spans: list[Span] = []
        self.open: list[Span] = []
        self.branches: dict[str, None] = {}
        self.values: dict[int, Value] = {}
        self.count = 0
        self.parameters = [self._new(parameter, "parameter") for parameter in model.parameters()]
        self.inputs = [self._new(x, "input") for x in tree_flatten(inputs)[0] if isinstance(x, Tensor)]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if rule_of(func, canonical_name(func)) is None and (inside := body(func)):
            with self:
                return inside(*args, **kwargs)
        seen_args, seen_kwargs = tree_map(self._seen, (tuple(args), kwargs))
        before = args[0].clone() if _writes(func, args, kwargs) else None
        out = func(*args, **kwargs)
        if getattr(func, "__name__", "") in VALUES:
            self.branches[self.open[-1].path if self.open else ""] = None
        self._note(func, seen_args, seen_kwargs, out)
        if before is not None and seen_args[0].kind != "parameter":  # a parameter stays the one that it is
            seen_args[0].tensor = before
        return out

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks that tell which module is running."""
        with ExitStack() as hooks:
            for name, module in self.model.named_modules():
                enter, leave = self._hooks(name)
                hooks.enter_context(module.register_forward_pre_hook(enter, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(leave, with_kwargs=True))
            yield

    def finish(self, output: Tensor, given: Mapping[str, Tensor]) -> Recording:
        seen = {name: self._seen(x) for name, x in given.items()}
        found = (self.calls, self.spans, self.inputs, self.parameters, self._seen(output), seen)
        return Recording(*found, tuple(self.branches))

    def failure(self, error: Exception) -> str:
        """Where and why the forward stopped, for messages."""
        at = self.open[-1] if self.open else None
        where = f", in {at.path} ({type(at.module).__name__})" if at and at.path else ""
        if any(value.tensor.is_meta for value in self.parameters) and "meta" in str(error):
            why = "its way depends on values of tensors, and on the meta device they have none; compile it on the CPU"
            return f"{where}: {why} ({error})"
        return f"{where}: {error}"

    def _hooks(self, path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            # kwargs by name would need the signature of declarations, which take tensors by position.
            given = (*args, *kwargs.values())
            self.open.append(Span(module, path, tree_map(self._seen, given), len(self.calls)))

        def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            span = self.open.pop()
            unseen = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor) and id(x) not in self.values]
            if unseen and declare.dispatch(type(module)) is declare.dispatch(object):
                own = tuple(self._seen(p) for p in module.parameters(recurse=False))
                self.open.append(span)
                self._note(type(module).forward, (*span.args, *own), {}, unseen, type(module).__name__)
                self.open.pop()
            span.last, span.outputs = len(self.calls), tree_map(self._seen, out)
            self.spans.append(span)

        return enter, leave

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any, name: str | None = None) -> None:
        name = name or canonical_name(func)
        tensors = [x for x in tree_flatten(args[0].tensor if name == "setitem" else out)[0] if isinstance(x, Tensor)]
        if not tensors:
            return
        self._add(func, name, args, kwargs, tensors)
        spelled = getattr(func, "__name__", "")
        if name == "setitem" or (spelled.endswith("_") and not spelled.startswith("__")):
            for base in [x._base for x in tensors if x._base is not None and id(x._base) in self.values]:
                both = (self._seen(base), *(self._seen(x) for x in tensors))
                self._add(func, "setitem", both, {}, [base])

    def _add(self, func: Any, name: str, args: Any, kwargs: Any, tensors: Iterable[Tensor]) -> None:
        call = Call(len(self.calls), func, name, args, kwargs, self.open[-1].path if self.open else "")
        call.outputs = tuple(self._new(x, "result", call) for x in tensors)
        self.calls.append(call)

    def _new(self, tensor: Tensor, kind: str, call: Call | None = None) -> Value:
        value = Value(self.count, tensor, kind, call)
        self.count += 1
        # The value keeps the tensor alive, so that no other tensor can have its id.
        self.values[id(tensor)] = value
        return value

    def _seen(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return self.values.get(id(x)) or self._new(x, "constant")


def _writes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call changes its first argument in place."""
    name = getattr(func, "__name__", "")
    own = name.endswith("_") and not name.startswith("_")
    named = name == "__setitem__" or (name.startswith("__i") and canonical_name(func) in IN_PLACE)
    return bool(args) and isinstance(args[0], Tensor) and (own or named or kwargs.get("inplace") is True)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without caches; afterwards everything is as it was."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    caching = [config for config in configs if getattr(config, "use_cache", False) is True]
    try:
        with torch.random.fork_rng():
            model.eval()
            for config in caching:
                config.use_cache = False
            yield
    finally:
        for config in caching:
            config.use_cache = True
        for module, training in modes.items():
            module.training = training
        for buffer, before in buffers:
            buffer.copy_(before)
