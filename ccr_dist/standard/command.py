"""`ccr-dist evaluate MODEL --mteb TASKS`: measures retrievers on tasks of mteb, and keeps mteb's own result files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import mteb
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HfHubHTTPError
from mteb.abstasks import AbsTask
from mteb.cache import ResultCache
from mteb.results import TaskResult
from rich.table import Table

from ccr_dist import api, terminal
from ccr_dist.data.storage.store import disk_errors
from ccr_dist.errors import CcrError, ConfigError, DataError, StorageError
from ccr_dist.places import folder_to_make, require_writable
from ccr_dist.standard.chosen import chosen, require_usable
from ccr_dist.standard.encoder import RetrieverEncoder
from ccr_dist.standard.own_tasks import DatasetRetrieval
from ccr_dist.train.publish import untrained_model

if TYPE_CHECKING:
    from ccr_dist.config import RunConfig
    from ccr_dist.retriever.retriever import Retriever

# What the table shows of mteb's scores.
_SHOWN = {"ndcg_at_10": "nDCG@10", "hit_rate_at_1": "R@1", "hit_rate_at_5": "R@5", "hit_rate_at_10": "R@10"}


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        name: for messages.
        load: makes the retriever.
        results: folder for mteb's results; None: the model lies in no folder here.
    """

    name: str
    load: Callable[[], Retriever]
    results: Path | None


def evaluate(
    subjects: Sequence[Subject],
    words: str,
    *,
    out: Path | None = None,
    langs: str | None = None,
    again: bool = False,
) -> None:
    """Measure each model on each task; print tables and name the files.

    Args:
        subjects: the models.
        words: the tasks (`chosen.chosen`).
        out: folder of mteb's results; None: results/mteb in the run's or model's folder.
        langs: languages with commas between them; None: all of a task.
        again: measure although there is a result of the same model and data.

    Raises:
        ConfigError: unknown tasks, languages or models, or several processes.
        DataError: data of a task is missing or broken.
        StorageError: data of a task is not on this machine, and the hub cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError("--mteb runs in one process; start it without a launcher")
    places = [out or _place(subject) for subject in subjects]
    for place in places:
        folder_to_make(place)
        require_writable(place)
    tasks = chosen(words, langs)
    for subject, place in zip(subjects, places, strict=True):
        retriever = subject.load()
        require_usable(retriever, tasks)
        encoder = RetrieverEncoder(retriever)
        for task in tasks:
            result, file = measure(encoder, task, place, again=again)
            terminal.console().print(table(retriever.name, result))
            print(file, flush=True)


def model_at(place: str | Path) -> Subject:
    """A run folder, a model folder, or `hf://org/name`."""
    return Subject(
        str(place), partial(api.load, place), Path(place) / "results" / "mteb" if Path(place).is_dir() else None
    )


def run_of(config: RunConfig) -> Subject:
    """The run of a config, or its method where there is nothing to train."""
    load = partial(api.load, config.folder) if config.stages else partial(untrained_model, config)
    return Subject(str(config.folder), load, config.folder / "results" / "mteb")


def measure(
    encoder: RetrieverEncoder, task: AbsTask, out: Path, *, again: bool = False, batch: int = 32
) -> tuple[TaskResult, Path]:
    """Measure one task, unless there is a result of the same model, data and languages; one that lacks languages is
    completed.

    Args:
        encoder: the model.
        task: with the subsets that are wanted.
        out: folder of mteb's `ResultCache`.
        again: measure in any case.
        batch: texts, pictures or videos that are encoded at a time.

    Returns:
        The result, and mteb's file of it.

    Raises:
        DataError, StorageError: see `evaluate`.
    """
    cache, meta = ResultCache(out), encoder.mteb_model_meta
    file = cache.get_task_result_path(task.metadata.name, meta)
    known = None if again else _known(cache, task, encoder, file)
    if known is not None and not known.get_missing_evaluations(task):
        print(f"{file}: measured already; --again measures again", flush=True)
        return known, file
    with _quiet(), _loaded(task), disk_errors(file):
        done = mteb.evaluate(
            encoder,
            task,
            cache=cache,
            co2_tracker=False,
            encode_kwargs={"batch_size": batch, "show_progress_bar": False},
            overwrite_strategy="always" if known is None else "only-missing",
            show_progress_bar=False,
        )
    return done.task_results[0], file


def table(model: str, result: TaskResult) -> Table:
    """A row a subset. R@K is mteb's hit rate, in percent: queries with a right answer among the first K."""
    found = Table("subset", *_SHOWN.values(), title=f"{result.task_name}: {model}")
    for scores in result.scores.values():
        for row in scores:
            cells = (row.get(name) for name in _SHOWN)
            found.add_row(row["hf_subset"], *("" if cell is None else f"{100 * cell:.1f}" for cell in cells))
    return found


def _place(subject: Subject) -> Path:
    if subject.results is None:
        raise ConfigError(f"{subject.name}: not a folder, so --out FOLDER has to say where the results go")
    return subject.results


def _known(cache: ResultCache, task: AbsTask, encoder: RetrieverEncoder, file: Path) -> TaskResult | None:
    """The result that is there, if it is of the same data."""
    try:
        found = cache.load_task_result(task.metadata.name, encoder.mteb_model_meta)
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{file}: damaged ({type(error).__name__}); --again measures again and writes it anew"
        ) from error
    if found is not None and found.dataset_revision != task.metadata.revision:
        print(f"{file}: it was measured on other data; measuring again", flush=True)
        return None
    return found


@contextmanager
def _loaded(task: AbsTask) -> Iterator[None]:
    """The task's data, for a while."""
    try:
        with disk_errors(datasets.config.HF_DATASETS_CACHE):
            task.load_data()
    except CcrError:
        raise
    except (DatasetsError, HfHubHTTPError, OSError, ValueError) as error:
        if isinstance(task, DatasetRetrieval):
            raise
        data: dict[str, Any] = dict(task.metadata.dataset)
        raise StorageError(
            f"{task.metadata.name}: its data, {data['path']} (revision {data.get('revision')}), could not be loaded:"
            f" {type(error).__name__}: {error}. mteb fetches it from the Hugging Face hub; on a machine without a"
            " connection, fetch it elsewhere and set HF_HOME to a copy of that cache"
        ) from error
    try:
        yield
    finally:
        task.unload_data()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of `datasets`, one for every small step."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
