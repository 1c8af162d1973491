import importlib.util

import torch
from hypothesis import settings

settings.register_profile("ci", derandomize=True, max_examples=25, deadline=None)
settings.load_profile("ci")

# The tensors here are tiny: a second thread would cost more in hand-over than it computes.
torch.set_num_threads(1)

# Builds of torchvision for CUDA, which is what PyPI has, cannot be imported beside a torch for CPUs: they give these
# operations kernels, but define them only in a library for CUDA. timm and transformers import torchvision.
if importlib.util.find_spec("torchvision") and not torch.cuda.is_available():
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
