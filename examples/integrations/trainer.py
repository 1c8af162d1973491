"""transformers.Trainer, unmodified: it makes the optimizer from the plan once it has the model."""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import normgeo as ng

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, use_cache=False))
texts = [{"input_ids": ids, "labels": ids} for ids in (torch.arange(k, k + 16) % 32 for k in range(64))]
plan = ng.compile(model, example_kwargs={"input_ids": texts[0]["input_ids"][None]})

arguments = TrainingArguments(
    tempfile.mkdtemp(),
    max_steps=20,
    per_device_train_batch_size=8,
    logging_steps=5,
    report_to="none",
    use_cpu=True,
    disable_tqdm=True,
    lr_scheduler_type="linear",
)
trainer = Trainer(model, arguments, train_dataset=texts, optimizer_cls_and_kwargs=plan.for_trainer(lr=0.2, decay=0.01))
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {losses[0]} -> {losses[-1]}")
