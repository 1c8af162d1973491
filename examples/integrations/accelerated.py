"""A plain loop with accelerate: the optimizer is prepared as any other."""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import normgeo as ng

torch.manual_seed(0)
model = ng.nn.MLP(8, 32, 2)
opt = ng.optimizer(model, lr=0.1)
x = torch.randn(256, 8)
data = DataLoader(TensorDataset(x, x[:, :2].sin()), batch_size=32)
schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, total_iters=20)  # it advances with the optimizer

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model, opt, data, schedule = accelerator.prepare(model, opt, data, schedule)
losses = []
for _ in range(5):
    for inputs, targets in data:
        with accelerator.accumulate(model):
            loss = (model(inputs) - targets).square().mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            schedule.step()
            opt.zero_grad()
            losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
