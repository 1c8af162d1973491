"""Norms of kernels: their laws with groups and phases, and the bound against what torch's convolutions do."""

import math

import pytest
import torch
from helpers import gaussian, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

import normgeo as ng
from normgeo.linalg import SVD
from normgeo.norms import RMS, Conv, ConvTransposed, RMSToRMS, circulant_norm, with_polar
from normgeo.testing import check_norm

CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
few = st.integers(1, 3)


@st.composite
def kernels(draw, strides: bool = False):
    """(norm, shape of a weight): 1 to 3 spatial axes, any kernel, groups up to depthwise."""
    spatial, groups = draw(few), draw(few)
    grouped, inner = groups * draw(few), draw(few)
    kernel = draw(st.tuples(*[few] * spatial))
    stride = draw(st.tuples(*[few] * spatial))
    norm = ConvTransposed(spatial, groups, stride=stride) if strides else Conv(spatial, groups)
    return norm, (grouped, inner, *kernel)


@given(st.one_of(kernels(), kernels(strides=True)), seeds)
def test_laws_with_groups_and_phases(case, seed):
    check_norm(*case, seed=seed)


@given(kernels(), seeds)
def test_conv_is_the_largest_norm_of_an_unfolded_group(case, seed):
    norm, shape = case
    w = gaussian(*shape, seed=seed)
    k = math.prod(shape[2:])
    sizes = [
        math.sqrt(k * shape[1] / len(part)) * torch.linalg.matrix_norm(part.flatten(1), 2)
        for part in w.chunk(norm.groups)
    ]
    torch.testing.assert_close(norm.norm(w), torch.stack(sizes).max())
    d = with_polar(norm, SVD()).dualize(w).chunk(norm.groups)
    for part, got in zip(w.chunk(norm.groups), d, strict=True):
        u, _, vt = torch.linalg.svd(part.flatten(1), full_matrices=False)
        torch.testing.assert_close(got.flatten(1), math.sqrt(len(part) / (k * shape[1])) * u @ vt)


def pixels(x):  # (b, c, *spatial) -> the largest RMS over channels of a pixel
    return x.square().mean(1).sqrt().max()


@given(data=st.data(), seed=seeds)
def test_conv_bounds_every_pixel(data, seed):
    """Any stride, padding and dilation, against inputs with every pixel at RMS 1, the worst of them found by ascent."""
    norm, shape = data.draw(kernels())
    n, g = norm.spatial, norm.groups
    size = data.draw(st.tuples(*[st.integers(5, 7)] * n))
    options = {
        "stride": data.draw(few),
        "padding": data.draw(st.integers(0, 2)),
        "dilation": data.draw(st.integers(1, 2)),
    }
    w = norm.init(shape, torch.Generator().manual_seed(seed), torch.float64)
    x = gaussian(2, shape[1] * g, *size, seed=seed)
    worst = ascend(lambda x: CONV[n](x, w, groups=g, **options), x)
    assert worst <= norm.norm(w) * (1 + 1e-9)


@given(data=st.data(), seed=seeds)
def test_transposed_conv_bounds_every_pixel(data, seed):
    norm, shape = data.draw(kernels(strides=True))
    size = data.draw(st.tuples(*[st.integers(2, 4)] * norm.spatial))
    padding = [min(1, k - 1) for k in shape[2:]]
    w = norm.init(shape, torch.Generator().manual_seed(seed), torch.float64)
    x = gaussian(2, shape[0], *size, seed=seed)
    t = TRANSPOSED[norm.spatial]
    worst = ascend(lambda x: t(x, w, stride=norm.stride, padding=padding, groups=norm.groups), x)
    assert worst <= norm.norm(w) * (1 + 1e-9)


def ascend(f, x):
    """max over inputs of RMS 1 at every pixel of the largest pixel of f(x), f linear, by the power method."""
    worst = 0.0
    for _ in range(15):
        x = x / x.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30)
        x.requires_grad_()
        y = pixels(f(x))
        worst = max(worst, y.item())
        if not y:
            break
        (x,) = torch.autograd.grad(y, x)
    return worst


@pytest.mark.parametrize("norm", [Conv(2), ConvTransposed(2, stride=(1, 1))], ids=str)
def test_the_bound_is_reached_by_some_kernel(norm):
    """A kernel of equal taps c·A, with A semi-orthogonal: a constant image brings the most that the norm allows."""
    w = (
        RMSToRMS().init((4, 4), torch.Generator().manual_seed(0), torch.float64)[:, :, None, None].expand(4, 4, 3, 3)
        / 9
    )
    x = RMS().init((4,), torch.Generator().manual_seed(1), torch.float64)[None, :, None, None].expand(1, 4, 5, 5)
    y = (functional.conv2d if isinstance(norm, Conv) else functional.conv_transpose2d)(x, w, padding=1)
    torch.testing.assert_close(norm.norm(w), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(pixels(y), torch.tensor(1.0, dtype=torch.float64))


def test_a_transposed_kernel_is_seen_one_phase_at_a_time():
    """Stride = kernel: every output pixel sees one tap, so each tap is a matrix of its own."""
    w = gaussian(3, 2, 2, 2)
    taps = [RMSToRMS().norm(w[:, :, i, j].mT) for i in range(2) for j in range(2)]
    torch.testing.assert_close(ConvTransposed(2, stride=(2, 2)).norm(w), torch.stack(taps).max())


@pytest.mark.parametrize(("kernel", "size"), [((3,), (5,)), ((2, 3), (4, 5)), ((1, 2, 2), (2, 3, 2))])
def test_circulant_norm_equals_the_dense_matrix(kernel, size):
    w = gaussian(3, 2, *kernel)
    basis = torch.eye(2 * math.prod(size), dtype=torch.float64).reshape(-1, 2, *size)
    pads = [p for k in reversed(kernel) for p in (0, k - 1)]
    dense = CONV[len(kernel)](functional.pad(basis, pads, mode="circular"), w).flatten(1)
    torch.testing.assert_close(circulant_norm(w, size), torch.linalg.matrix_norm(dense, 2))
    torch.testing.assert_close(circulant_norm(torch.stack([w, 2 * w]), size)[1], 2 * circulant_norm(w, size))


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="≥ 1 spatial axes"):
        Conv(0)
    with pytest.raises(ValueError, match="do not divide into 2 groups"):
        Conv(1, groups=2).norm(torch.zeros(3, 1, 2))
    with pytest.raises(ValueError, match="stride needs 2"):
        ConvTransposed(2, stride=(2,))
    with pytest.raises(ValueError, match="larger than the image"):
        circulant_norm(torch.zeros(1, 1, 3), (2,))


def test_norms_of_kernels_are_saved_and_printed():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(Conv(2).init((4, 3, 3, 3)))

    @ng.geometry.register(Net)
    def _(module, graph, x):
        out = graph.op("conv", x)
        graph.use(module.weight, out, role="convolution", norm=ConvTransposed(2, stride=(2, 1)))
        return out

    plan = ng.compile(Net())
    assert ng.Plan.from_json(plan.to_json()) == plan
    assert "ConvTransposed(spatial=2, groups=1, stride=(2, 1))" in str(plan)
