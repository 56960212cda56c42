"""Tiny files in the exact formats of the datasets that `shards/*.yaml` reads, with stand-ins for their pictures and
videos.

Texts are made up, but for the Dutch ones (DutchDescriptions, Apache-2.0).
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.corpus import picture

VIDEO = b"\x00\x00\x00\x18ftypmp42" + bytes(64)  # begins like an MP4; nothing here decodes it


def write(root: Path, files: dict[str, Any]) -> Path:
    """Text as it stands, .gz compressed, lists of strings as .npy or lines, anything else as JSON (a list in a .jsonl:
    a line each).
    """
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".npy"):
            np.save(path, np.array(content))
        elif name.endswith(".jsonl"):
            path.write_text(
                "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in content), encoding="utf-8"
            )
        elif name.endswith(".json"):
            path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        else:
            text = content if isinstance(content, str) else "".join(f"{line}\n" for line in content)
            data = text.encode()
            if name.endswith(".gz"):
                buffer = io.BytesIO()
                with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
                    file.write(data)
                data = buffer.getvalue()
            path.write_bytes(data)
    return root


def media(root: Path, *names: str) -> Path:
    """A picture, or a stand-in for a video, under each name; pictures differ."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            VIDEO if name.endswith(".mp4") else picture(i, format="PNG" if name.endswith(".png") else "JPEG")
        )
    return root


def coco(part: str, number: int) -> str:
    return f"COCO_{part}2014_{number:012d}"


def karpathy(*items: tuple[str, int, str]) -> dict[str, Any]:
    """dataset_coco.json of (part of COCO, number, split), two captions each."""
    return {
        "dataset": "coco",
        "images": [
            {
                "filepath": f"{part}2014",
                "filename": f"{coco(part, number)}.jpg",
                "cocoid": number,
                "imgid": i,
                "split": split,
                "sentids": [2 * i, 2 * i + 1],
                "sentences": [
                    {"raw": f"{n} English {number}.", "tokens": [str(n)], "imgid": i, "sentid": 2 * i}
                    for n in ("One", "Two")
                ],
            }
            for i, (part, number, split) in enumerate(items)
        ],
    }


def multi30k() -> dict[str, Any]:
    """data/task1: two pictures in train, one in val, two in test."""
    ids = {"train": ["11.jpg", "12.jpg"], "val": ["21.jpg"], "test_2016_flickr": ["31.jpg", "32.jpg"]}
    files: dict[str, Any] = {f"image_splits/{stem}.txt": names for stem, names in ids.items()}
    return files | {
        f"raw/{stem}.{lang}.gz": [f"{lang} {name[:2]}, one." for name in names]
        for stem, names in ids.items()
        for lang in ("en", "de", "fr", "cs")
    }


def nrccr() -> dict[str, Any]:
    """TextData of Multi30K with German; the translations of picture 12 come in another order than its captions."""
    return {
        "TextData/Flickr30ktrain_enc.caption.txt": [
            "11#enc#0 A dog runs.",
            "11#enc#1 The dog.",
            "12#enc#0 A cat.",
            "12#enc#1 Cats  sleep.",
        ],
        "TextData/Flickr30ktrain_google_enc2de.caption.txt": [
            "11#enc2de#0 Ein Hund rennt.",
            "11#enc2de#1 Der Hund.",
            "12#enc2de#1 Katzen schlafen.",
            "12#enc2de#0 Eine Katze.",
        ],
        "TextData/multi30kval_de.caption.txt": ["21#de#0 Ein Haus."],
        "TextData/multi30ktest_de_2016.caption.txt": ["31#de#0 Ein Ball.", "31#de#1 Bälle."],
    }
