"""A network that trains itself: declare it, compile it, and step with the optimizer that follows from its norm."""

import torch

import normgeo as ng

model = ng.nn.Linear(256, 10, zero=True) @ ng.nn.ReLU() @ ng.nn.Linear(256, 256) @ ng.nn.ReLU() @ ng.nn.Linear(784, 256)
plan = ng.compile(model)
print(plan)

# Ten prototypes under ten times as much noise: a problem that needs no download.
torch.manual_seed(0)
prototypes = torch.randn(10, 784)
optimizer = plan.optimizer(model, lr=0.5, step=ng.steps.Linear(total=100))
for step in range(100):
    labels = torch.randint(10, (128,))
    images = (prototypes[labels] + 10 * torch.randn(128, 784)) / 100**0.5
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}: loss {loss.item():.3f}")
print(f"last loss {loss.item():.3f}")
assert loss < 1.5
