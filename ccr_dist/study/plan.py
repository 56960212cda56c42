"""What a study is: rows (each with a config, overrides and seeds), and what is claimed about pairs of rows. Typed and
strict; imports no torch.

As in run configs, errors name file and line, and a file may have a `base:`. `runner.py` carries a study out,
`compare.py` judges it.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from ccr_dist.config import Frozen, RunConfig, as_dict
from ccr_dist.data.storage.store import differences
from ccr_dist.errors import ConfigError
from ccr_dist.evaluate.schema import read_result
from ccr_dist.methods.run_config import from_dict, load_config
from ccr_dist.places import folder_to_make
from ccr_dist.yamlfile import load, validate

if TYPE_CHECKING:
    from ccr_dist.train.stood_on import Today

SEED = "{seed}"  # in overrides


class RowPlan(Frozen):
    """One row of the report: the same run with several seeds."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="its run folders are OUT/NAME-sSEED")
    label: str | None = Field(None, description="in the report; default: the name")
    config: str = Field(description="run config, relative to the study's file")
    overrides: tuple[str, ...] = Field(
        (), description="key.sub=value, after the study's own; `{seed}` in it stands for the run's seed"
    )
    group: str = Field("methods", description="section of the report")
    start_from: str | None = Field(
        None,
        description="an earlier row: each run takes the weights of that row's run of the same seed (`init_from`), and"
        " method fusion also its method (`method.of`)",
    )
    seeds: tuple[NonNegativeInt, ...] | None = Field(
        None, min_length=1, description="none: the study's; a row in which nothing is random has one"
    )
    curve: str | None = Field(None, description="rows of the same curve are points of it, each at its own `x`")
    x: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="where on its curve the row is; what it counts, `growth.x` says",
    )

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.curve is None) != (self.x is None):
            raise ValueError("a point of a curve has both `curve` and `x`")
        return self

    @property
    def shown(self) -> str:
        return self.label or self.name


class Comparison(Frozen):
    """`a` is claimed to be better than `b`."""

    a: str = Field(description="name of the row that is claimed to be better")
    b: str = Field(description="name of the other row")
    claim: str = Field(description="what a reader of the papers expects, in a few words: 'adapter > zero-shot'")
    group: str = Field("claims", description="panel of the plot")


class CurveDifference(Frozen):
    """How far curve `a` is above curve `b`."""

    a: str = Field(description="name of a curve")
    b: str = Field(description="name of the other curve")
    claim: str = Field(description="what the difference is due to, in a few words")


class Growth(Frozen):
    """How SumR grows along curves: rows with `curve` and `x`."""

    x: str = Field(description="what `x` counts, in a word or two: 'captions'")
    levels: tuple[str, ...] = Field((), description="rows without `x`; where each curve reaches them is estimated")
    differences: tuple[CurveDifference, ...] = Field((), description="of two curves, at the x that both have")


class Study(Frozen):
    """Many runs on the same data, and what they are to show."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="letters, digits, dots, dashes")
    title: str = Field(description="of the report")
    notes: tuple[str, ...] = Field((), description="paragraphs of the report")
    out: str = Field(description="run folders, logs and the report go below it")
    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1, description="of every row that trains")
    overrides: tuple[str, ...] = Field(
        (), description="key.sub=value for every run; `{seed}` in it stands for the run's seed"
    )
    first: tuple[RowPlan, ...] = Field(
        (), description="runs that others stand on: carried out before all rows, with seed 0 unless they say more"
    )
    rows: tuple[RowPlan, ...] = Field(min_length=1)
    comparisons: tuple[Comparison, ...] = ()
    growth: Growth | None = None
    checkpoints: Literal["keep", "drop"] = Field(
        "keep", description="drop: a row's checkpoints are deleted once it is measured; its selected weights stay"
    )


@dataclass(frozen=True)
class Run:
    """One run of a row: its checked config, the arguments of `ccr-dist` that carry it out, and the name of the run that
    has to be complete before.
    """

    row: RowPlan
    config: RunConfig
    arguments: tuple[str, ...]
    after: str | None = None
    varies: bool = True  # whether another seed would give other numbers

    @property
    def name(self) -> str:
        return self.config.folder.name

    @property
    def result(self) -> Path:
        return self.config.folder / "results" / "test.json"


@dataclass(frozen=True)
class StudyPlan:
    """A study with all its runs; those in `first` come before those in `runs`."""

    study: Study
    first: tuple[Run, ...]
    runs: tuple[Run, ...]

    def select(self, only: Sequence[str], seeds: Sequence[int] | None) -> StudyPlan:
        """The part of a study with some rows and seeds.

        Args:
            only: Names of rows; default: all.
            seeds: None: all.

        Raises:
            ConfigError: There is no such row, or no run is left.
        """
        known = [row.name for row in self.study.rows]
        for name in only:
            if name not in known:
                raise ConfigError(
                    f"--only {name}: the study {self.study.name!r} has no such row; {nearest(name, known)}"
                )
        kept = [run for run in self.runs if not only or run.row.name in only]
        kept = [run for run in kept if seeds is None or not run.varies or run.config.seed in seeds]
        if not kept:
            raise ConfigError(
                f"--seeds {','.join(map(str, seeds or ()))}: no row of the study {self.study.name!r} has such a seed"
            )
        return StudyPlan(self.study, self.first, tuple(kept))


def load_plan(path: str | Path) -> StudyPlan:
    """Reads a study and checks the config of every run.

    Raises:
        ConfigError: The file is wrong (names file and line of the first fault), or its `out` is a file.
    """
    path = Path(path)
    document = load(path)
    study = validate(Study, document)
    folder_to_make(Path(study.out))
    places = {
        row.name: document.place((part, n)) for part in ("first", "rows") for n, row in enumerate(getattr(study, part))
    }
    rows = (*study.first, *study.rows)
    for what, values in (("name", [row.name for row in rows]), ("label", [row.shown for row in rows])):
        if twice := [value for value, n in Counter(values).items() if n > 1]:
            raise ConfigError(f"{path}: two rows have the {what} {twice[0]!r}; every row needs its own")
    known = [row.name for row in study.rows]
    for n, comparison in enumerate(study.comparisons):
        for side in ("a", "b"):
            if (name := getattr(comparison, side)) not in known:
                raise ConfigError(
                    f"{document.place(('comparisons', n, side))}: no row is called {name!r}; {nearest(name, known)}"
                )
    _check_growth(study, document.place)
    made: dict[str, list[Run]] = {}
    for row in rows:
        seeds = row.seeds or (study.seeds if row in study.rows else (0,))
        made[row.name] = _runs(study, row, seeds, path, places[row.name], made)
    first, runs = ([run for row in some for run in made[row.name]] for some in (study.first, study.rows))
    return StudyPlan(study, tuple(first), tuple(runs))


def _check_growth(study: Study, place: Callable[[tuple[str | int, ...]], str]) -> None:
    """ConfigError, with its place, for curves that cannot be drawn."""
    taken: dict[tuple[str, float], str] = {}
    for n, row in enumerate(study.rows):
        if row.curve is None or row.x is None:
            continue
        if study.growth is None:
            raise ConfigError(
                f"{place(('rows', n))}: row {row.name!r} has an x, and nothing says what it counts:"
                " set `growth: {x: ...}`"
            )
        other = taken.setdefault((row.curve, row.x), row.name)
        if other != row.name:
            raise ConfigError(
                f"{place(('rows', n))}: rows {other!r} and {row.name!r} are the same point of the curve"
                f" {row.curve!r}, x {row.x:g}"
            )
    if study.growth is None:
        return
    curves = list(dict.fromkeys(curve for curve, _ in taken))
    if not curves:
        raise ConfigError(f"{place(('growth',))}: growth: no row has a `curve` and an `x`")
    levels = [row.name for row in study.rows if row.curve is None]
    for n, name in enumerate(study.growth.levels):
        if name not in levels:
            raise ConfigError(
                f"{place(('growth', 'levels', n))}: growth.levels: no row without x is called {name!r};"
                f" {nearest(name, levels)}"
            )
    for n, difference in enumerate(study.growth.differences):
        for side in ("a", "b"):
            if (name := getattr(difference, side)) not in curves:
                raise ConfigError(
                    f"{place(('growth', 'differences', n, side))}: growth.differences: no curve is called {name!r};"
                    f" {nearest(name, curves)}"
                )


def _runs(
    study: Study, row: RowPlan, seeds: Sequence[int], path: Path, place: str, made: Mapping[str, Sequence[Run]]
) -> list[Run]:
    """The runs of a row; `made` has those of the rows before it."""
    file = path.parent / row.config
    own = (f"name={row.name}", f"label={json.dumps(row.shown)}", f"out={study.out}")
    overrides = (*study.overrides, *row.overrides)
    sources = _sources(row, seeds, place, made) if row.start_from is not None else {}
    seeded = any(SEED in override for override in overrides)
    found: list[Run] = []
    for seed in seeds:
        if seeded or not found:
            try:
                config, given = _config(file, overrides, own, seed, sources.get(seed))
            except ConfigError as error:
                raise ConfigError(f"{place}: row {row.name!r}: {error}") from None
            if config.data.test is None:
                raise ConfigError(
                    f"{place}: row {row.name!r}: data.test names no dataset, and a study measures its runs on one"
                )
        update: dict[str, Any] = {"seed": seed}
        if sources:
            update["init_from"] = str(sources[seed].config.folder)
        its, after = config.model_copy(update=update), sources[seed].name if sources else None
        varies = seeded or bool(its.stages) or its.init_from is not None  # else nothing in it is random
        arguments = (str(file), *given, *(f"{key}={value}" for key, value in update.items()))
        arguments = ("train", *arguments, "--test") if its.stages else ("evaluate", *arguments)
        found.append(Run(row, its, arguments, after, varies))
        if not varies:
            break  # every seed would give the same numbers
    return found


def _config(
    file: Path, overrides: Sequence[str], own: Sequence[str], seed: int, source: Run | None
) -> tuple[RunConfig, tuple[str, ...]]:
    """A row's config with one seed, and the overrides that made it.

    Args:
        file: The run config.
        overrides: The study's and the row's.
        own: Name, label and folder.
        seed: The seed.
        source: The run that it starts from.
    """
    given = (*(override.replace(SEED, str(seed)) for override in overrides), *own)
    config = load_config(file, (*given, f"seed={seed}"))
    if source is not None and "of" in type(config.method).model_fields:
        method = source.config.method.model_dump(mode="json")
        given = (f"method.of={json.dumps(method)}", *given)
        config = load_config(file, (*given, f"seed={seed}"))
    return config, given


def _sources(row: RowPlan, seeds: Sequence[int], place: str, made: Mapping[str, Sequence[Run]]) -> dict[int, Run]:
    """Seed -> the run that a row's run of this seed starts from; of a row with a single run, that one."""
    assert row.start_from is not None
    if row.start_from not in made:
        known = nearest(row.start_from, list(made)) if made else "there are none before it"
        raise ConfigError(
            f"{place}: row {row.name!r}: start_from: no earlier row is called {row.start_from!r}; {known}"
        )
    runs = made[row.start_from]
    by_seed = {run.config.seed: run for run in runs}
    sources = {seed: runs[0] if len(runs) == 1 else by_seed.get(seed) for seed in seeds}
    if missing := [seed for seed, run in sources.items() if run is None]:
        raise ConfigError(f"{place}: row {row.name!r}: start_from: row {row.start_from!r} has no seed {missing[0]}")
    return {seed: run for seed, run in sources.items() if run is not None}


State = Literal["complete", "outdated", "interrupted", "new"]


def states(runs: Iterable[Run]) -> dict[str, tuple[State, tuple[str, ...]]]:
    """Name -> how far a run is, and of an outdated one what has changed (keys of its config, columns). "outdated": its
    result stands on other weights or other data than are there now.

    Raises:
        ConfigError: A folder holds the result of another config; the message says which.
    """
    runs = list(runs)
    if not any(run.result.exists() for run in runs):
        return {run.name: (_begun(run), ()) for run in runs}
    from ccr_dist.train.stood_on import Today  # torch

    today = Today()
    return {run.name: _state(run, today) for run in runs}


def state(run: Run) -> State:
    """How far a run is (`states`)."""
    return states([run])[run.name][0]


def _begun(run: Run) -> State:
    return "interrupted" if (run.config.folder / "checkpoints").exists() else "new"


def _state(run: Run, today: Today) -> tuple[State, tuple[str, ...]]:
    if not run.result.exists():
        return _begun(run), ()
    result = read_result(run.result)
    try:
        known = _decisive(from_dict(result.config, name=str(run.result))) if result.config else None
    except ConfigError as error:
        raise ConfigError(
            f"{run.result}: measured under a config that this version does not read ({error}); {REMEDY}"
        ) from None
    if known is None:
        raise ConfigError(f"{run.result}: does not say under which config it was measured; {REMEDY}")
    if changed := differences(known, _decisive(run.config)):
        raise ConfigError(
            f"{run.result}: measured under another config:\n  " + "\n  ".join(changed[:12]) + f"\n{REMEDY}"
        )
    from ccr_dist.train.stood_on import changed_since

    outdated = changed_since(run.config, result, today)
    return ("outdated" if outdated else "complete"), tuple(outdated)


REMEDY = "delete that run's folder to make it again, or give the study another `out`"


def _decisive(config: RunConfig) -> dict[str, Any]:
    """What decides a run's numbers. Options that are newer than the result have their defaults on both sides."""
    values = as_dict(config)
    precision = values.pop("runtime")["precision"]
    return {key: value for key, value in values.items() if key not in ("label", "out")} | {"precision": precision}


def nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
