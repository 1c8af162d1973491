"""A ledger: results by key, a JSON line each, that a stopped measurement goes on from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from normgeo.lab.checkpoint import write_whole
from normgeo.lab.errors import UserError

__all__ = ["Ledger"]

T = TypeVar("T")


class Ledger(Generic[T]):
    """Results of one dataclass; a line that was torn when the process was killed is dropped."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        self.path = path
        self.done: dict[str, T] = {}
        lines = path.read_text().splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                key = record.pop("key")
                self.done[key] = kind(**record)
            except (ValueError, TypeError, KeyError):
                if number == len(lines):
                    write_whole(path, "".join(each + "\n" for each in lines[:-1]).encode())
                else:
                    raise UserError(f"--out: line {number} of {path} is not a trial; choose another folder") from None

    def keep(self, key: str, result: Any) -> None:
        self.done[key] = result
        with self.path.open("a") as file:
            file.write(json.dumps({"key": key, **asdict(result)}) + "\n")
            file.flush()
            os.fsync(file.fileno())
