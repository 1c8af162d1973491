"""What strangers read must be true: the README's program runs, examples run, and every public name shows how it is used."""

import importlib
import inspect
import pkgutil
import re
import runpy
from pathlib import Path

import pytest

import normgeo

ROOT = Path(normgeo.__file__).parent.parent
ROOMS = sorted(m.name for m in pkgutil.iter_modules(normgeo.__path__) if m.name not in ("cli", "lab"))


def test_the_readmes_programs_run():
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(programs) >= 2
    first = [line for line in programs[0].splitlines() if line.strip()]
    assert len(first) <= 12
    names: dict[str, object] = {}
    for program in programs:
        exec(compile(program, "README.md", "exec"), names)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_run(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_a_short_runnable_example(room):
    module = importlib.import_module(f"normgeo.{room}")
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.ismodule(thing):
            continue
        text = thing.__doc__ or ""
        examples = [line for line in text.splitlines() if line.strip().startswith((">>>", "..."))]
        assert examples, f"normgeo.{room}.{name} has no example"
        assert len(examples) <= 8, f"the example of normgeo.{room}.{name} has {len(examples)} lines"


def test_public_names_are_what_the_rooms_say():
    assert set(normgeo.__all__) <= set(dir(normgeo))
    for room in ROOMS:
        module = importlib.import_module(f"normgeo.{room}")
        assert list(module.__all__) == sorted(module.__all__, key=lambda name: (_kind(name), name)), room


def _kind(name: str) -> int:
    """Constants, then classes, then functions, as the linter sorts them."""
    return 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2


def test_every_line_of_the_migration_page_runs():
    import torch

    programs = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "migration.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(programs) >= 8
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    names = {"model": model, "x": torch.randn(3, 4)}
    *settings, loop = programs
    for program in settings:
        exec(compile(program, "docs/migration.md", "exec"), names)
        if "opt" in names:
            before = [p.detach().clone() for p in model.parameters()]
            exec(compile(loop, "docs/migration.md", "exec"), names)
            assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), program
