"""Does the learning rate mean what it says? Train GPTs of several depths, and compare what single steps change in the
logits (RMS over the vocabulary, for each token) with η of that step."""

import torch

from normgeo import lab

corpus = lab.standard_library()
probe = corpus.validation[:512].reshape(16, 32)
print("depth  change/η, mean over tokens and steps  largest token of any step")
for depth in (2, 4, 8):
    settings = lab.Settings(depth=depth, width=32, context=32, batch=16, steps=60, warmup=10)
    ours = lab.ours(steps=60, lr=settings.lr, warmup=10)
    training = lab.Training(ours, lab.Text(settings, corpus), torch.device("cpu"))
    changes = []
    while not training.done:
        step = training.step
        with torch.no_grad():
            before = training.model(probe)
        training.advance()
        if step >= 20:
            eta = settings.lr * (1 - (step - 10) / 50)
            with torch.no_grad():
                changes.append((training.model(probe) - before).square().mean(-1).sqrt() / eta)
    ratio = torch.stack(changes)
    print(f"{depth:5d}  {ratio.mean():.2f}  {ratio.max():.2f}")
    assert 0.1 < ratio.mean() < 2
