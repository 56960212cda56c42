"""NRCCR's loss terms. The triplets are summed over the global batch, everything else is a mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from ccr_dist.data.stream.loader import Batch
from ccr_dist.losses.adversarial import confusion_loss
from ccr_dist.losses.context import Context
from ccr_dist.losses.contrastive import cross_entropy, similarities
from ccr_dist.methods.features import precise
from ccr_dist.methods.nrccr.options import NrccrOptions


def loss_terms(
    options: NrccrOptions, batch: Batch, outputs: dict[str, Tensor], ctx: Context, aux: nn.ModuleDict
) -> dict[str, Tensor]:
    """The terms that the options ask for, each weighted, each this rank's share.

    Args:
        options: weights and switches.
        batch: n rows.
        outputs: of `Nrccr.outputs`.
        ctx: the global batch.
        aux: holds the "discriminator" of languages, where there is an adversarial term.

    Returns:
        Scalars by name. english, target: triplets of pictures with English captions and with translations; back: of
        English captions with back-translations. similarity, feature: distillation from the teacher. adversarial: the
        translation is to pass for English.
    """
    visual, target = outputs["visual"], outputs["target"]
    all_visual, all_target = ctx.gather(visual), ctx.gather(target)
    ids = batch.group if options.positives == "group" else batch.slots
    right = ids[:, None] == ctx.gather(ids)

    def triplets(x: Tensor, y: Tensor, all_x: Tensor, all_y: Tensor) -> Tensor:
        """Share of the sum over the global batch, both directions."""
        own, margin = (x * y).sum(-1), options.margin
        there = hardest_negative(similarities(x, all_y), own, right, margin)
        return (there + hardest_negative(similarities(y, all_x), own, right, margin)).sum()

    terms: dict[str, Tensor] = {}
    english = outputs["english"]
    all_english = ctx.gather(english)
    if options.english:
        terms["english"] = options.english * triplets(visual, english, all_visual, all_english)
    if options.target:
        terms["target"] = options.target * triplets(visual, target, all_visual, all_target)
    if options.back:
        back = outputs["back"]
        terms["back"] = options.back * triplets(english, back, all_english, ctx.gather(back))
    if options.similarity:
        teacher = outputs["teacher"].detach()
        constants = (teacher, visual.detach(), ctx.gather(teacher), all_visual.detach())
        distilled = distilled_similarities(target, visual, all_target, all_visual, constants, options.temperature)
        terms["similarity"] = options.similarity * ctx.mean(distilled)
    if options.feature:
        apart = smooth_l1_loss(target, outputs["teacher"], beta=options.beta, reduction="none").mean(-1)
        terms["feature"] = options.feature * ctx.mean(apart)
    if options.adversarial:
        state = precise(outputs["state_target"])
        nothing = state[:, :0]  # the discriminator takes pairs; here one half is empty
        terms["adversarial"] = options.adversarial * ctx.mean(confusion_loss(aux["discriminator"], state, nothing))
    return terms


def distilled_similarities(
    target: Tensor,
    visual: Tensor,
    all_target: Tensor,
    all_visual: Tensor,
    constants: tuple[Tensor, Tensor, Tensor, Tensor],
    temperature: float,
) -> Tensor:
    """Cross entropy of the similarities of translations and pictures with those of the teacher, both directions.

    Args:
        target: (n, D) features of this rank's translations.
        visual: (n, D) of its pictures.
        all_target, all_visual: (B, D), the same of the global batch.
        constants: without gradient: the teacher's features and the pictures' of this rank (n, D), then both of the
            global batch (B, D).
        temperature: of both softmaxes.

    Returns:
        The value of each row, (n,).
    """
    teacher, own_visual, all_teacher, fixed_visual = constants
    of_text = (similarities(teacher, fixed_visual) / temperature).softmax(1)
    text = cross_entropy(similarities(target, all_visual) / temperature, of_text)
    of_image = (similarities(own_visual, all_teacher) / temperature).softmax(1)
    image = cross_entropy(similarities(visual, all_target) / temperature, of_image)
    return (text + image) / 2


def hardest_negative(similarity: Tensor, own: Tensor, right: Tensor, margin: float) -> Tensor:
    """Triplet ranking with the hardest negative of the batch (Faghri et al., VSE++, BMVC 2018).

    Of columns that tie, the first takes the gradient, as in the released code of NRCCR.

    Args:
        similarity: (n, B) of this rank's rows with all columns.
        own: (n,) of each row with its partner.
        right: (n, B) bool, columns that are no negatives; the partner is one of them.
        margin: by which the partner is to be more similar than any negative.

    Returns:
        max(0, margin + the most similar wrong column - the partner), (n,); 0 for a row without a wrong column.
    """
    if not similarity.shape[1]:  # no rows, either; torch has no maximum of nothing
        return own
    worst = similarity.masked_fill(right, -torch.inf).max(dim=1).values
    return (margin + worst - own).clamp(min=0)
