"""Options of `map`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ccr_dist.config import Stage
from ccr_dist.methods.query_side.options import LinearMapOptions
from ccr_dist.methods.registry import register_options


@register_options("map")
class MapOptions(LinearMapOptions):
    """Every combination of the lists is solved for; validation keeps the best."""

    name: Literal["map"]
    penalties: tuple[float, ...] = Field(
        (1e-3, 1e-2, 1e-1, 1.0, 10.0),
        min_length=1,
        description="of the ridge, relative to the mean variance of a query feature; 0: least squares",
    )
    ranks: tuple[int | None, ...] = Field((None,), min_length=1, description="rank of the map; null: full")
    pictures: tuple[float, ...] = Field(
        (0.0,),
        min_length=1,
        description="weight of the pictures in the target, 0 to 1, beside the English captions (`space: shared` only)",
    )
    centre: Literal["all", "language"] = Field(
        "all", description="subtract the mean query feature of all languages, or of each trained language its own"
    )
    whiten: bool = Field(
        False, description="penalise in directions of equal variance, so that it shrinks all of them alike"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if any(penalty < 0 for penalty in self.penalties):
            raise ValueError("penalties: expected numbers of at least 0")
        if any(rank is not None and rank < 1 for rank in self.ranks):
            raise ValueError("ranks: expected whole numbers of at least 1, or null")
        if any(not 0 <= weight <= 1 for weight in self.pictures):
            raise ValueError("pictures: expected weights from 0 to 1")
        if any(self.pictures) and self.space != "shared":
            raise ValueError("pictures: they are in the shared space, so the map has to end there: set `space: shared`")
        return self

    def training_stages(self) -> dict[str, Stage]:
        pictures = {"visual"} if any(self.pictures) else set()
        return {
            "fit": Stage(
                frozenset({"query_feature", "source_feature", *pictures}),
                "the map, in closed form: towards English features" + (" and pictures" if pictures else ""),
                frozenset(pictures),
                closed_form=True,
            )
        }
