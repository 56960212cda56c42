"""An export: which forms there are, and the folder that one becomes.

    OUT/
        ccr_export.json     form, model and its digest, languages, what was measured, versions; with its own digest
        README.md           the model card
        ...                 what the form consists of

A folder is made beside `OUT`, checked there, and takes its place at once: an export that does not compute what the
model computes leaves nothing behind.
"""

from __future__ import annotations

import copy
import importlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ccr_dist.data.storage.checked import read_checked, with_digest
from ccr_dist.data.storage.store import disk_errors, pretty_json, sync_folder, write_synced
from ccr_dist.environment import environment
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.export.card import card
from ccr_dist.export.held_out import held_out
from ccr_dist.export.job import Job
from ccr_dist.export.pictures import PicturePath, picture_path
from ccr_dist.export.public import make_public
from ccr_dist.redact import without_places
from ccr_dist.retriever.retriever import Retriever

RECORD = "ccr_export.json"
FORMS = {
    "sentence-transformers": "ccr_dist.export.forms.sentence",
    "onnx": "ccr_dist.export.forms.onnx_files",
    "open_clip": "ccr_dist.export.forms.openclip",
    "peft": "ccr_dist.export.forms.peft_files",
    "safetensors": "ccr_dist.export.forms.weights",
}


def export(
    retriever: Retriever,
    form: str,
    out: Path,
    *,
    languages: Sequence[str] = (),
    pictures: bool | None = None,
    check: str | None = None,
) -> dict[str, Any]:
    """Exports a model and returns the record.

    Args:
        retriever: on the CPU.
        form: a key of `FORMS`.
        out: the folder; an export that lies there is replaced.
        languages: to export; default: those that the model was trained in. One that reads any can be asked for others.
        pictures: the picture side as well; None: where the form can hold it.
        check: a dataset or text file in place of the run's validation split.

    Raises:
        ConfigError: the form cannot hold the model, with the reason; or `out` is something else.
        MismatchError: the export does not compute what the model computes.
        DataError: there is nothing to check on.
        StorageError: the disk is full.
    """
    if form not in FORMS:
        raise ConfigError(f"--to {form}: expected one of {', '.join(FORMS)}")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not is_export(out))):
        raise ConfigError(f"{out}: something lies there that is no export of ours; name another folder, or remove it")
    for lang in languages:
        if lang not in retriever.languages and not retriever.any_language:
            raise ConfigError(f"--lang {lang}: the model's languages are {', '.join(retriever.languages)}")
    writer: Any = importlib.import_module(FORMS[form])
    chosen = tuple(languages or retriever.languages)
    exact = _in_float32(retriever)
    picture, note = _picture(exact, writer, form, pictures)
    sample = held_out(exact, check, chosen, pictures=picture is not None)
    if picture is not None and not sample.pictures:
        picture, note = None, f"Pictures are not in this export: {sample.where} has none to check them on."
        if pictures:
            raise ConfigError(f"--pictures yes: {sample.where} has no pictures to check on; give --check a dataset with"
                              " a column of pictures")  # fmt: skip
    job = Job(exact, chosen, sample, picture)
    if note:
        job.notes.append(note)
    with _assembled(out) as folder:
        writer.write(folder, job)
        make_public(folder)
        record = without_places(
            {
                "format": 1,
                "form": form,
                "model": {"name": retriever.name, "digest": retriever.digest, "method": retriever.method.name},
                "languages": list(job.languages),
                "pictures": job.picture is not None,
                "checked_on": sample.name,
                "measured": job.measured.found,
                "facts": job.facts,
                "notes": job.notes,
                **environment(),
            }
        )
        write_synced(folder / RECORD, pretty_json(with_digest(record)))
        write_synced(folder / "README.md", card(job, form, record).encode())
    return record


def is_export(folder: Path) -> bool:
    """Whether a folder is an export of ours."""
    return (folder / RECORD).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """The record of an export. CheckpointError where it is damaged, ConfigError where there is none."""
    if not is_export(folder):
        raise ConfigError(f"{folder}: not an export (no {RECORD})")
    record, sealed = read_checked(folder / RECORD)
    if not sealed:
        raise CheckpointError(f"{folder / RECORD}: damaged, it has no digest")
    return record


def _in_float32(retriever: Retriever) -> Retriever:
    """The same model, computing as the forms do, whatever precision the run was evaluated in."""
    exact, config = copy.copy(retriever), retriever.config
    exact.config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"precision": "fp32"})})
    return exact


def _picture(retriever: Retriever, writer: Any, form: str, asked: bool | None) -> tuple[PicturePath | None, str | None]:
    """The way of pictures, or why there is none."""
    if asked is False:
        return None, None
    try:
        path = picture_path(retriever)
        writer.require_pictures(retriever, path)
    except ConfigError as error:
        if asked:
            raise ConfigError(f"--to {form} --pictures yes: {error}") from None
        return None, f"Pictures are not in this export: {error}."
    return path, None


@contextmanager
def _assembled(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, which replaces it when the block ends."""
    new, old = (out.with_name(f".{out.name}.{kind}") for kind in ("new", "old"))
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        with disk_errors(out):
            new.mkdir(parents=True)
            yield new
            for folder in (*filter(Path.is_dir, new.rglob("*")), new):
                sync_folder(folder)
            if out.exists():
                out.rename(old)
            new.rename(out)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
