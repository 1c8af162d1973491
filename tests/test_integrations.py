"""At home in other people's loops: each example runs and learns, and trainers stop and resume to the bit."""

import contextlib
import io
import runpy
from pathlib import Path

import pytest
import torch

import normgeo as ng
from normgeo.diagnostics import TensorBoard, WandB, watch

EXAMPLES = Path(ng.__file__).parent.parent / "examples" / "integrations"


@pytest.fixture(autouse=True)
def _others_warn():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def example(name, *needs):
    for package in needs:
        pytest.importorskip(package, reason=f"needs the extra normgeo[integrations], for {package}")
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return names, shown.getvalue()


def test_accelerate():
    names, _ = example("accelerated", "accelerate")
    assert names["losses"][-1] < 0.5 * names["losses"][0]
    opt = names["opt"].optimizer  # what accelerate has wrapped
    assert float(opt.param_groups[0]["lr"]) == pytest.approx(0.0, abs=1e-12)
    assert all(float(state["step"]) == 20 for state in opt.state.values())  # one step for two batches


@pytest.mark.slow
def test_the_trainer_of_transformers():
    names, _ = example("trainer", "transformers", "accelerate")
    assert names["losses"][-1] < 0.7 * names["losses"][0]
    opt = names["trainer"].optimizer.optimizer
    assert isinstance(opt, ng.optim.Optimizer)
    assert all(float(state["step"]) == 20 for state in opt.state.values())
    assert all(
        isinstance(value, ng.Plan | float) for value in names["plan"].for_trainer(lr=0.2, decay=0.01)[1].values()
    )


@pytest.mark.slow
def test_the_trainer_of_transformers_resumes_to_the_bit(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra normgeo[models]")

    def trainer(folder, most):
        torch.manual_seed(0)
        sizes = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **dropout, use_cache=False))
        texts = [{"input_ids": ids, "labels": ids} for ids in (torch.arange(k, k + 16) % 32 for k in range(64))]
        plan = ng.compile(model, example_kwargs={"input_ids": texts[0]["input_ids"][None]})
        arguments = transformers.TrainingArguments(
            str(folder), max_steps=most, save_steps=4, report_to="none", use_cpu=True, disable_tqdm=True,
            lr_scheduler_type="constant",
        )  # fmt: skip
        return transformers.Trainer(
            model, arguments, train_dataset=texts, optimizer_cls_and_kwargs=plan.for_trainer(lr=0.2)
        )

    straight, broken = trainer(tmp_path / "straight", 8), trainer(tmp_path / "broken", 4)
    straight.train()
    broken.train()
    resumed = trainer(tmp_path / "broken", 8)
    resumed.train(resume_from_checkpoint=True)
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_peft():
    names, shown = example("lora", "peft", "transformers")
    assert names["losses"][-1] < names["losses"][0]
    opt, model = names["opt"], names["model"]
    moved = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved
    assert all("lora_" in name for name in moved)
    assert all(float(opt.state[p]["step"]) == 30 for p in model.parameters() if p.requires_grad)
    still = dict(opt.still())
    assert all("frozen" in why for why in still.values())
    assert {name.split("[")[0] for name in still} == {n for n, p in model.named_parameters() if not p.requires_grad}
    assert "lora_A" in shown


@pytest.mark.slow
def test_lightning():
    _, shown = example("lightning_module", "lightning")
    for line in shown.strip().splitlines():
        before, after = (float(number) for number in line.split("loss ")[1].split(" -> "))
        assert after < 0.5 * before
    assert [line.split(":")[0] for line in shown.strip().splitlines()] == ["Automatic", "Manual"]


@pytest.mark.slow
def test_lightning_resumes_to_the_bit(tmp_path):
    lightning = pytest.importorskip("lightning", reason="needs the extra normgeo[integrations], for lightning")
    modules = runpy.run_path(str(EXAMPLES / "lightning_module.py"))
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, :2].sin()), batch_size=16)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}

    def module():
        torch.manual_seed(0)
        return modules["Automatic"]()

    straight, broken, resumed = module(), module(), module()
    lightning.Trainer(max_epochs=4, enable_checkpointing=False, **quiet).fit(straight, data)
    first = lightning.Trainer(max_epochs=2, enable_checkpointing=False, **quiet)
    first.fit(broken, data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    second = lightning.Trainer(max_epochs=4, enable_checkpointing=False, **quiet)
    second.fit(resumed, data, ckpt_path=tmp_path / "half.ckpt")
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


# ---- logging


def trained(*loggers, steps=5, every=2):
    model = ng.nn.MLP(4, 8, 2)
    plan = ng.compile(model)
    opt = plan.optimizer(plan.groups({"4": {"lr": 0.05}}), lr=0.1)
    handle = watch(opt, *loggers, every=every)
    for _ in range(steps):
        opt.zero_grad()
        model(torch.ones(2, 4)).square().mean().backward()
        opt.step()
    return model, plan, opt, handle


def test_loggers_are_told_lr_skipped_steps_and_sizes():
    seen = []
    model, plan, opt, handle = trained(lambda step, numbers: seen.append((step, numbers)))
    assert [step for step, _ in seen] == [2, 4]
    last = seen[-1][1]
    assert (last["lr/0"], last["lr/1"], last["skipped"]) == (0.1, 0.05, 0)
    assert {name for name in last if name.startswith("size/")} == {f"size/{leaf.name}" for leaf in plan.leaves}
    assert opt.sizes() == pytest.approx(plan.sizes(model))
    model[0].weight.grad.fill_(float("nan"))
    opt.step()
    assert seen[-1][0] == 6
    assert seen[-1][1]["skipped"] == 1
    handle.remove()
    for _ in range(4):
        opt.step()
    assert seen[-1][0] == 6
    with pytest.raises(ValueError, match="every must be a whole number"):
        watch(opt, every=0)


def test_weights_and_biases_gets_the_numbers_with_their_step():
    class Run:
        def __init__(self):
            self.logged = []

        def log(self, numbers):
            self.logged.append(numbers)

    run = Run()
    trained(WandB(run))
    assert [numbers["step"] for numbers in run.logged] == [2, 4]
    assert all("size/0.weight" in numbers for numbers in run.logged)


@pytest.mark.slow
def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra normgeo[integrations], for tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        trained(TensorBoard(writer))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("size/0.weight")] == [2, 4]
    assert [event.value for event in events.Scalars("lr/0")] == pytest.approx([0.1, 0.1])
