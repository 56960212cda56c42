"""How a run is carried out."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ccr_dist.config.base import Frozen


class ProfileConfig(Frozen):
    """Steps to put under torch's profiler, counted from 1 at each start of the run."""

    first: int = Field(10, gt=0, description="first step that is recorded")
    steps: int = Field(3, gt=0, description="number of steps that are recorded")


class RuntimeConfig(Frozen):
    """How the run is carried out; may change on resume, except what the docstring of `train.checkpoint` names."""

    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of activations (autocast); weights are fp32"
    )
    workers: int = Field(2, ge=0, description="loader processes a rank")
    lanes: int | None = Field(
        None, gt=0, description="none: the largest power of two that divides the batch, at most the number of shards"
    )
    window_rows: int = Field(4096, gt=0, description="rows shuffled together")
    checkpoint_every: int = Field(100, gt=0, description="steps")
    keep: int = Field(2, gt=0, description="checkpoints kept besides the best")
    checkpoint: Literal["whole", "sharded"] = Field(
        "whole",
        description=(
            "rank 0 gathers whole tensors and writes them; sharded (fsdp2): every rank writes its parts. Resumed by any"
            " strategy"
        ),
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, slower"
    )
    bad_samples: int = Field(
        100, ge=0, description="broken samples, for which others stand in, tolerated in a run, over all ranks; 0: none"
    )
    bad_fraction: float = Field(
        0.01, ge=0, le=1, description="of all samples drawn so far, tolerated where this is more than `bad_samples`"
    )
    micro_batch: int | None = Field(
        None,
        gt=0,
        description=(
            "rows a rank at a time; the loss is still that of the global batch, exactly, for a second forward (gradient"
            " caching)"
        ),
    )
    skipped_steps: int = Field(
        10, ge=0, description="steps without a finite gradient tolerated in a run; they change nothing"
    )
    skipped_fraction: float = Field(
        0.2, ge=0, le=1, description="and at most this part of all its steps, though always one if skipped_steps has it"
    )
    timeout: float = Field(1800, gt=0, description="seconds that a collective waits for the slowest rank")
    hang: float = Field(
        1200,
        gt=0,
        description=(
            "seconds without a sign of life (a part of a step, a block of a validation) after which a rank prints its"
            " stacks and ends; less than `timeout`, or collectives give up first"
        ),
    )
    cached_features: bool = Field(
        True,
        description="a column of the frozen backbone's features, where there is one, stands in for what it was made of",
    )
    threads: int | None = Field(None, gt=0, description="CPU threads per rank; default: cores / ranks of the machine")
    log_every: int = Field(10, gt=0, description="steps")
    eval_batch: int = Field(256, gt=0, description="items or texts that a rank encodes at a time in evaluation")
    contrastive: Literal["auto", "gathered", "tiled", "ring"] = Field(
        "auto",
        description=(
            "logits a rank holds at once: gathered: (n, B); tiled: tiles; ring: tiles, and features are passed round"
            " instead of gathered. The same loss; auto: tiled where (n, B) is more than a tile"
        ),
    )
    compile: bool = Field(
        False,
        description="torch.compile of the backbone's frozen blocks: the same but for rounding, in resumed runs, too",
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="of one device at this precision, for MFU in the log; default: from a table of GPUs"
    )
    profile: ProfileConfig | None = Field(None, description="steps that rank 0 records in RUN/profile")
    wandb: str | None = Field(
        None, description="project of Weights & Biases to log to, too; WANDB_MODE=offline is respected"
    )
    trace: Literal["off", "samples", "gradients"] = Field(
        "off", description="write what every rank saw (and the reduced gradients) to RUN/trace"
    )

    @model_validator(mode="after")
    def _hang_is_found_first(self) -> Self:
        if self.hang >= self.timeout:
            raise ValueError(
                f"hang ({self.hang:g} s) must be less than timeout ({self.timeout:g} s): ranks that wait would end"
                " without a word"
            )
        return self
