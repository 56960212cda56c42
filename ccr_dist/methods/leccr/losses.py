"""LECCR's softened matching: how English captions resemble the pictures of a batch teaches what translated captions
should resemble.

q_i = softmax_j(sum of weighted, min-max normalised teacher scores / tau), p_i = softmax_j(student scores / tau), KL(q_i
|| p_i); texts are rows, pictures are columns. Which scores those are, and their normalisation over the global batch, is
the caller's affair.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def softened(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(q_i || p_i) of each row, (n,), of scores (n, B). No gradient reaches the teacher.

    temperature: tau of both. At 1 (none, as released) scores in [0, 1] make q all but uniform, and the loss all but
        inert.
    """
    q = functional.softmax(teacher.detach() / temperature, dim=1)
    log_p = functional.log_softmax(student / temperature, dim=1)
    return functional.kl_div(log_p, q.to(log_p.dtype), reduction="none").sum(dim=1)
