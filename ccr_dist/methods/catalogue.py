"""What `ccr-dist methods` shows: which methods there are, which columns each of their stages reads and which command
makes those, and, for run configs, how many parameters are trained.

`COLUMNS` explains `config.INPUTS` and what queries are. Nothing here imports torch: without configs the list is quick.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccr_dist.config import DataConfig, MethodOptions, RunConfig
from ccr_dist.errors import CcrError, DataError
from ccr_dist.methods import registry
from ccr_dist.methods.run_config import load_config

if TYPE_CHECKING:  # a list of methods must not import torch
    from rich.box import Box
    from rich.table import Table

    from ccr_dist.methods.base import Method


@dataclass(frozen=True)
class Column:
    """keys: of the run config, that name what a stage reads; what: it is; made_by: the command that makes such a
    column.
    """

    keys: tuple[str, ...]
    what: str
    made_by: str


COLUMNS = {
    "visual": Column(
        ("data.visual",), "pictures, or one vector an item", "`shards build`; cached: `featurise --from image`"
    ),
    "tokens": Column(
        ("data.visual",),
        "pictures, or any number of vectors an item",
        "`shards build`; cached: `featurise --tokens`; frames of videos: `featurise --from video --pool none`",
    ),
    "source_text": Column(("data.source",), "English captions", "`shards build`"),
    "source_feature": Column(
        ("data.source", "data.source_feature"),
        "English captions; optional: their cached features",
        "`shards build`; cached: `featurise --from caption.en`",
    ),
    "target_text": Column(("data.targets",), "machine translations of the English captions", "`translate --to LANG`"),
    "description": Column(("data.description",), "descriptions of the items by a multimodal LLM", "`describe`"),
    "back_text": Column(
        ("data.back_translations",),
        "translations of the translations back into English",
        "`translate --to LANG --back`",
    ),
    "back_feature": Column(
        ("data.back_translations", "data.back_features"),
        "back-translations; optional: their cached features",
        "`translate --to LANG --back`; cached: `featurise --from caption.en.back-...`",
    ),
    "query_feature": Column(
        ("data.source", "data.targets", "data.query_features"),
        "the captions' features by the method's query encoder; without a column they are computed",
        "`featurise --encoder query --from caption.LANG`",
    ),
    "queries": Column(("data.queries",), "captions by people, to measure with", "`shards build`"),
    "translated_queries": Column(
        ("data.translated_queries",),
        "the queries, machine-translated into English",
        "`translate --from caption.LANG --to en`",
    ),
}


def catalogue() -> list[dict[str, Any]]:
    """Every method with its defaults: {"name", "summary", "stages": [{"name", "trains", "needs", "keys"}], "test":
    {"needs", "keys"}}.

    `needs` are keys of `COLUMNS`, `keys` those of the run config.
    """
    listed = []
    for name in registry.names():
        options = registry.options(name)(name=name)
        stages = [
            {"name": stage, "trains": each.trains, **reads(each.needs)}
            for stage, each in options.training_stages().items()
        ]
        listed.append({"name": name, "summary": summary(name), "stages": stages, "test": reads(asked(options))})
    return listed


def reads(needs: Iterable[str]) -> dict[str, list[str]]:
    """{"needs", "keys"}: the fields, and the keys of the run config that name their columns."""
    return {"needs": sorted(needs), "keys": sorted({key for field in needs for key in COLUMNS[field].keys})}


def asked(options: MethodOptions) -> set[str]:
    """What is read of validation and test, of items and of queries."""
    columns = {key: {"xx": key} for key in ("queries", "translated_queries")}  # each column is called as its key
    data = DataConfig.model_validate({"train": [{"path": "train"}], "val": "val", **columns})
    queries = {*options.query_columns(data).values(), *options.companions(data).values()}
    return {*options.gallery(), *queries}


def summary(name: str) -> str:
    """First sentence of the docstring of the method's folder."""
    doc = inspect.getdoc(importlib.import_module(registry.package(name))) or ""
    first_paragraph = " ".join(doc.partition("\n\n")[0].split())
    return first_paragraph.partition(". ")[0].rstrip(".")


def parameters(paths: Sequence[Path], build: Callable[[RunConfig], Method]) -> list[dict[str, Any]]:
    """How many parameters the method of each run config has.

    Args:
        paths: run configs.
        build: from a config to its method, with the training texts where these determine the size of its table.

    Returns:
        For each config {"config", "name", "method", "backbone", "languages", **`params.summary`}.

    Raises:
        CcrError: begins with the path, for a config that is wrong, a model that cannot be loaded, and training texts
            that do not exist where `frontend.rows: used` needs them.
    """
    from ccr_dist.methods import params  # imports torch

    rows = []
    for path in paths:
        config = load_config(path)
        # How many parameters there are does not depend on the weights of a run that may not be trained yet.
        untrained = config.model_copy(update={"backbone": config.backbone.model_copy(update={"weights": None})})
        try:
            method = build(untrained)
        except DataError as error:
            raise DataError(
                f"{path}: the training texts, by which its embedding table is sized, cannot be read: {error}"
            ) from None
        except CcrError as error:
            raise type(error)(f"{path}: {error}") from None
        about = {
            "config": str(path),
            "name": config.name,
            "method": config.method.name,
            "backbone": method.backbone.name,
        }
        rows.append({**about, "languages": list(method.languages), **params.summary(method)})
    return rows


def methods_table(listed: Sequence[dict[str, Any]]) -> Table:
    """A line for each method, and below it one for each stage; `columns_table` explains what they read."""
    from rich.table import Table

    table = Table("method", "what it is; its stages and what they train; the test", "reads data.", box=_box())
    for method in listed:
        table.add_row(method["name"], method["summary"])
        for stage in [*method["stages"], {"name": "(test)", "trains": "", **method["test"]}]:
            columns = ", ".join(key.removeprefix("data.") for key in stage["keys"])
            table.add_row(f"  {stage['name']}", stage["trains"], columns, end_section=stage["name"] == "(test)")
    return table


def columns_table(listed: Sequence[dict[str, Any]]) -> Table:
    """What the batch fields that occur are, and which commands make their columns."""
    from rich.table import Table

    table = Table("data.", "names the column of", "made by ccr-dist", box=_box())
    used = {field for method in listed for one in (*method["stages"], method["test"]) for field in one["needs"]}
    for field, column in COLUMNS.items():
        if field in used:
            table.add_row("\n".join(key.removeprefix("data.") for key in column.keys), column.what, column.made_by)
    return table


def parameters_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One row a run; no number is ever cut off."""
    from rich.table import Table

    table = Table(
        "run", "the method's own parts", "front end", "table", "total", "trainable", "share", "auxiliary", box=_box()
    )
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in rows:
        parts = "\n".join(f"{name} {number:,}" for name, number in row["parts"].items()) or "-"
        numbers = [f"{row[key]:,}" for key in ("front_end", "table", "total", "trainable")]
        name = f"{row['name']}\n{row['method']} on {row['backbone']}"
        table.add_row(name, parts, *numbers, f"{100 * row['share']:.2f} %", f"{row['auxiliary']:,}", end_section=True)
    return table


def _box() -> Box:
    from rich.box import HORIZONTALS

    return HORIZONTALS
