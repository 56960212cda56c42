"""What is known of a GPU, a node and a link. Typed and strict; every figure has a source."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PRECISIONS = ("bf16", "fp16", "tf32", "fp32", "fp64")


class _Sourced(BaseModel):
    """Base: unknown keys are errors, and `sources` has a text for each figure and nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: dict[str, str] = Field(description="where each figure is from")

    @model_validator(mode="after")
    def _all_have_sources(self) -> Self:
        figures = type(self).model_fields.keys() - {"sources", "title", "cuda", "kind"}
        if missing := sorted(figures - self.sources.keys()):
            raise ValueError(f"sources: each figure needs one; missing: {', '.join(missing)}")
        if unknown := sorted(self.sources.keys() - figures):
            raise ValueError(f"sources: {', '.join(unknown)}: there is no such figure")
        return self


class Link(_Sourced):
    """A link between GPUs, as one of them sees it."""

    kind: Literal["inside", "between"] = Field(description="inside a node, or between nodes")
    rate: Positive = Field(description="10^9 bytes/s that a GPU, or an adapter, sends, while it receives as much")
    reached: float = Field(gt=0, le=1, description="part of the rate that collectives of large buffers reach")
    latency: Positive = Field(description="microseconds that a step of a ring takes")

    @property
    def bytes_per_s(self) -> float:
        """Bytes/s that collectives of large buffers reach."""
        return self.rate * self.reached * 1e9

    @property
    def alpha(self) -> float:
        """Seconds that a step of a ring takes."""
        return self.latency / 1e6


class Node(BaseModel):
    """How GPUs of a kind usually come."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpus: int = Field(gt=0, description="GPUs of a node")
    link: str = Field(description="name of the link between them")
    network: str = Field(description="name of the link between nodes")
    adapters: int = Field(gt=0, description="adapters of a node to that network; its GPUs share them")


class Device(_Sourced):
    """A GPU."""

    title: str = Field(description="full name")
    cuda: tuple[tuple[str, ...], ...] = Field(min_length=1, description="words that are all in the name by CUDA")
    tflops: dict[str, Positive] = Field(
        description="10^12 FLOP/s of matrix products, dense, two a multiply-add; a precision without units is left out"
    )
    memory: Positive = Field(description="GiB that CUDA offers")
    bandwidth: Positive = Field(description="10^9 bytes/s of the memory")
    node: Node

    @model_validator(mode="after")
    def _has_a_peak(self) -> Self:
        if unknown := sorted(self.tflops.keys() - set(PRECISIONS)):
            raise ValueError(f"tflops: {', '.join(unknown)}: expected {', '.join(PRECISIONS)}")
        if "fp32" not in self.tflops:
            raise ValueError("tflops: fp32 is missing, which every device computes in")
        return self

    def peak(self, precision: str, *, tf32: bool = False) -> float | None:
        """FLOP/s of matrix products.

        Args:
            precision: fp32, bf16, fp16 or fp64.
            tf32: whether fp32 products may be rounded to TF32.

        Returns:
            None for a precision that the device has no units for.
        """
        found = self.tflops.get("tf32" if precision == "fp32" and tf32 and "tf32" in self.tflops else precision)
        return None if found is None else 1e12 * found

    @property
    def memory_bytes(self) -> float:
        """Bytes of memory."""
        return self.memory * 2**30

    @property
    def bytes_per_s(self) -> float:
        """Bytes/s of the memory."""
        return self.bandwidth * 1e9
