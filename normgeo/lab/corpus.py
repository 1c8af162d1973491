"""Real text without a download: the source of Python's standard library, or any file."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from normgeo.lab.errors import UserError

__all__ = ["Corpus", "standard_library", "text_file"]

SMALLEST_LIBRARY = 1_000_000


@dataclass(frozen=True)
class Corpus:
    """Text as numbers: ids are positions in `vocabulary`, the distinct bytes of the text in order.

    >>> corpus = Corpus.from_bytes("abc", train=b"abba", validation=b"ab")
    >>> corpus.vocabulary, corpus.train.tolist()
    (b'ab', [0, 1, 1, 0])
    """

    name: str
    vocabulary: bytes
    train: Tensor
    validation: Tensor
    sha256: str

    @classmethod
    def from_bytes(cls, name: str, train: bytes, validation: bytes) -> Corpus:
        vocabulary = bytes(sorted(set(train) | set(validation)))
        table = np.zeros(256, dtype=np.int64)
        table[list(vocabulary)] = np.arange(len(vocabulary))

        def ids(text: bytes) -> Tensor:
            return torch.from_numpy(table[np.frombuffer(text, dtype=np.uint8)])

        return cls(name, vocabulary, ids(train), ids(validation), hashlib.sha256(train + validation).hexdigest())

    def __str__(self) -> str:
        return (
            f"{self.name}: {len(self.train):,} bytes to train on, {len(self.validation):,} to validate, "
            f"{len(self.vocabulary)} distinct, sha256 {self.sha256}"
        )

    def check(self, context: int) -> None:
        """Refuse a text too short for windows of this length."""
        shortest = min(len(self.train), len(self.validation))
        if shortest < context + 1:
            raise UserError(
                f"--text: {self.name} gives {len(self.validation)} bytes for validation, a window needs {context + 1}; "
                f"give a text of at least {10 * (context + 1):,} bytes or a smaller --context"
            )


def text_file(path: Path) -> Corpus:
    """The first 90 % of a UTF-8 file to train on, the rest to validate."""
    try:
        text = path.read_bytes()
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"--text: {path} is not UTF-8 text (byte {error.start}); convert it or choose another file"
        ) from error
    except OSError as error:
        raise UserError(f"--text: cannot read {path}: {error.strerror}; give the path of a text file") from error
    if not text:
        raise UserError(f"--text: {path} is empty; give a text of at least some thousand bytes")
    cut = int(0.9 * len(text))
    return Corpus.from_bytes(path.name, text[:cut], text[cut:])


def standard_library(root: Path | None = None) -> Corpus:
    """All modules of the standard library, in the order of their paths; those whose hash says so, a tenth, validate."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    for text in _sources(root):
        parts[hashlib.sha256(text).digest()[0] < 26].append(text)
    train, validation = b"".join(parts[False]), b"".join(parts[True])
    if len(train) + len(validation) < SMALLEST_LIBRARY:
        raise UserError(
            f"the standard library in {root} has only {len(train) + len(validation):,} bytes of source; "
            "give a text to train on: normgeo train --text FILE"
        )
    return Corpus.from_bytes("Python's standard library", train, validation)


def _sources(root: Path) -> Iterator[bytes]:
    inside = (path.relative_to(root) for path in root.rglob("*.py"))
    for path in sorted(inside, key=lambda path: path.as_posix()):
        if {"site-packages", "dist-packages"} & set(path.parts):
            continue
        try:
            text = (root / path).read_bytes()
            text.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # some tests of the standard library are deliberately not UTF-8
        yield text
