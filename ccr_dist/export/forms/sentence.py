"""The form of sentence-transformers: a folder that `SentenceTransformer(DIR)` loads without `trust_remote_code`.

A text path with a plain form is made of the library's own modules (Transformer, Pooling, Dense, Normalize). Any other
is a Transformer of the registered type (`registered.py`), which needs `import ccr_dist.export.registered` first; its
model folder lies in DIR/model. Several paths, or pictures beside texts, are the routes of a Router: `task` names the
language, and without one it raises an error instead of guessing.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from ccr_dist.errors import ConfigError
from ccr_dist.export import registered
from ccr_dist.export.forms import plain_pictures
from ccr_dist.export.forms.modules import native
from ccr_dist.export.job import Job
from ccr_dist.export.paths import TextPath
from ccr_dist.export.pictures import PicturePath
from ccr_dist.export.plain import plain
from ccr_dist.retriever.retriever import Retriever

PICTURES = "image"


def require_pictures(retriever: Retriever, path: PicturePath) -> None:
    """ConfigError where the picture side is made of none of the library's modules."""
    plain_pictures.require(retriever, path)


def write(folder: Path, job: Job) -> None:
    """Fills the folder, loads it with the library, and compares rows."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Router

    method, paths, ours = job.retriever.method, job.paths(), []
    with tempfile.TemporaryDirectory(prefix=".parts-", dir=folder.parent) as scratch:
        routes: dict[str, list[Any]] = {}
        for path in paths:
            place = Path(scratch) / path.languages[0]
            try:
                found = plain(method, path)
            except ConfigError as reason:
                ours.append(f"{', '.join(path.languages)}: {reason}")
                routes[path.languages[0]] = [_registered(place, path, folder, job)]
            else:
                routes[path.languages[0]] = native(place, path, found)
        if job.picture is not None:
            routes[PICTURES] = plain_pictures.modules(Path(scratch) / PICTURES, job.retriever, job.picture)
        if len(routes) == 1:
            modules = [*next(iter(routes.values())), Normalize()]
        else:
            mappings: dict[Any, str] = {(None, PICTURES): PICTURES} if job.picture is not None else {}
            if len(paths) == 1:
                mappings[(None, "text")] = paths[0].languages[0]
            mappings |= {(lang, "text"): path.languages[0] for path in paths for lang in path.languages}
            # Another task has no route, and neither have texts without one where there are several ways.
            modules = [Router(routes, allow_empty_key=False, route_mappings=mappings), Normalize()]
        model = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")
        model.save(str(folder), create_model_card=False)
    several = len(paths) > 1
    job.facts |= {"routes": {lang: path.languages[0] for path in paths for lang in path.languages}, "task": several}
    if ours:
        job.facts["import"] = "ccr_dist.export.registered"
        job.notes.append(
            "These languages are of a model type that ccr_dist registers, since no modules of sentence-transformers"
            f" compute them ({'; '.join(ours)}): `import ccr_dist.export.registered` before loading."
        )
    _check(folder, job, several=several)
    _use(job, several=several)


def _registered(place: Path, path: TextPath, folder: Path, job: Job) -> Any:
    from sentence_transformers.sentence_transformer.modules import Transformer

    model = folder / registered.MODEL
    if job.retriever.folder is None:
        raise ConfigError("this model has no model folder; save it first")
    if not model.exists():
        shutil.copytree(job.retriever.folder, model)
    registered.save(place, path, width=job.retriever.text_width, model=model)
    return Transformer(
        str(place),
        modality_config={"text": {"method": "forward", "method_output_name": "pooler_output"}},
        module_output_name="sentence_embedding",
        max_seq_length=path.file.limit,
    )


@torch.inference_mode()
def _check(folder: Path, job: Job, *, several: bool) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    for lang in job.languages:
        rows = model.encode(job.texts(lang), task=lang if several else None, show_progress_bar=False)
        job.measured.compare(f"text.{lang}", rows, job.rows(lang))
    if job.picture is not None:
        rows = model.encode(list(job.sample.pictures), show_progress_bar=False)
        job.measured.compare("pictures", rows, job.picture_rows())


def _use(job: Job, *, several: bool) -> None:
    lang = next((lang for lang in job.languages if lang != "en"), job.languages[0])
    task = f', task="{lang}"' if several else ""
    job.usage += [
        *([f"import {job.facts['import']}"] if "import" in job.facts else []),
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer("DIR")',
        f"rows = model.encode([{job.texts(lang)[0]!r}]{task})",
        *(['pictures = model.encode([PIL.Image.open("a.jpg")])'] if job.picture is not None else []),
    ]
