"""Measures a column of translated captions: against human captions, against its source, and by translating back.

chrF is sacrebleu's (Popović 2015). It compares characters, so no language needs a tokenizer. Changes nothing.
"""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccr_dist.data.media.text import has_text, texts_of
from ccr_dist.data.storage import store
from ccr_dist.data.table.dataset import Column, Dataset, open_all
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.generate.jobs.translate import language_of
from ccr_dist.generate.text import identify, languages
from ccr_dist.generate.text.filters import COUNTED, Filters, is_long, repeats

if TYPE_CHECKING:
    from rich.console import Group


def quality(
    path: str | Path, column: str, *, human: str | None = None, source: str | None = None, back: str | None = None
) -> list[dict[str, Any]]:
    """Measure a caption column in each dataset of a folder that has it.

    Args:
        path: A dataset or a folder of datasets.
        column: The column of translated captions.
        human: Column of human captions to compare with; by default `caption.<lang>`, if it exists.
        source: Column that the captions were made from; by default the one in the plan.
        back: Column of captions translated back into the source's language; by default one that was made from `column`.

    Returns:
        One object per dataset; all values but `split` and names may be None, if they cannot be measured:
        - `rows` with captions, `captions` that are not blank, `nulls` (rows without captions), `unfinished` (rows in
          shards that are not done);
        - `chrf` in 0 .. 100, over `chrf_captions`: against the human captions. If a row has as many as translations,
          the i-th is compared with the i-th, otherwise each translation with all of them (the best counts). A blank
          translation scores 0; a blank human caption is left out;
        - `back_chrf`, over `back_captions`: the i-th caption translated back against the i-th of the source;
        - `length_ratio`: characters per character of the source. `identical`, `empty`, `long` and `repeated`: shares of
          captions that equal their source, are blank, are several times as long, or are loops while their source is
          not. Blank captions of the source are left out;
        - `language`: share of a sample of `language_pieces` pieces that is in the column's language; `language_seen`:
          shares of the languages found;
        - `filtered`: the job's counts of dropped and cleaned answers; `warnings`: lines on what a user should look at.

    Raises:
        ConfigError: sacrebleu is missing, a name has no language, or no dataset has the column.
        DataError: Columns do not fit each other.
    """
    datasets = [dataset for dataset in open_all(path) if column in dataset.columns()]
    if not datasets:
        open_all(path)[0].column(column)  # raises, and says what there is
    for option, name in (("--human", human), ("--source", source), ("--back", back)):
        if name is not None and not any(name in dataset.columns() for dataset in datasets):
            raise ConfigError(f"{option} {name}: no dataset of {path} that has {column} has this column")
    return [_measure(dataset, dataset.column(column), human, source, back) for dataset in datasets]


_REPEATS = Filters().repeats
_MUCH = 0.02
_WARNED = {
    "identical": "came out as they went in",
    "empty": "came out as nothing",
    "long": "are several times as long as their source: look for notes and preambles",
    "repeated": "are loops",
}


class _Chrf:
    """Corpus chrF, updated caption by caption. Sums statistics, since n-grams of all texts would fill the memory."""

    def __init__(self) -> None:
        try:
            from sacrebleu.metrics import CHRF
        except ImportError as e:
            raise ConfigError("chrF needs sacrebleu: pip install 'ccr-dist[quality]'") from e
        self._metric = CHRF()
        self._sums = [0] * (3 * CHRF.CHAR_ORDER)  # per order: n-grams of the hypothesis, of the reference, in both
        self.captions = 0

    def add(self, texts: list[str], references: list[list[str]]) -> None:
        """Add texts, each with at least one reference."""
        # sacrebleu wants the first of all texts, the second of all, ...
        streams = [list(stream) for stream in zip_longest(*references)]
        for statistics in self._metric._extract_corpus_statistics(texts, streams):
            self._sums = [a + b for a, b in zip(self._sums, statistics, strict=True)]
        self.captions += len(texts)

    @property
    def score(self) -> float | None:
        return round(self._metric._compute_score_from_stats(self._sums).score, 2) if self.captions else None


def _measure(
    dataset: Dataset, column: Column, human: str | None, source: str | None, back: str | None
) -> dict[str, Any]:
    texts = _Texts(column)
    human = human or f"caption.{language_of(column.name)}"
    source = source or next(
        (name for name in column.plan.get("inputs", {}) if name.startswith(("caption.", "description."))), None
    )
    back = back or _returned(dataset, column.name, source)
    made_from, humans, returned = (
        _texts(dataset, name) for name in (source, human if human != column.name else None, back)
    )
    chrf, back_chrf = _Chrf(), _Chrf()
    rows = nulls = captions = unfinished = originals = identical = empty = 0
    letters = [0, 0]
    long = looping = 0
    sample, filtered = identify.Sample(), Counter[str]()
    for shard, count in enumerate(dataset.shard_rows):
        if shard not in texts.done:
            unfinished += count
            continue
        filtered += _counted(column, shard)
        for row in range(count):
            mine = texts.value(shard, row)
            if mine is None:
                nulls += 1
                continue
            said = sum(map(has_text, mine))
            for text in mine:
                sample.add(text)
            rows, nulls, captions = rows + bool(said), nulls + (not said), captions + said
            if humans is not None and (theirs := humans.value(shard, row)):
                _compare(chrf, mine, [[text] for text in theirs] if len(theirs) == len(mine) else [theirs] * len(mine))
            if made_from is None or (before := made_from.value(shard, row)) is None:
                continue
            pairs = [
                (" ".join(a.split()), b)
                for a, b in zip(before, texts.aligned(mine, made_from, before, shard, row), strict=True)
            ]
            pairs = [(a, b) for a, b in pairs if has_text(a)]
            originals += len(pairs)
            identical += sum(a == b for a, b in pairs)
            empty += sum(not has_text(b) for _, b in pairs)
            long += sum(is_long(b, a) for a, b in pairs)
            looping += sum(repeats(b, _REPEATS) and not repeats(a, _REPEATS) for a, b in pairs)
            letters = [letters[0] + sum(len(a) for a, _ in pairs), letters[1] + sum(len(b) for _, b in pairs)]
            if returned is not None and (again := returned.value(shard, row)) is not None:
                _compare(back_chrf, returned.aligned(again, made_from, before, shard, row), [[text] for text in before])
    figures = {
        "dataset": dataset.place,
        "split": dataset.split,
        "column": column.name,
        "human": humans and humans.name,
        "source": made_from and made_from.name,
        "back": returned and returned.name,
        "rows": rows,
        "captions": captions,
        "nulls": nulls,
        "unfinished": unfinished,
        "chrf": chrf.score,
        "chrf_captions": chrf.captions,
        "back_chrf": back_chrf.score,
        "back_captions": back_chrf.captions,
        "length_ratio": round(letters[1] / letters[0], 3) if letters[0] else None,
        "identical": round(identical / originals, 4) if originals else None,
        "empty": round(empty / originals, 4) if originals else None,
        "long": round(long / originals, 4) if originals else None,
        "repeated": round(looping / originals, 4) if originals else None,
        **identify.about(sample, language_of(column.name)),
        "filtered": dict(sorted(filtered.items())),
    }
    return figures | {"warnings": _warnings(figures)}


def _counted(column: Column, shard: int) -> Counter[str]:
    """The counts of the job that made a shard, by name; empty if it has none."""
    try:
        counts = store.read_json(column.path(shard, "stats"))["counts"]
        return Counter({name: int(counts[name]) for name in COUNTED if counts.get(name)})
    except (
        DataError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ):  # made in another way, or by an earlier version
        return Counter()


def _warnings(figures: dict[str, Any]) -> list[str]:
    """Lines on figures that a user should look at."""
    warnings, tag = [], language_of(figures["column"])
    if (share := figures["language"]) is not None and share < identify.SURE:
        seen = ", ".join(
            f"{languages.name(other) or other} {part:.0%}" for other, part in list(figures["language_seen"].items())[:3]
        )
        warnings.append(
            f"{share:.0%} of {figures['language_pieces']} sampled pieces look like {languages.name(tag) or tag}; they"
            f" look like: {seen}. Was the model told the direction?"
        )
    elif share is None and not identify.installed():
        warnings.append("the language was not looked at: pip install 'ccr-dist[quality]'")
    for name, what in _WARNED.items():
        if (share := figures[name]) is not None and share > _MUCH:
            warnings.append(f"{share:.1%} of the captions {what}")
    return warnings


def _compare(chrf: _Chrf, texts: list[str], references: list[list[str]]) -> None:
    """Add the texts that have a reference. `references`: any number per text; blank ones are left out."""
    said = [list(filter(has_text, some)) for some in references]
    if any(said):
        chrf.add([text for text, some in zip(texts, said, strict=True) if some], [some for some in said if some])


def _returned(dataset: Dataset, name: str, source: str | None) -> str | None:
    """The first column in the language of `source` that was translated from `name`."""
    if source is None or not source.startswith("caption."):
        return None
    same = [other for other in dataset.columns() if other.startswith(f"caption.{language_of(source)}.")]
    return next((other for other in same if name in dataset.column(other).plan.get("inputs", {})), None)


class _Texts:
    """The texts in the finished shards of a column of texts or views."""

    def __init__(self, column: Column) -> None:
        column.require_kind(("texts", "views"), "quality")
        self.column, self.name, self.done = column, column.name, column.finished()

    def value(self, shard: int, row: int) -> list[str] | None:
        return texts_of(self.column.value(shard, row)) or None if shard in self.done else None

    def aligned(self, mine: list[str], source: _Texts, before: list[str], shard: int, row: int) -> list[str]:
        """`mine`, if it has one caption for each of the source; otherwise DataError."""
        if len(mine) != len(before):
            where = self.column.where(shard, row)
            raise DataError(
                f"{where}: {len(mine)} captions, but {len(before)} in {source.name}: not made from it, or name it with"
                " --source"
            )
        return mine


def _texts(dataset: Dataset, name: str | None) -> _Texts | None:
    return _Texts(dataset.column(name)) if name is not None and name in dataset.columns() else None


def render(figures: list[dict[str, Any]]) -> Group:
    """Format figures for a terminal, one line per dataset.

    Args:
        figures: As `quality` returns them.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    used = {role: next((one[role] for one in figures if one[role]), "none") for role in ("source", "human", "back")}
    titles = {
        "split": "split",
        "captions": "captions",
        "chrf": "chrF",
        "back_chrf": "back chrF",
        "length_ratio": "length",
    }
    titles |= {"identical": "same", "empty": "empty"}
    further = {"repeated": "loops", "long": "long", "language": "language"}  # where there is something to see
    titles |= {name: title for name, title in further.items() if any(one[name] for one in figures)}
    titles |= {"nulls": "null", "unfinished": "to do"}
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in titles.values():
        table.add_column(title, justify="left" if title == "split" else "right")
    for one in figures:
        cells = {name: "-" if one[name] is None else str(one[name]) for name in titles}
        cells |= {
            name: f"{one[name]:.1%}"
            for name in ("identical", "empty", *further)
            if name in titles and one[name] is not None
        }
        table.add_row(*cells.values())
    about = f"{figures[0]['column']}; " + ", ".join(f"{role}: {name}" for role, name in used.items())
    notes = [
        Text(f"{one['split']}: counted by the job: {_listed(one['filtered'])}", "dim")
        for one in figures
        if one["filtered"]
    ]
    notes += [Text(f"{one['split']}: {warning}", "yellow") for one in figures for warning in one["warnings"]]
    return Group(Text(about), table, *notes)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
