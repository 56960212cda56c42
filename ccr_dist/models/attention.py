"""Self-attention of open_clip's blocks on (n, T, width) as it lies in memory.

`nn.MultiheadAttention` swaps n and T before its input projection. Of a transposed view, PyTorch (2.13) folds n and T
into one product only where the weight is trained; a frozen one is multiplied T times, n rows each. In a frozen ViT-B/32
text tower on a CPU that is two thirds of the time of a short batch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with `batch_first`, as open_clip's blocks call it: without weights, dropout and masks of
    keys.
    """

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """(n, T, width) to the same; `attn_mask` (T, T), (n, 1, T, T) or CoCa's (n * heads, T, T) is added to the
        logits. All three inputs are the same values (under ZeRO-3 not the same tensor).
        """
        assert query.shape == key.shape == value.shape and not need_weights, "an open_clip block attends to itself"
        whole = F.linear(query, self.in_proj_weight, self.in_proj_bias).unflatten(
            -1, (3, self.num_heads, self.head_dim)
        )
        q, k, v = whole.permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if attn_mask is None else attn_mask.to(q.dtype))
        return self.out_proj(mixed.transpose(1, 2).flatten(-2)), None


def use_self_attention(model: Any) -> None:
    """Gives every default block of an open_clip model this attention; parameters and their names stay."""
    from open_clip.transformer import ResidualAttentionBlock

    for block in model.modules():
        if type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv") and block.attn.batch_first:
            block.attn.__class__ = SelfAttention
