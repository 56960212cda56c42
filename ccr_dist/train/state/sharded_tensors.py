"""Tensors of a checkpoint as every rank's parts: a folder of safetensors files, one a rank, by
torch.distributed.checkpoint.

    weights/shard-00003-model-00001-of-00001.safetensors    rank 2's parts; the header says where in the whole each lies

Only FSDP2 writes it, in place of one file of whole tensors, for models that no rank could gather. Any process reads it:
whole tensors when they are asked for, or the part of a sharded tensor that lies here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ccr_dist.errors import let_pass
from ccr_dist.train.processes import Ranks

T = TypeVar("T", bound=Tensor)


def write(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Every rank writes its parts of sharded tensors; of whole ones some rank that has it writes it. Collective.

    Raises OSError, on all ranks, where one could not write.
    """
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _alone_is_meant():
            dcp.save(dict(tensors), storage_writer=writer, process_group=ranks.group, no_dist=ranks.world == 1)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise next((cause for cause in causes if isinstance(cause, OSError)), error) from None


class _Reader(dcp.HuggingFaceStorageReader):
    """Reads the headers once."""

    known: Metadata | None = None

    def read_metadata(self) -> Metadata:
        if self.known is None:
            self.known = super().read_metadata()
        return self.known


class Shards(Mapping[str, Tensor]):
    """What `write` wrote: names, and whole tensors on the CPU, read when they are asked for. Nothing here is
    collective.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reader = _Reader(str(folder))
        self._known: dict[str, TensorStorageMetadata] = dict(self._reader.read_metadata().state_dict_metadata)  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> Tensor:
        shape, dtype = self.like(name)
        return self.fill({name: torch.empty(shape, dtype=dtype)})[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def like(self, name: str) -> tuple[torch.Size, torch.dtype]:
        return self._known[name].size, self._known[name].properties.dtype

    def fill(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Read into tensors, whole or sharded ones; of a sharded one nothing but this rank's part is read."""
        try:
            with _alone_is_meant():
                dcp.load(tensors, storage_reader=self._reader, no_dist=True)
        except CheckpointException as error:
            for cause, _ in error.failures.values():
                let_pass(cause, self._folder)
            raise
        return tensors


@contextmanager
def _alone_is_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
