"""What a method says of itself without torch: the base of its options, and of its stages what they read and train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ccr_dist.config.base import Frozen
from ccr_dist.config.data import DataConfig

ENGLISH = "en"
INPUTS = frozenset(
    {
        "visual",
        "tokens",
        "source_text",
        "source_feature",
        "target_text",
        "description",
        "back_text",
        "back_feature",
        "query_feature",
    }
)


@dataclass(frozen=True)
class Stage:
    """One training stage of a method: what it reads and trains. How long and how fast is `StageConfig`.

    Attributes:
        needs: the fields of a batch that the stage reads, out of `INPUTS`. "visual" is a picture or one vector a row;
            "tokens" is a picture or any number of vectors a row (tokens of a picture, frames of a video).
            "source_feature" is the English feature of the caption: the cached column where the data names one,
            otherwise computed from `source_text` in every step; "back_feature" is that of the back-translation;
            "query_feature" is the query encoder's feature of the caption in the batch's language, likewise.
        trains: what is trained and towards what, in a few words, for people.
        frozen: "visual" or "tokens", where the stage reads pictures only as features of the frozen backbone, which
            never change: cached features may then replace the pictures.
        closed_form: the stage sums up cached features and solves for its weights; its section is a `FitConfig`.
        some: "visual", where rows of `data.texts`, which have no pictures, are read as well.
    """

    needs: frozenset[str]
    trains: str
    frozen: frozenset[str] = frozenset()
    closed_form: bool = False
    some: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        assert self.needs <= INPUTS, f"unknown batch fields {set(self.needs - INPUTS)}"
        assert self.frozen <= self.needs & {"visual", "tokens"}, f"not read, or no pictures: {set(self.frozen)}"
        assert self.some <= self.needs & {"visual"}, f"not read, or no pictures: {set(self.some)}"
        assert not {"visual", "tokens"} <= self.needs, "a stage reads one vector a row or several, not both"

    @property
    def reads_texts(self) -> bool:
        """Whether datasets without pictures are of use to the stage."""
        return {"visual", "tokens"} & self.needs <= self.some


class MethodOptions(Frozen):
    """Base of every method's options: its settings, and what it reads with them. A subclass overrides what differs from
    a zero-shot retriever.
    """

    name: str
    # queries in other languages than those of the training can be encoded, too
    any_language: ClassVar[bool] = False

    def training_stages(self) -> dict[str, Stage]:
        """Stages in their order, by the names under which a run config gives steps, batch and rate. Empty: nothing is
        trained.
        """
        return {}

    def learner(self) -> MethodOptions:
        """The options of the method that was trained: these, unless a method gives another one a second source."""
        return self

    def gallery(self) -> frozenset[str]:
        """What the method reads of an item to encode it: "visual" or "tokens" (as in `Stage.needs`), and
        "description".
        """
        return frozenset({"visual"})

    def query_columns(self, data: DataConfig) -> dict[str, str]:
        """Language -> the column that its queries are read from.

        Raises:
            ConfigError: `data` does not name a column that the method needs.
        """
        return dict(data.queries)

    def companions(self, data: DataConfig) -> dict[str, str]:
        """Language -> a column of texts aligned with its queries, for methods that ask each query twice.

        Raises:
            ConfigError: `data` does not name a column that the method needs.
        """
        return {}

    @classmethod
    def earlier(cls, known: Mapping[str, Any]) -> dict[str, Any]:
        """Values that options newer than a run had in effect, where these are not their defaults.

        Args:
            known: the options that were recorded when the run began.
        """
        return {}

    @classmethod
    def otherwise(cls, known: Mapping[str, Any]) -> list[str]:
        """What this version computes differently from the one that began a run, where no option restores it.

        Args:
            known: the options that were recorded when the run began.

        Returns:
            One line for people about each difference; the run continues nevertheless.
        """
        return []
