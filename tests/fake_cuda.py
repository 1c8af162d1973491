"""A CUDA device without memory and without values, for machines that have none: tensors of `FakeTensorMode` on cuda:0.

Operations check devices, dtypes and shapes as on a device. What would make the host wait is refused: reading a value, a
decomposition (its check reads one), a copy to the host, a copy from memory of the host that is not pinned; and so are
tensors of the host in operations on the device, numbers as tensors included. Tensors on CPU are real. It cannot run
backward()."""

import ctypes
import platform
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from normgeo.linalg import symmetric

__all__ = ["CUDA", "HostWaitsError", "fake_cuda", "fill", "for_fake_cuda", "to_cuda"]

CUDA = torch.device("cuda:0")
for_fake_cuda = pytest.mark.skipif(
    platform.system() != "Linux" or torch.cuda.is_available(),
    reason="for machines without CUDA, and torch's library for Linux, in which the device guard is found by its name",
)
aten = torch.ops.aten
VIEWS = {
    aten.detach, aten.alias, aten.view, aten._unsafe_view, aten.reshape, aten.expand, aten.permute, aten.transpose, aten.t,
    aten.unsqueeze, aten.squeeze, aten.slice, aten.select, aten.narrow, aten.unbind, aten.split, aten.split_with_sizes,
    aten.diagonal, aten.as_strided, aten.unfold, aten.lift_fresh, aten.empty, aten.empty_like, aten.empty_strided,
    aten.new_empty, aten.new_empty_strided, torch.ops.prim.device,
}  # fmt: skip
"""what launches nothing on the device"""
DECOMPOSITIONS = {
    aten._linalg_svd, aten._linalg_eigh, aten.linalg_eig, aten.linalg_cholesky_ex, aten.linalg_lstsq,
    aten._linalg_check_errors,
}  # fmt: skip
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPIES = {aten._to_copy, aten.copy_, aten._foreach_copy, aten._foreach_copy_}


class HostWaitsError(AssertionError):
    """An operation for which the host would wait."""


class Device(TorchDispatchMode):
    """Makes the fake tensors, and watches over what is done with them."""

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.launches = Counter()
        """how many operations did something on the device"""
        self._waits = False

    @contextmanager
    def waiting(self):
        """Inside, the host may wait, as outside of steps; the numbers that it reads are 0."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, kind = dict(kwargs or {}), func.overloadpacket
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        kinds = {x.device.type for x in tensors}
        if kwargs.get("device") is not None:
            kinds.add(torch.device(kwargs["device"]).type)
        kwargs.pop("pin_memory", None)  # this torch may have no memory to pin
        if (
            kind is aten._local_scalar_dense
            and isinstance(tensors[0], FakeTensor)
            and (self._waits or kinds == {"cpu"})
        ):
            return 0.0  # on CPU it has arrived there before
        if "cuda" not in kinds:
            return func(*args, **kwargs)
        if not self._waits:
            self._check(func, args, kwargs, kinds)
        self.launches[kind.__name__] += kind not in VIEWS
        try:
            with self.fake:
                return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise HostWaitsError(f"{func} reads a value") from error

    def _check(self, func, args, kwargs, kinds):
        kind, mixed = func.overloadpacket, len(kinds) > 1 and func.overloadpacket not in VIEWS
        if kind in DECOMPOSITIONS:
            raise HostWaitsError(f"{func} reads whether it has converged")
        if kind in INDEXED and any(i is not None and i.dtype is torch.bool for i in args[1]):
            raise HostWaitsError(f"{func} by a mask asks how many")
        if mixed and not (kind in COPIES and (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))):
            raise HostWaitsError(f"{func} between the host and the device")


class _Event:
    """Of a device that is slow: nothing has arrived until somebody waits."""

    def record(self):
        pass

    def query(self):
        return False

    def synchronize(self):
        pass


@contextmanager
def fake_cuda(monkeypatch):
    """Inside, device=CUDA makes such tensors."""
    # Indexing takes a device guard, and a torch without CUDA has none to give: that of the CPU does nothing either.
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[1] = guards[0]
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(symmetric, "_kernel_pays", lambda x, adds: False)
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=CUDA) is a copy then
    try:
        with Device() as device:
            yield device
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def to_cuda(model, dtype=None):
    """The model with parameters on the device in place of its own."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty_like(p, dtype=dtype, device=CUDA))
    return model


def fill(params):
    """Gradients for them."""
    for p in params:
        p.grad = torch.empty_like(p)
