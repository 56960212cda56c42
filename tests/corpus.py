"""Small sources for the data room's tests: a folder of pictures with captions, tars as others write them, and comparing
trees of files.
"""

import io
import json
from pathlib import Path

from PIL import Image


def picture(i: int, size: int = 8, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (i * 37 % 256, i * 91 % 256, i * 53 % 256)).save(out, format)
    return out.getvalue()


def folder_recipe(root: Path, n: int = 10, size: int = 8, shard_rows: int = 2) -> Path:
    """A `folder` recipe of n pictures, English captions for all and German ones for the even; returns its YAML."""
    (root / "pictures").mkdir(parents=True)
    with (root / "captions.jsonl").open("w") as file:
        for i in range(n):
            (root / "pictures" / f"{i:03d}.png").write_bytes(picture(i, size))
            captions = {"en": [f"A thing {i}."]} | ({"de": f"Ding {i}"} if i % 2 == 0 else {})
            file.write(json.dumps({"file": f"{i:03d}.png", "captions": captions}) + "\n")
    path = root / "recipe.yaml"
    lines = [
        "kind: folder",
        "name: mine",
        f"images: {root / 'pictures'}",
        f"captions: {root / 'captions.jsonl'}",
        f"shard_rows: {shard_rows}",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def tree(root: Path) -> dict[str, bytes]:
    """{relative path: bytes} of what a build must reproduce: all but telemetry and temporary files."""
    files = (
        p
        for p in root.rglob("*")
        if p.is_file() and not p.name.endswith(".stats.json") and not p.name.startswith(".tmp-")
    )
    return {str(p.relative_to(root)): p.read_bytes() for p in files}
