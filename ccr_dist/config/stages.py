"""The sections of training stages."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from ccr_dist.config.base import Frozen
from ccr_dist.config.data import TrainSet


class StageConfig(Frozen):
    """One training stage: how long and how fast. The method decides what it optimises."""

    steps: int = Field(gt=0, description="optimiser steps")
    batch: int = Field(gt=0, description="global batch, samples")
    lr: float = Field(gt=0, description="highest learning rate")
    warmup: float = Field(0.1, ge=0, lt=1, description="fraction of the steps")
    schedule: Literal["cosine", "linear", "constant", "bert", "hf_linear"] = Field(
        "cosine",
        description=(
            "after the warm-up; bert: BertAdam's, a cosine over all steps that the warm-up is cut out of; hf_linear: "
            "transformers', whose first step has the rate 0 (LECCR)"
        ),
    )
    schedule_steps: int | None = Field(
        None,
        gt=0,
        description=(
            "steps that the schedule is made for, at least `steps`; default: `steps`, so that it reaches its end"
        ),
    )
    optimizer: Literal["adamw", "bert_adam", "hf_adamw"] = Field(
        "adamw",
        description=(
            "bert_adam: no bias correction, as released with MLA and DASD; hf_adamw: transformers' former one, as"
            " released with LECCR: eps is added before the bias correction, decay comes after the step"
        ),
    )
    betas: tuple[float, float] = Field((0.9, 0.98), description="of Adam")
    eps: float = Field(1e-8, gt=0, description="of Adam")
    weight_decay: float = Field(
        0.0, ge=0, description="decoupled; not of vectors (biases, norms) nor of embedding tables"
    )
    decay_tables: bool = Field(
        False, description="embedding tables are decayed, too: rows of words that a batch lacks shrink"
    )
    lazy_tables: bool = Field(
        False,
        description=(
            "a step moves only those rows of embedding tables that its batch uses; not what dense AdamW does:"
            " train/optimizers/lazy_tables.py"
        ),
    )
    decay_vectors: tuple[str, ...] = Field(
        (), description="names of vectors that are decayed, too; * stands for anything"
    )
    lr_scale: dict[str, float] = Field(
        default_factory=dict, description="prefix of parameter names -> factor on their rate; the longest counts"
    )
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the gradient; none: not clipped")
    clip: Literal["global", "tensor"] = Field(
        "global", description="clip_norm bounds the whole gradient, or each tensor's by itself"
    )
    validate_every: int | None = Field(None, gt=0, description="steps; default: only at the end of the stage")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="validate, select and publish a moving average of the weights: how much of it a step keeps",
    )
    train: tuple[TrainSet, ...] | None = Field(
        None, description="other training datasets for this stage (for example text only)"
    )
    negatives: Literal["global", "local"] = Field(
        "global",
        description=(
            "a row is held against the global batch; local: its process' rows alone, so that the result depends on "
            "the number of processes"
        ),
    )

    @model_validator(mode="after")
    def _schedule_is_long_enough(self) -> Self:
        if self.schedule_steps is not None and self.schedule_steps < self.steps:
            raise ValueError(
                f"schedule_steps: {self.schedule_steps} are fewer than the {self.steps} steps of the stage; leave"
                " it out"
            )
        return self


class FitConfig(Frozen):
    """A stage in closed form: all rows are summed up once, then linear systems are solved. It counts as one step."""

    batch: int = Field(8192, gt=0, description="rows that are summed up at a time; does not change the result")
    train: tuple[TrainSet, ...] | None = Field(None, description="other training datasets for this stage")

    steps: ClassVar[int] = 1
    validate_every: ClassVar[None] = None
    ema: ClassVar[None] = None
    negatives: ClassVar[str] = "global"


def _kind(value: Any) -> str:
    """A section that was checked as a `FitConfig` is one: nothing in it says so, its method does."""
    return "in closed form" if isinstance(value, FitConfig) else "of steps"


AnyStage = Annotated[
    Annotated[StageConfig, Tag("of steps")] | Annotated[FitConfig, Tag("in closed form")],
    Discriminator(_kind),
]
