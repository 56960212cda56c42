"""What a step of a stage holds and computes on one rank, found without weights and without computing it.

The run's method is built of fake tensors (shapes and types, no memory), and the step's own code runs on them: `Step`,
the losses with the features of all ranks, the backward, gradient caching, the update. A dispatch mode sees every
operator: what it computes, what it reads and writes, and how long its results live.
"""

from __future__ import annotations

from dataclasses import dataclass

from ccr_dist.config import RunConfig


@dataclass(frozen=True)
class Live:
    """Bytes that are live at one moment of a step, beside parameters and what a strategy holds.

    Attributes:
        phase: forward, losses, backward or update.
        activations: kept for the backward.
        loss: logits, labels and whatever else the losses make.
        gathered: features of all ranks.
        workspace: what is gone before the step ends its phase: results of frozen towers, gradients of activations,
            temporaries of the optimiser.
        gradients: of trained parameters, as far as the backward has come.
    """

    phase: str
    activations: int
    loss: int
    gathered: int
    workspace: int
    gradients: int

    @property
    def beside(self) -> int:
        """All but the gradients, in bytes."""
        return self.activations + self.loss + self.gathered + self.workspace


@dataclass(frozen=True)
class Trace:
    """A step of one stage on one rank: the one that has most rows.

    Attributes:
        stage: name of the stage.
        world: number of ranks.
        rows: rows of the global batch on this rank.
        micro_batches: forwards of parts of them (1: the batch is not cut).
        precision: fp32, bf16 or fp16.
        checkpointing: whether activations inside blocks are computed again.
        tokens: positions of a caption.
        frozen, trained: ELEMENTS of frozen parameters and buffers, and of trained parameters.
        frozen_bytes, trained_bytes: their bytes.
        flops: by phase (forward, losses, backward, update), two a multiplication with addition, of all micro-batches.
        moved: bytes that the same operators read and write, by phase.
        kernels: how many operators were called, by phase.
        activations: bytes of activations and losses where most is live.
        workspace: bytes of temporaries there.
        gathered: most bytes of features gathered from all ranks at once.
        moments: the moments of highest memory: whatever share of the gradients a strategy keeps, the highest of its
            moments is among these.
        tensors: elements of each trained parameter, in the order of the optimiser.
        blocks: bytes of each frozen block, as fsdp2 gathers them one by one.
        frozen_tensors: elements of each frozen parameter.
        auxiliary: bytes of networks with optimisers of their own, once (weights).
        ema: the stage keeps a moving average of its weights.
        lazy: bytes of embedding tables whose rows are updated lazily, part of `trained_bytes`.
        notes: what could not be known, a sentence each.
    """

    stage: str
    world: int
    rows: int
    micro_batches: int
    precision: str
    checkpointing: bool
    tokens: int
    frozen: int
    trained: int
    frozen_bytes: int
    trained_bytes: int
    flops: dict[str, float]
    moved: dict[str, float]
    kernels: dict[str, int]
    activations: int
    workspace: int
    gathered: int
    moments: tuple[Live, ...] = ()
    tensors: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    frozen_tensors: tuple[int, ...] = ()
    auxiliary: int = 0
    ema: bool = False
    lazy: int = 0
    notes: tuple[str, ...] = ()


def trace(
    config: RunConfig,
    stage: str,
    *,
    world: int,
    precision: str | None = None,
    checkpointing: bool | None = None,
    micro_batch: int | None = None,
    tokens: int | None = None,
) -> Trace:
    """Trace a step of a stage.

    Args:
        config: of the run. Weights that it names need not be there, as long as their architecture is known.
        stage: name of a stage.
        world: number of ranks; the global batch is the config's.
        precision: None: the config's.
        checkpointing: None: the config's.
        micro_batch: rows of a part of the rank's batch; None: the config's; 0: the batch is not cut.
        tokens: positions of a caption; None: what the text tower takes.

    Returns:
        The trace.

    Raises:
        ConfigError: there is no such stage, the architecture of a model is not known without its weights, or the
            step calls something whose FLOPs cannot be counted.
    """
    raise NotImplementedError
