"""The captions of a published dataset: read from its files, matched to items, translations aligned one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from ccr_dist.data.corpora.formats.files import Files
from ccr_dist.data.corpora.recipes.media import Medium
from ccr_dist.data.corpora.recipes.published_sources import CaptionSource, some
from ccr_dist.errors import DataBudgetError, DataError

Labelled = dict[str, str]  # the captions of an item by their labels, blank ones included
_COMPARED = 1000  # captions of tars, at most


class CaptionReader:
    """Reads caption sources into columns.

    Args:
        name: Name of the recipe, for messages.
        item_of: (raw id, place) -> item; raises DataError for an id that is none.
        unaligned: How many items may have translations that do not match their captions; they get none.
    """

    def __init__(self, name: str, item_of: Callable[[str, str], str], unaligned: int) -> None:
        self._name, self._item_of, self._unaligned = name, item_of, unaligned

    def columns(
        self, files: Files, sources: list[CaptionSource], split_of: dict[str, str], notes: list[str]
    ) -> dict[str, dict[str, Any]]:
        """Read all sources.

        Args:
            files: The dataset's folder.
            sources: What to read, in order.
            split_of: Split by item; other items are left out.
            notes: Gets lines on what is left out or incomplete.

        Returns:
            Values by column and item.

        Raises:
            DataError: A file is not as expected, or nothing in it is about these items.
            DataBudgetError: More than `unaligned` items have translations that do not match their captions.
        """
        texts: dict[str, dict[str, Labelled]] = {}
        for source in sources:
            if set(source.splits) & set(split_of.values()):
                self._read(files, source, split_of, texts.setdefault(source.column, {}), notes)
        columns: dict[str, dict[str, Any]] = {}
        for column in texts:
            base = next(
                (source.translates for source in sources if source.column == column and source.translates), None
            )
            if not texts[column]:
                files_of = [name for source in sources if source.column == column for name in source.read.needs()]
                raise DataError(
                    f"{self._name}: {column}: nothing in {some(files_of)} is about an item of the splits, such as"
                    f" {next(iter(split_of))!r}"
                )
            columns[column] = self._values(column, texts[column], texts.get(base, {}) if base else None)
            notes += _coverage(column, columns[column], split_of, texts[column])
        return columns

    def _read(
        self, files: Files, source: CaptionSource, split_of: dict[str, str], into: dict[str, Labelled], notes: list[str]
    ) -> None:
        """Add the captions of one source to `into`."""
        outside = set()
        for entry in source.read.entries(files):
            item = self._item_of(entry.item, entry.place)
            if item not in split_of:
                outside.add(item)
            elif split_of[item] in source.splits:
                captions = into.setdefault(item, {})
                label = str(len(captions)) if entry.label is None else entry.label
                if label in captions:
                    raise DataError(f"{entry.place}: {entry.item!r} has a second caption numbered {label}")
                captions[label] = entry.text.strip()
        if outside:
            notes.append(
                f"{source.column}: {source.read.file} has {len(outside)} items that are in no split built here"
            )

    def _values(self, column: str, texts: dict[str, Labelled], base: dict[str, Labelled] | None) -> dict[str, Any]:
        """A column's values by item. `base`: the captions that these translate one by one."""
        if column.startswith("description."):
            if many := [item for item, captions in texts.items() if len(captions) > 1]:
                raise DataError(
                    f"{self._name}: {column}: {len(many)} items have several texts: {some(many)}; expected one"
                )
            return {
                item: {"views": {"detail": next(iter(captions.values()))}}
                for item, captions in texts.items()
                if any(captions.values())
            }
        if base is None:
            plain = {item: [text for text in captions.values() if text] for item, captions in texts.items()}
            return {item: captions for item, captions in plain.items() if captions}
        aligned, bad = {}, []
        for item, captions in texts.items():
            wanted = base.get(item, {})
            said = [captions.get(label, "") for label, text in wanted.items() if text]
            if captions.keys() == wanted.keys() and all(said):
                aligned[item] = said
            else:
                bad.append(
                    f"{item} ({len([t for t in wanted.values() if t])} captions,"
                    f" {len([t for t in captions.values() if t])} translations)"
                )
        if len(bad) > self._unaligned:
            raise DataBudgetError(
                f"{self._name}: {column}: the translations of {len(bad)} items do not match their captions one by one, "
                f"unaligned={self._unaligned} allowed (they get no translations): {some(bad)}"
            )
        return aligned


def check_pairing(name: str, media: dict[str, Medium], columns: dict[str, dict[str, Any]], notes: list[str]) -> None:
    """Compare captions with those that tars of img2dataset hold beside their pictures.

    Args:
        name: Name of the recipe, for messages.
        media: Medium by item.
        columns: Values by column and item.
        notes: Gets a line on the comparison.

    Raises:
        DataError: Most captions differ, so the tars' keys probably number another list.
    """
    seen, alike, other = 0, 0, ""
    for item, medium in itertools.islice(((item, one) for item, one in media.items() if one.caption), _COMPARED):
        mine = {
            _letters(text) for texts in columns.values() if isinstance(texts.get(item), list) for text in texts[item]
        }
        if mine:
            own = medium.read_caption() or ""
            seen, alike = seen + 1, alike + (_letters(own) in mine)
            other = other or (f"{item}: {own!r} in {medium.path}" if _letters(own) not in mine else "")
    if 2 * alike < seen:
        raise DataError(
            f"{name}: of {seen} captions in the tars only {alike} are among those of the same items here"
            f" ({other}): the tars' keys seem to number another list; make tars whose keys are this dataset's items"
        )
    if seen:
        notes.append(f"{alike} of {seen} captions that were compared with the tars' own are the same")


def _coverage(
    column: str, values: dict[str, Any], split_of: dict[str, str], texts: dict[str, Labelled]
) -> Iterator[str]:
    """Notes on rows without the column, and on blank captions."""
    for split in dict.fromkeys(split_of.values()):
        items = [item for item, of in split_of.items() if of == split]
        if 0 < (count := sum(item in values for item in items)) < len(items):
            yield f"{column}: {count} of {len(items)} {split} rows have it"
    if blank := sum(not text for captions in texts.values() for text in captions.values()):
        yield f"{column}: {blank} blank captions are left out"


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))
