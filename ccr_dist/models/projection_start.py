"""How the front end's projection starts: table vectors (d) to the tower's token space (width). In place, on a fresh
`nn.Linear`.

"ridge" decides what a short training can reach: words that are whole pieces in both vocabularies are pairs, and the map
between their vectors has a closed form. "scaled" keeps the tower's mean and spread without knowing a pair; "default" is
PyTorch's, as in released DASD.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ccr_dist.errors import ConfigError
from ccr_dist.models.subwords import whole_words
from ccr_dist.models.towers import TextTower

PENALTY = 0.1  # times n times the mean variance of a dimension
FEWEST_PAIRS = 32


def shared_words(vocabulary: dict[str, int], tower: TextTower) -> list[tuple[int, int]]:
    """(row of the front end's table, row of the tower's) of each word that both hold as one piece, sorted by word."""
    ours, theirs = whole_words(vocabulary), whole_words(tower.vocabulary())
    return [(ours[word], theirs[word]) for word in sorted(ours.keys() & theirs.keys())]


def ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (width, d) and bias (width,) of the ridge regression with intercept from x (n, d) to y (n, width); float64
    inside.
    """
    x, y = x.double(), y.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    penalty = PENALTY * len(x) * x.var(0, correction=0).mean()
    gram = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram, x.T @ y).T
    return weight.float(), (y_mean - weight @ x_mean).float()


@torch.no_grad()
def start_projection(
    start: str, linear: nn.Linear, vocabulary: dict[str, int], table: Tensor, tower: TextTower
) -> None:
    """Fills `linear`; random numbers come from torch's global generator. ConfigError when "ridge" finds too few shared
    words.
    """
    if start == "default":
        return
    target = tower.token_table().detach().float().cpu()
    if start == "scaled":
        sample = table[torch.randperm(len(table))[:10_000]]
        nn.init.normal_(linear.weight)
        centred = (sample - sample.mean(0)) @ linear.weight.T
        linear.weight *= (target.std(0).pow(2).mean() / centred.std(0).pow(2).mean()).sqrt()
        linear.bias.copy_(target.mean(0) - linear.weight @ sample.mean(0))
        return
    pairs = torch.tensor(shared_words(vocabulary, tower)).reshape(-1, 2)
    if len(pairs) < FEWEST_PAIRS:
        raise ConfigError(
            f"front end: `start: ridge` needs words that are whole pieces for both tokenisers, at least {FEWEST_PAIRS};"
            f" found {len(pairs)}. Use `start: scaled`."
        )
    weight, bias = ridge(table[pairs[:, 0]], target[pairs[:, 1]])
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
