"""PEFT: only the factors of LoRA are trained; the plan finds them by their use and says that the rest is frozen."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

import normgeo as ng

torch.manual_seed(0)
base = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, use_cache=False))
model = get_peft_model(base, LoraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True))
ids = (torch.arange(16) + torch.arange(8)[:, None]) % 32
opt = ng.optimizer(model, example_kwargs={"input_ids": ids}, lr=0.5)

losses = []
for _ in range(30):
    loss = model(input_ids=ids, labels=ids).loss
    opt.zero_grad()
    loss.backward()
    opt.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
print("\n".join(line for line in opt.describe().splitlines() if "frozen" not in line))
