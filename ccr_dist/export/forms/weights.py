"""The form of plain weights: the model folder as it is, which `ccr_dist.load` opens, with a list of its tensors.

DIR/model.json, model.safetensors, base/...     the model folder
DIR/tensors.json                                file -> tensor -> {"shape", "dtype"}, of every safetensors file
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ccr_dist.errors import ConfigError
from ccr_dist.export.job import Job, unit
from ccr_dist.export.pictures import PicturePath
from ccr_dist.retriever.load import load_model
from ccr_dist.retriever.retriever import Retriever

TENSORS = "tensors.json"


def require_pictures(retriever: Retriever, path: PicturePath) -> None:
    """The model folder holds both sides."""


def write(folder: Path, job: Job) -> None:
    """Copies the model folder, lists its tensors, and compares what it computes."""
    source = job.retriever.folder
    if source is None:
        raise ConfigError("this model has no model folder")
    shutil.copytree(source, folder, dirs_exist_ok=True)
    listed = {path.relative_to(folder).as_posix(): _tensors(path) for path in sorted(folder.rglob("*.safetensors"))}
    (folder / TENSORS).write_text(json.dumps(listed, indent=1, sort_keys=True), encoding="utf-8")
    again = load_model(folder, device="cpu")
    again.config = job.retriever.config
    for lang in job.languages:
        job.measured.compare(f"text.{lang}", unit(again.encode_text(job.texts(lang), lang)), job.rows(lang))
    if job.picture is not None:
        rows = unit(again.encode_images(list(job.sample.pictures)))
        job.measured.compare("pictures", rows, job.picture_rows())
    lang = next((lang for lang in job.languages if lang != "en"), job.languages[0])
    job.usage += [
        "import ccr_dist",
        "",
        'retriever = ccr_dist.load("DIR")',
        f'rows = retriever.encode_text([{job.texts(lang)[0]!r}], lang="{lang}")',
    ]


def _tensors(path: Path) -> dict[str, dict[str, object]]:
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: {"shape": each.get_shape(), "dtype": each.get_dtype()} for name, each in slices.items()}
