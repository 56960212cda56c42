"""Sharded tensors of a checkpoint: a folder of safetensors files, one per rank, by torch.distributed.checkpoint.

    weights/shard-00003-model-00001-of-00001.safetensors    rank 2's parts; the header says where in the whole each lies

Only FSDP2 writes this layout, in place of one file of whole tensors, for models too large to gather on one rank. Any
process can read it: whole tensors, or only this rank's part of a sharded one.
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
    """Write tensors: each rank its own parts of sharded ones, one rank each whole one. Collective.

    Args:
        folder: The folder to write into.
        tensors: This rank's tensors by name.
        ranks: The ranks that write together.

    Raises:
        OSError: Some rank could not write; raised on all ranks.
    """
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _alone_is_meant():
            dcp.save(dict(tensors), storage_writer=writer, process_group=ranks.group, no_dist=ranks.world == 1)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise next((cause for cause in causes if isinstance(cause, OSError)), error) from None


class _Reader(dcp.HuggingFaceStorageReader):
    """A reader that reads the headers only once."""

    known: Metadata | None = None

    def read_metadata(self) -> Metadata:
        if self.known is None:
            self.known = super().read_metadata()
        return self.known


class Shards(Mapping[str, Tensor]):
    """A folder that `write` made, as a mapping: whole tensors on the CPU by name, read on access. Not collective.

    Args:
        folder: The folder.
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
        """Shape and dtype of the whole tensor, without reading it."""
        return self._known[name].size, self._known[name].properties.dtype

    def fill(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Read into existing tensors.

        Args:
            tensors: Whole or sharded tensors by name; of a sharded one only this rank's part is read.

        Returns:
            `tensors`.

        Raises:
            StorageError: A file cannot be read.
            CheckpointException: The files do not fit the tensors.
        """
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
    """Silences the warning about work without a process group: it is intended here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
