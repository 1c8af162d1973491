"""`normgeo train`: a character GPT, with the optimizer that follows from its modular norm."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import normgeo as ng
from normgeo import lab

__all__ = ["train"]

DEFAULTS = lab.Settings()
SECONDS_BETWEEN_SAVES = 10.0
CHECKPOINT, RESULTS, PICTURE = "checkpoint.pt", "results.json", "loss.png"


@click.command()
@click.option(
    "--text", type=click.Path(path_type=Path), help="UTF-8 file to train on. [default: Python's standard library]"
)
@click.option("--width", type=int, default=DEFAULTS.width, show_default=True, help="Features of the residual stream.")
@click.option("--depth", type=int, default=DEFAULTS.depth, show_default=True, help="Blocks of attention and MLP.")
@click.option("--heads", type=int, default=DEFAULTS.heads, show_default=True, help="Attention heads.")
@click.option("--context", type=int, default=DEFAULTS.context, show_default=True, help="Bytes in a window.")
@click.option("--batch", type=int, default=DEFAULTS.batch, show_default=True, help="Windows in a step.")
@click.option("--steps", type=int, default=DEFAULTS.steps, show_default=True, help="Training steps.")
@click.option(
    "--warmup", type=int, default=None, help="Warm-up steps of our optimizer. [default: 20, or a tenth of a short run]"
)
@click.option(
    "--lr", type=float, default=DEFAULTS.lr, show_default=True, help="Change of the output that a step may cause."
)
@click.option("--seed", type=int, default=DEFAULTS.seed, show_default=True, help="For weights and batches.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--compare", default="adamw", show_default=True, help="adamw, muon, grid (AdamW tuned), none; separated by commas."
)
@click.option("--out", type=click.Path(path_type=Path), help="New folder for the results. [default: runs/TIME]")
@click.option("--resume", is_flag=True, help="Continue the run in --out where it stopped.")
@click.option("--dry-run", is_flag=True, help="Print the plan and what would not move; write nothing.")
@click.pass_context
def train(ctx: click.Context, **options: Any) -> None:
    """Train a character GPT and compare its optimizer with others on the same model and batches."""
    console = Console(highlight=False)
    out: Path | None = options["out"]
    if options["resume"]:
        options = _resumed(ctx, options)
    elif out is not None and out.exists():
        raise lab.UserError(f"--out: {out} exists already; choose a new folder, or continue it with --resume")
    settings = _settings(options)
    device = _device(options["device"])
    names = [name.strip() for name in options["compare"].split(",") if name.strip()]
    field = lab.contenders(names, steps=settings.steps, lr=settings.lr, warmup=settings.warmup)
    corpus = lab.standard_library() if options["text"] is None else lab.text_file(Path(options["text"]))
    corpus.check(settings.context)

    model = settings.model(len(corpus.vocabulary))
    plan = ng.compile(model)
    console.print(str(corpus), soft_wrap=True)
    console.print(f"{sum(p.numel() for p in model.parameters()):,} weights\n\n{plan}\n", soft_wrap=True)
    still = plan.optimizer(model, lr=settings.lr, dry_run=True)
    console.print("every leaf will move" if not still else f"will not move: {still}", soft_wrap=True)
    if options["dry_run"]:
        for contender in field:
            console.print(f"would train {contender.name}: {contender.setting}, {settings.steps} steps on {device}")
        return
    out = out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    kept = {name: str(v) if isinstance(v := options[name], Path) else v for name in sorted(options) if name not in ONCE}
    curves = _run(console, field, settings, corpus, device, out, kept)
    console.print(lab.summary(curves))
    console.print(f"saved {out / RESULTS} and {out / PICTURE}", soft_wrap=True)


ONCE = {"out", "resume", "dry_run"}


def _run(
    console: Console,
    field: list[lab.Contender],
    settings: lab.Settings,
    corpus: lab.Corpus,
    device: torch.device,
    out: Path,
    options: dict[str, Any],
) -> list[lab.Curve]:
    """Train one contender after the other, saving as it goes; what a checkpoint holds is not done again."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise lab.UserError(f"--out: cannot make {out}: {error.strerror}; choose another folder") from error
    path = out / CHECKPOINT
    saved: dict[str, Any] = lab.load_checkpoint(path, device) if path.exists() else {"curves": [], "running": None}
    if saved.get("sha256", corpus.sha256) != corpus.sha256:
        raise lab.UserError("--resume: the text is not the one that the run began with; give that text or start anew")
    curves = [lab.Curve(**each) for each in saved["curves"]]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))

    def save(running: lab.Training | None) -> None:
        state = None if running is None else running.state()
        done = [asdict(curve) for curve in curves]
        lab.save_checkpoint(path, {"options": options, "sha256": corpus.sha256, "curves": done, "running": state})

    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        for contender in field[len(curves) :]:
            training = lab.Training(contender, settings, corpus, device)
            if saved["running"] is not None:
                training.load_state(saved["running"])
                saved["running"] = None
            task = progress.add_task(contender.name, total=settings.steps, completed=training.step, note="")
            last_save = time.monotonic()
            while not training.done:
                training.advance()
                progress.update(task, completed=training.step, note=_note(training.curve))
                if time.monotonic() - last_save >= SECONDS_BETWEEN_SAVES:
                    save(training)
                    last_save = time.monotonic()
            if not console.is_terminal:
                console.print(f"{contender.name}: validation {training.curve.validation[-1]:.4f}")
            curves.append(training.curve)
            save(None)
    _report(curves, settings, corpus, device, out, options)
    return curves


def _report(
    curves: list[lab.Curve],
    settings: lab.Settings,
    corpus: lab.Corpus,
    device: torch.device,
    out: Path,
    options: dict[str, Any],
) -> None:
    facts = {
        "normgeo": ng.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "text": {"name": corpus.name, "sha256": corpus.sha256, "vocabulary": len(corpus.vocabulary)},
        "options": options,
        "settings": asdict(settings),
        "curves": [asdict(curve) for curve in curves],
    }
    lab.write_whole(out / RESULTS, json.dumps(facts, indent=1).encode())
    lab.write_whole(
        out / PICTURE,
        lab.plot_losses(curves, f"GPT of width {settings.width}, depth {settings.depth}, on {corpus.name}"),
    )


def _note(curve: lab.Curve) -> str:
    loss = f"loss {curve.train[-1]:.3f}" if curve.train else ""
    return f"{loss}  {curve.tokens_per_second:,.0f} tokens/s"


def _settings(options: dict[str, Any]) -> lab.Settings:
    names = [f.name for f in fields(lab.Settings)]
    if options["warmup"] is None:
        options["warmup"] = min(DEFAULTS.warmup, max(options["steps"] // 10, 0))
    return lab.Settings(**{name: options[name] for name in names})


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise lab.UserError("--device: this torch sees no CUDA device; write --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def _resumed(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """The options that the run began with; one given anew must be the same."""
    out: Path | None = options["out"]
    if out is None:
        raise lab.UserError("--resume: say which run to continue: --resume --out FOLDER")
    begun = lab.load_checkpoint(out / CHECKPOINT, torch.device("cpu"))["options"]
    for name, value in begun.items():
        given = ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
        if given and str(options[name]) != str(value) and name not in ("device",):
            raise lab.UserError(f"--{name}: the run in {out} began with {value}; leave --{name} out to continue it")
    device = options["device"]
    return {**options, **begun, "device": device}
