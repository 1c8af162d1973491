"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from normgeo.lab.errors import UserError

__all__ = ["load_checkpoint", "save_checkpoint", "write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one and nothing in between."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        full = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
        raise UserError(
            f"cannot write {path}: {full}; what was there is intact. Free space or choose another --out"
        ) from error


def save_checkpoint(path: Path, data: dict[str, Any]) -> None:
    """Save tensors and plain data; the checkpoint before it is kept beside it as *.previous."""
    buffer = io.BytesIO()
    torch.save(data, buffer)
    if path.exists():
        try:
            keep = path.with_name(path.name + ".previous")
            keep.unlink(missing_ok=True)
            os.link(path, keep)
        except OSError as error:
            raise UserError(f"cannot keep {path} beside a newer one: {error.strerror}; choose another --out") from error
    write_whole(path, buffer.getvalue())


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """The newest checkpoint that is whole: every part of it has the checksum that it was written with."""
    for candidate in (path, path.with_name(path.name + ".previous")):
        try:
            with zipfile.ZipFile(candidate) as parts:  # torch.load would take damaged numbers for good ones
                if parts.testzip() is not None:
                    continue
            data: dict[str, Any] = torch.load(candidate, map_location=device, weights_only=True)
            return data
        except FileNotFoundError:
            continue
        except Exception:  # a damaged file raises whatever its damage leads to; the previous one is tried
            continue
    raise UserError(f"--resume: no readable checkpoint in {path.parent}; start anew without --resume")
