"""Counts how many concepts of a dataset occur in the texts of another one: what a model may have read of test items.

Case, punctuation, leading articles and white space do not count; inflected words are other words. Languages that put no
spaces between words are compared as whole texts only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ccr_dist.data.media.text import texts_of
from ccr_dist.data.table.dataset import Dataset, open_all

_WORD = re.compile(r"[^\W_]+")
_ARTICLES = ("a", "an", "the")
_SHOWN = 10


def words(text: str) -> tuple[str, ...]:
    """The words of a text: NFC, without case and punctuation, without leading articles unless there is nothing else."""
    found = _WORD.findall(unicodedata.normalize("NFC", text).casefold())
    start = next((i for i, word in enumerate(found) if word not in _ARTICLES), 0)
    return tuple(found[start:])


def all_texts(dataset: Dataset, column: str) -> Iterable[str]:
    """The texts of a column, row by row. Raises DataError if the dataset has no such column."""
    values = dataset.column(column)
    for shard in range(len(dataset.shards)):
        for row in range(dataset.shard_rows[shard]):
            yield from texts_of(values.value(shard, row))


def overlap(texts: str | Path, datasets: str | Path, *, column: str, among: str) -> dict[str, Any]:
    """Count the concepts that occur in texts.

    Args:
        texts: A dataset, or a folder of them: the texts.
        datasets: A dataset, or a folder of them: the concepts.
        column: Column of the concepts: a label or captions.
        among: Column of the texts.

    Returns:
        {"texts", "rows", "column", "among", "datasets": [...]}, and of each dataset {"name", "split", "concepts",
        "whole", "within", "examples"}: distinct concepts, how many of them are a whole text, and how many occur in a
        text as words (which includes the whole ones); `examples` are some of the latter.

    Raises:
        DataError: There is no dataset, or no such column.
    """
    read = open_all(texts)
    counted = occurring(read, open_all(datasets), column=column, among=among)
    rows = sum(dataset.rows for dataset in read)
    return {"texts": str(texts), "rows": rows, "column": column, "among": among, "datasets": counted}


def occurring(
    texts: Sequence[Dataset], datasets: Sequence[Dataset], *, column: str, among: str
) -> list[dict[str, Any]]:
    """Count the concepts that occur in texts, those of several datasets taken together.

    Args:
        texts: The texts.
        datasets: The concepts.
        column: Column of the concepts: a label or captions.
        among: Column of the texts.

    Returns:
        As `overlap` has it of each dataset.

    Raises:
        DataError: There is no such column.
    """
    found = [(dataset, {words(text) for text in all_texts(dataset, column)}) for dataset in datasets]
    wanted = _by_first_word(set().union(*(concepts for _, concepts in found)))
    whole: set[tuple[str, ...]] = set()
    within: set[tuple[str, ...]] = set()
    for text in (text for dataset in texts for text in all_texts(dataset, among)):
        whole.add(words(text))
        spaced = _WORD.findall(unicodedata.normalize("NFC", text).casefold())
        for start, word in enumerate(spaced):
            for length in wanted.get(word, ()):
                within.add(tuple(spaced[start : start + length]))
    return [
        {
            "name": dataset.name,
            "split": dataset.split,
            "concepts": len(concepts),
            "whole": len((concepts & whole) - {()}),
            "within": len((concepts & (within | whole)) - {()}),
            "examples": [" ".join(each) for each in sorted((concepts & (within | whole)) - {()})[:_SHOWN]],
        }
        for dataset, concepts in found
    ]


def _by_first_word(concepts: Iterable[tuple[str, ...]]) -> dict[str, set[int]]:
    """The lengths of the concepts, in words, by their first word."""
    lengths: dict[str, set[int]] = {}
    for concept in concepts:
        if concept:
            lengths.setdefault(concept[0], set()).add(len(concept))
    return lengths


def render(figures: dict[str, Any]) -> str:
    """The result of `overlap` as lines for people."""
    lines = []
    for each in figures["datasets"]:
        share = f" ({100 * each['within'] / each['concepts']:.0f} %)" if each["concepts"] else ""
        lines.append(
            f"{each['name']}, {each['split']}: of {each['concepts']} concepts ({figures['column']}) {each['whole']} are"
            f" a whole text, {each['within']}{share} occur as words, in {figures['rows']} rows of {figures['among']}"
        )
        if each["examples"]:
            lines.append(f"  {', '.join(each['examples'])}{', ...' if each['within'] > _SHOWN else ''}")
    return "\n".join(lines)
