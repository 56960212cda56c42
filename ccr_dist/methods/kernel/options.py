"""Options of `kernel`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ccr_dist.config import Stage
from ccr_dist.methods.query_side.options import QuerySideOptions
from ccr_dist.methods.registry import register_options


@register_options("kernel")
class KernelOptions(QuerySideOptions):
    """Every combination of the lists is solved for; validation keeps the best."""

    name: Literal["kernel"]
    landmarks: int = Field(
        4096, gt=0, description="captions that the kernel compares with; memory grows with its square, time with it"
    )
    gamma: float = Field(
        2.0, gt=0, description="of the Gaussian kernel exp(-gamma d²/s), s: the mean squared distance of two landmarks"
    )
    penalties: tuple[float, ...] = Field(
        (1e-3, 1e-2, 3e-2, 1e-1), min_length=1, description="of the ridge; scikit-learn's `alpha`"
    )
    pictures: tuple[float, ...] = Field(
        (0.5,), min_length=1, description="weight of the pictures in the target, 0 to 1, beside the English captions"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if any(penalty <= 0 for penalty in self.penalties):
            raise ValueError("penalties: expected numbers above 0")
        if any(not 0 <= weight <= 1 for weight in self.pictures):
            raise ValueError("pictures: expected weights from 0 to 1")
        return self

    def training_stages(self) -> dict[str, Stage]:
        pictures = {"visual"} if any(self.pictures) else set()
        return {
            "fit": Stage(
                frozenset({"query_feature", "source_feature", *pictures}),
                "coefficients of the landmarks, in closed form: towards English features"
                + (" and pictures" if pictures else ""),
                frozenset(pictures),
                closed_form=True,
                some=frozenset(pictures),
            )
        }
