import torch
from hypothesis import settings

settings.register_profile("ci", derandomize=True, max_examples=25, deadline=None)
settings.load_profile("ci")

# The tensors here are tiny: a second thread would cost more in hand-over than it computes.
torch.set_num_threads(1)
