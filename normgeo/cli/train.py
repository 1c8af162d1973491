"""`normgeo train`: a character GPT, with the optimizer that follows from its modular norm."""

from __future__ import annotations

import json
import platform
import time
import warnings
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
ONCE = {"out", "resume", "dry_run"}  # options that are not the run's own
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
    console = Console(highlight=False, markup=False, soft_wrap=True)
    warnings.showwarning = lambda message, *_: click.echo(f"normgeo: {message}", err=True)
    out: Path | None = options["out"]
    if options["resume"]:
        options = _resumed(ctx, options)
    elif out is not None and not options["dry_run"]:
        _check_new(out)
    settings = _settings(options)
    device = _device(options["device"])
    names = [name.strip() for name in options["compare"].split(",") if name.strip()]
    field = lab.contenders(names, steps=settings.steps, lr=settings.lr, warmup=settings.warmup)
    corpus = lab.standard_library() if options["text"] is None else lab.text_file(Path(options["text"]))
    problem = lab.Text(settings, corpus)

    model = problem.model()
    plan = ng.compile(model)
    console.print(str(corpus))
    console.print(f"{sum(p.numel() for p in model.parameters()):,} weights\n\n{plan}\n")
    still = plan.optimizer(model, lr=settings.lr, dry_run=True)
    console.print("every leaf will move" if not still else f"will not move: {still}")
    if options["dry_run"]:
        for contender in field:
            console.print(f"would train {contender.name}: {contender.setting}, {settings.steps} steps on {device}")
        return
    folder = _folder(out, resume=options["resume"])
    console.print(f"results go to {folder}")
    kept = {n: str(v.resolve()) if isinstance(v, Path) else v for n, v in sorted(options.items()) if n not in ONCE}
    try:
        curves = _run(console, field, problem, device, folder, kept, resume=options["resume"])
    except KeyboardInterrupt:
        raise lab.UserError(f"stopped; continue with normgeo train --resume --out {folder}") from None
    except Exception:
        for made in (folder, *([folder.parent] if out is None else [])):
            if not any(made.iterdir()):
                made.rmdir()
        raise
    console.print(lab.summary(curves), soft_wrap=False)
    console.print(f"saved {folder / RESULTS} and {folder / PICTURE}")


def _run(
    console: Console,
    field: list[lab.Contender],
    problem: lab.Text,
    device: torch.device,
    out: Path,
    options: dict[str, Any],
    *,
    resume: bool,
) -> list[lab.Curve]:
    """Train one contender after the other, saving as it goes; what a checkpoint holds is not done again."""
    path = out / CHECKPOINT
    saved: dict[str, Any] = lab.load_checkpoint(path, device) if resume else {"curves": [], "running": None}
    if saved.get("sha256", problem.corpus.sha256) != problem.corpus.sha256:
        raise lab.UserError("--text: the text is not the one that the run began with; give that text or start anew")
    curves = [lab.Curve(**each) for each in saved["curves"]]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))

    def save(running: lab.Training | None) -> None:
        state = None if running is None else running.state()
        done = [asdict(curve) for curve in curves]
        lab.save_checkpoint(
            path, {"options": options, "sha256": problem.corpus.sha256, "curves": done, "running": state}
        )

    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        for contender in field[len(curves) :]:
            training = lab.Training(contender, problem, device)
            if saved["running"] is not None:
                training.load_state(saved["running"])
                saved["running"] = None
            task = progress.add_task(contender.name, total=problem.steps, completed=training.step, note="")
            last_save = time.monotonic()
            try:
                while not training.done:
                    training.advance()
                    progress.update(task, completed=training.step, note=_note(training.curve))
                    if time.monotonic() - last_save >= SECONDS_BETWEEN_SAVES:
                        save(training)
                        last_save = time.monotonic()
            except KeyboardInterrupt:
                # The interrupt may have come in the middle of a step; what was saved last is whole.
                if not path.exists():
                    save(lab.Training(contender, problem, device))
                raise
            if not console.is_terminal:
                console.print(f"{contender.name}: validation {training.curve.validation[-1]:.4f}")
            curves.append(training.curve)
            save(None)
    _report(curves, problem, device, out, options)
    return curves


def _report(
    curves: list[lab.Curve],
    problem: lab.Text,
    device: torch.device,
    out: Path,
    options: dict[str, Any],
) -> None:
    settings, corpus = problem.settings, problem.corpus
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
    return f"{loss}  {curve.examples_per_second:,.0f} tokens/s"


def _settings(options: dict[str, Any]) -> lab.Settings:
    names = [f.name for f in fields(lab.Settings)]
    if options["warmup"] is None:
        options["warmup"] = min(DEFAULTS.warmup, max(options["steps"] // 10, 0))
    return lab.Settings(**{name: options[name] for name in names})


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise lab.UserError("--device: this torch sees no CUDA device; write --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def _check_new(out: Path) -> None:
    """Refuse a folder that has something in it."""
    try:
        taken = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    except OSError as error:
        raise lab.UserError(f"--out: cannot look into {out}: {error.strerror}; choose another folder") from error
    if taken:
        raise lab.UserError(f"--out: {out} exists already; choose a new folder, or continue it with --resume")


def _folder(out: Path | None, *, resume: bool) -> Path:
    """The folder of the run, made; without --out a new one named by the time, of which no other run makes use."""
    if resume and out is not None:
        return out
    now = time.strftime("%Y%m%d-%H%M%S")
    names = iter(
        [out] if out is not None else (Path("runs") / f"{now}{end}" for end in ("", *(f"-{i}" for i in range(2, 99))))
    )
    for folder in names:
        try:
            folder.mkdir(parents=True, exist_ok=out is not None)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise lab.UserError(f"--out: cannot make {folder}: {error.strerror}; choose another folder") from error
    raise lab.UserError("--out: cannot make a new folder in runs; name one")


def _resumed(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """The options that the run began with; one given anew must be the same."""
    out: Path | None = options["out"]
    if out is None:
        raise lab.UserError("--resume: say which run to continue: --resume --out FOLDER")
    saved = lab.load_checkpoint(out / CHECKPOINT, torch.device("cpu"))
    if not isinstance(saved, dict) or not {"options", "sha256", "curves", "running"} <= set(saved):
        raise lab.UserError(f"--resume: {out / CHECKPOINT} is not a checkpoint of normgeo train; choose another folder")
    begun = saved["options"]
    for name, value in begun.items():
        given = ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
        # A moved text or another device is the user's business; the text itself is compared by its hash.
        if given and name not in ("device", "text") and str(options[name]) != str(value):
            raise lab.UserError(f"--{name}: the run in {out} began with {value}; leave --{name} out to continue it")
    own = {name: options[name] for name in ("device", "text") if options[name] is not None}
    return {**options, **begun, **own}
