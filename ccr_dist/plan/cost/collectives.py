"""How long collectives take: the alpha-beta model (Hockney, 1994; Thakur, Rabenseifner and Gropp, 2005) of rings and
trees, inside a node and between nodes.

A step of a ring takes `alpha` seconds and `beta` seconds a byte. With n ranks and S bytes in the whole buffer:

    all-gather, reduce-scatter     (n-1) alpha + (n-1)/n S beta
    all-reduce, ring               2 (n-1) alpha + 2 (n-1)/n S beta
    all-reduce, tree               2 log2(n) alpha + 2 S beta

Over several nodes, rings go through each node once, over all of its adapters: bytes flow at the rate of the slower of
the GPUs' link and the node's network, and of the steps, one a node crosses the network. A tree has a chain inside each
node and a tree over nodes. NCCL takes the faster of both for each size, and so does `all_reduce`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ccr_dist.errors import ConfigError

TREE = 0.9  # of the rate of rings that trees reach (NCCL 2.12, src/graph/tuning.cc)


@dataclass(frozen=True)
class Wire:
    """A link.

    Attributes:
        alpha: seconds of a step.
        rate: bytes/s in one direction.
    """

    alpha: float
    rate: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ConfigError(f"a link of {self.rate:g} bytes/s: nothing could be sent; expected a speed above 0")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ConfigError(f"a link with a latency of {self.alpha:g} s: expected 0 or more")


@dataclass(frozen=True)
class Ranks:
    """Ranks, and how they are joined.

    Attributes:
        nodes: number of nodes.
        per_node: ranks of each.
        inside: the link of a rank to the others of its node.
        between: all of a node's adapters together.
        base: seconds that a collective takes beside its steps: its launch, and the wait for the last rank.
        gathers, scatters: the link as all-gather and as reduce-scatter see it, where those were measured by themselves.
    """

    nodes: int
    per_node: int
    inside: Wire
    between: Wire
    base: float = 0.0
    gathers: Wire | None = None
    scatters: Wire | None = None

    @property
    def world(self) -> int:
        return self.nodes * self.per_node

    @property
    def rate(self) -> float:
        """Bytes/s of rings through all ranks."""
        if self.nodes == 1:
            return self.inside.rate
        return self.between.rate if self.per_node == 1 else min(self.inside.rate, self.between.rate)

    def _round(self) -> float:
        """Seconds of the latencies of n - 1 steps of a ring, of which one a node crosses the network."""
        crossing = self.nodes - 1
        return (self.world - 1 - crossing) * self.inside.alpha + crossing * self.between.alpha

    def all_gather(self, size: float) -> float:
        """Seconds. `size`: bytes that each rank holds afterwards."""
        if self.world == 1:
            return 0.0
        if self.gathers is not None:
            return replace(self, inside=self.gathers, gathers=None).all_gather(size)
        return self.base + self._round() + (self.world - 1) / self.world * size / self.rate

    def reduce_scatter(self, size: float) -> float:
        """Seconds. `size`: bytes that each rank holds before."""
        return (self if self.scatters is None else replace(self, gathers=self.scatters)).all_gather(size)

    def ring(self, size: float) -> float:
        """Seconds of an all-reduce of `size` bytes by rings."""
        if self.world == 1:
            return 0.0
        return self.base + 2 * self._round() + 2 * (self.world - 1) / self.world * size / self.rate

    def tree(self, size: float) -> float:
        """Seconds of an all-reduce of `size` bytes by trees: up to the root and down again."""
        if self.world == 1:
            return 0.0
        inside = (self.per_node - 1) if self.nodes > 1 else math.log2(self.per_node)
        steps = inside * self.inside.alpha + math.log2(self.nodes) * self.between.alpha
        return self.base + 2 * steps + 2 * size / (TREE * self.rate)

    def hierarchical(self, size: float) -> float:
        """Seconds of an all-reduce of `size` bytes in three parts: a reduce-scatter in each node, an all-reduce of each
        part between nodes, an all-gather in each node.
        """
        within = Ranks(1, self.per_node, self.inside, self.between)
        own = Wire(self.between.alpha, self.between.rate / self.per_node)
        across = Ranks(self.nodes, 1, self.inside, own)
        return self.base + 2 * within.all_gather(size) + across.ring(size / self.per_node) if self.world > 1 else 0.0

    def all_reduce(self, size: float) -> float:
        """Seconds of an all-reduce of `size` bytes, by whichever of ring and tree is faster."""
        return min(self.ring(size), self.tree(size))

    def seconds(self, kind: str, size: float) -> float:
        """Seconds of a collective: all_reduce, all_gather or reduce_scatter of `size` bytes, or a send of as many to
        the next rank of a ring, while all others do the same.
        """
        if kind == "send":
            wire = self.between if self.nodes > 1 else self.inside  # the slowest of the ring
            return self.base + wire.alpha + size / self.rate if self.world > 1 else 0.0
        made = {"all_reduce": self.all_reduce, "all_gather": self.all_gather, "reduce_scatter": self.reduce_scatter}
        return made[kind](size)

    def sent(self, kind: str, size: float) -> float:
        """Bytes that a rank sends in a collective by rings."""
        if kind == "send":
            return size if self.world > 1 else 0.0
        return (2 if kind == "all_reduce" else 1) * (self.world - 1) / self.world * size
