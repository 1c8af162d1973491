"""Symmetric products against the library's: the kernel under Triton's interpreter, in a process of its own, because Triton
decides at import whether it interprets (its dot takes the bits of bfloat16 for integers: that dtype waits for a GPU); and
compiled for GPUs that need not be there."""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from normgeo.linalg import FAST, TIGHT, symmetric

SCRIPT = """
import torch
from normgeo.linalg import syrk
torch.manual_seed(0)
syrk.TILE, syrk.DEPTH = 16, 16
for count, m, n in ((2, 33, 20), (1, 5, 40), (2, 16, 1), (1, 1, 1)):
    for dtype, error in ((torch.float32, 1e-5), (torch.float16, 2e-3)):
        x = (torch.randn(count, m, n) / n**0.5).to(dtype)
        r = torch.randn(count, m, m)
        r = (r + r.mT).to(dtype)
        wide = x.double() @ x.double().mT
        apart = torch.zeros(count, 2, m, n + 3, dtype=dtype)[:, 1, :, 1:-2].copy_(x)
        rounded = r * (1 + torch.finfo(dtype).eps * torch.randn(count, m, m)).to(dtype)
        for seen, wanted in (
            (syrk.symmetric(x), wide),
            (syrk.symmetric(x, r, 0.5, -2.0), 0.5 * r.double() - 2 * wide),
            (syrk.symmetric(x, r.mT.contiguous().mT, 0.5, -2.0), 0.5 * r.double() - 2 * wide),
            (syrk.symmetric(x, rounded, 0.5, -2.0), 0.5 * r.double() - 2 * wide),
            (syrk.symmetric(x.mT.contiguous().mT), wide),
            (syrk.symmetric(apart), wide),
            (syrk.symmetric(x[:1].expand(count, m, n)), wide[:1].expand(count, m, m)),
        ):
            assert seen.dtype == dtype
            assert torch.equal(seen, seen.mT), "not symmetric to the bit"
            assert (seen.double() - wanted).abs().max() <= error * max(1, wanted.abs().max()), (m, n, dtype)
print("agrees")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is missing: pip install 'normgeo[gpu]'")
def test_the_kernel_agrees_with_float64_under_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "agrees", done.stderr


LARGEST = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""bytes of shared memory that a program may have, by compute capability"""
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def compiled(capability, dtype, adds, turned, monkeypatch, folder):
    """The kernel as `symmetric` launches it on matrices with sides that are multiples of 16."""
    triton = pytest.importorskip("triton", reason="triton is missing: pip install 'normgeo[gpu]'")
    from normgeo.linalg import syrk

    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    names = syrk._kernel.arg_names
    types = dict.fromkeys(("x", "r", "out"), POINTERS[dtype]) | {"b": "fp32", "c": "fp32"}
    types |= dict.fromkeys(("m", "n", "xb", "xm", "xn"), "i32")
    aligned = [name for name in names if types.get(name) in ("i32", POINTERS[dtype])]
    constants = {"ADDS": adds, "TILE": syrk.TILE, "DEPTH": syrk.DEPTH, "xm" if turned else "xn": 1}
    source = triton.compiler.ASTSource(
        syrk._kernel,
        {name: "constexpr" if name in constants else types[name] for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned if name not in constants},
    )
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=syrk.OPTIONS)


def resources(kernel, folder):
    """Registers a thread, and bytes a thread that did not fit into them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("this triton comes without cuobjdump")
    (folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    command = [str(tool), "--dump-resource-usage", str(folder / "kernel.cubin")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", said))
    return int(found["REG"]), int(found["STACK"]) + int(found["LOCAL"])


def check_compiled(capability, dtype, adds, turned, monkeypatch, folder):
    kernel = compiled(capability, dtype, adds, turned, monkeypatch, folder)
    assert kernel.metadata.shared <= LARGEST[capability]
    assert TENSOR_CORES[capability] in kernel.asm["ptx"]
    registers, spilled = resources(kernel, folder)
    assert registers * 32 * kernel.metadata.num_warps <= 2**16
    assert spilled <= 16  # ptxas gives up a few bytes for a second program at a time


def test_the_kernel_compiles_for_gpus_that_are_not_there(monkeypatch, tmp_path):
    check_compiled(90, torch.bfloat16, True, False, monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize("adds", [False, True], ids=["", "adds"])
@pytest.mark.parametrize("dtype", POINTERS, ids=str)
@pytest.mark.parametrize("capability", LARGEST)
def test_all_its_variants_compile(capability, dtype, adds, turned, monkeypatch, tmp_path):
    check_compiled(capability, dtype, adds, turned, monkeypatch, tmp_path)


def test_without_a_gpu_the_library_multiplies():
    x = torch.randn(2, 5, 9)
    torch.testing.assert_close(symmetric.gram(x), x @ x.mT)
    torch.testing.assert_close(symmetric.gram(x.mT), x @ x.mT)
    r = symmetric.gram(x)
    r = r / r.norm()
    for q in ((0.5, -2.0), (2.0, 0.0), (2.0, -3.0, 4.0, -1.5), (3.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1.0)):
        wanted = sum(c * torch.linalg.matrix_power(r.double(), k + 1) for k, c in enumerate(q))
        torch.testing.assert_close(symmetric.polynomial(r, q).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (256, 1024), (300, 1000), (520, 520)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_products_by_blocks_are_whole_products(shape, dtype, error):
    x = (torch.randn(*shape) / shape[1] ** 0.5).to(dtype)
    r = (x.double() @ x.double().mT).to(dtype)
    for y in (x, x.mT.contiguous().mT):
        nothing, eye = torch.full_like(r, torch.nan), torch.eye(len(r), dtype=dtype)
        for out, b, c in ((nothing, 0.0, 1.0), (eye, 1.0, -1.0), (r, 0.5, -2.0)):
            wanted = c * (x.double() @ x.double().mT) + (b * out.double() if b else 0)
            seen = symmetric._by_blocks(y[None], out.clone()[None], b, c)[0]
            assert seen.dtype == dtype
            torch.testing.assert_close(seen.double(), wanted, rtol=error, atol=error)


def test_products_by_blocks_have_derivatives():
    x = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(5, dtype=torch.float64).repeat(2, 1, 1)
    assert torch.autograd.gradcheck(lambda x: symmetric._by_blocks(x, x.new_empty(2, 5, 5), 0.0, 1.0), x)
    assert torch.autograd.gradcheck(lambda x: symmetric._by_blocks(x, eye.clone(), 1.0, -1.0), x)


def test_large_products_are_taken_by_blocks(monkeypatch):
    """gram, I - XXᵀ and polynomials, wide and tall, where the host may look; a matrix comes out the same whoever else is
    in its batch."""
    taken = []
    by_blocks = symmetric._by_blocks
    monkeypatch.setattr(symmetric, "_by_blocks", lambda *a: taken.append(a[0].shape) or by_blocks(*a))
    monkeypatch.setattr(symmetric, "PER_THREAD", 2**24 // torch.get_num_threads())
    x = torch.randn(1, 256, 300) / 300**0.5
    r, eye = x @ x.mT, torch.eye(256)
    quartic = (0.1, 0.2, 0.3, 0.4)
    wanted = sum(c * torch.linalg.matrix_power(r, k + 1) for k, c in enumerate(quartic))
    for seen, whole, count in (
        (lambda: symmetric.gram(x), r, 1),
        (lambda: symmetric.gram(x.mT), r, 1),
        (lambda: symmetric.residual(x.mT, eye), eye - r, 1),
        (lambda: symmetric.polynomial(r, quartic), wanted, 2),
        (lambda: symmetric.gram(x.expand(2, -1, -1)), r.expand(2, -1, -1), 1),
        (lambda: symmetric.gram(x[:, :255]), r[:, :255, :255], 0),
        (lambda: torch.vmap(symmetric.gram)(x[None])[0], r, 0),
    ):
        taken.clear()
        torch.testing.assert_close(seen(), whole, rtol=1e-4, atol=1e-4)
        assert len(taken) == count
    for one in (x, x.mT):
        assert torch.equal(symmetric.gram(torch.cat([one, -2 * one]))[0], symmetric.gram(one)[0])
    taken.clear()
    symmetric.gram(x.to("meta"))
    assert not taken
    torch.testing.assert_close(r, x @ x.mT, rtol=0, atol=0)
    torch.testing.assert_close(eye, torch.eye(256), rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_agrees_on_the_device(dtype):
    from normgeo.linalg import syrk

    x = (torch.randn(2, 300, 500) / 500**0.5).cuda().to(dtype)
    r = x @ x.mT
    for seen, wanted in (
        (syrk.symmetric(x), r.double()),
        (syrk.symmetric(r, r, 0.5, -2.0), (r / 2 - 2 * (r @ r)).double()),
    ):
        assert torch.equal(seen, seen.mT)
        torch.testing.assert_close(seen.double(), wanted, rtol=2e-2, atol=2e-2)


def test_a_missing_triton_is_said_in_one_line_and_once(monkeypatch):
    monkeypatch.setattr(symmetric.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(symmetric, "_said", set())
    with pytest.warns(RuntimeWarning, match=r"^triton is not installed.*normgeo\[gpu\]"):
        assert not symmetric._measure(torch.zeros(1, 2, 2), False)
    assert not symmetric._measure(torch.zeros(1, 2, 2), True)  # warnings are errors here


def test_a_kernel_that_fails_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(symmetric.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(symmetric, "_said", set())
    monkeypatch.setitem(sys.modules, "normgeo.linalg.syrk", type(sys)("syrk"))
    sys.modules["normgeo.linalg.syrk"].symmetric = lambda *_: 1 / 0
    with pytest.warns(RuntimeWarning, match="the symmetric kernel does not run here") as seen:
        assert not symmetric._measure(torch.zeros(1, 2, 2), False)
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(67, 65), (130, 70), (70, 131), (520, 500)])
def test_a_polar_factor_is_the_same_to_the_bit_whoever_shares_its_batch(shape, dtype):
    g = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for polar in (TIGHT, FAST):
        polar = replace(polar, dtype=dtype, gram=False)
        assert torch.equal(polar(g), torch.cat([polar(g[i : i + 1].clone()) for i in range(3)]))
