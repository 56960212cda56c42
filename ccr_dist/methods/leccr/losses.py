"""LECCR's seven loss terms. Rows are texts or items of this rank, columns those of the global batch.

With their weights: L_ve, (1 - soft) L_vf and L_ef (`visual_english`, `visual_target`, `english_target`), L_loc
(`local`), L_soft (`soft`), L_div (`diversity`) and L_cv (`vision`).
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from ccr_dist.data.stream.loader import Batch
from ccr_dist.losses.context import Context
from ccr_dist.losses.contrastive import similarities
from ccr_dist.losses.slots import overlap, slot_scores
from ccr_dist.methods.leccr.options import LeccrOptions


def loss_terms(options: LeccrOptions, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
    """The terms that the options ask for, each weighted, each this rank's share.

    Args:
        options: weights and switches.
        batch: n rows.
        outputs: of `Leccr.outputs`.
        ctx: the global batch of B rows.

    Returns:
        Scalars by name. visual_english, visual_target, english_target: symmetric InfoNCE of the global features with
        the learned temperature. local: the same of max_k <l_ik, x_j> / tau, the sum over both languages. soft:
        divergence of the translations' similarities with pictures from those of the English captions. diversity: mean
        cosine of the slots of an item. vision: cross entropy of an item's mean slot against all items' mean tokens.
    """
    scale = outputs["scale"]
    visual, english, target = (
        gathered_gradient(outputs[name], options.processes) for name in ("visual", "english", "target")
    )

    def contrastive(x: Tensor, y: Tensor) -> Tensor:
        return ctx.contrastive(x, y, scale=scale, group=batch.group)

    terms = {
        "visual_english": contrastive(visual, english),
        "visual_target": (1 - options.soft) * contrastive(visual, target),
        "english_target": contrastive(english, target),
    }
    if options.scores_slots:
        terms["local"] = options.local * _local(options, batch, outputs, ctx)
    if options.soft:
        pictures = ctx.gather(visual)
        teacher = ctx.minmax(similarities(english, pictures))
        if options.scores_slots:
            slots = _teacher_of_slots(options, outputs["local"], english, ctx)
            teacher = options.soft_global * teacher + (1 - options.soft_global) * slots
        student = similarities(target, pictures)
        terms["soft"] = options.soft * ctx.mean(softened(teacher, student, options.soft_temperature))
    if options.descriptions and options.diversity:
        terms["diversity"] = options.diversity * ctx.mean(overlap(outputs["slots"]))
    if options.descriptions and options.vision:
        scores = similarities(outputs["slot_mean"], ctx.gather(outputs["token_mean"]))
        chunk = rows_of_a_process(options, ctx) if vision_is_per_process(options) else None
        terms["vision"] = options.vision * ctx.classify(scores, group=batch.group, chunk=chunk)
    return terms


def gathered_gradient(x: Tensor, processes: int) -> Tensor:
    """The values of x with the part of their gradient that returns through the released code's gathering: 1/processes.

    The released code gathers features without scaling their gradient by the number of processes.
    """
    if processes == 1:
        return x
    return x.detach() + (x - x.detach()) / processes


def vision_is_per_process(options: LeccrOptions) -> bool:
    """The released code computes the vision term of videos in each process separately."""
    return options.visual == "video"


def rows_of_a_process(options: LeccrOptions, ctx: Context) -> int | None:
    """Rows of the global batch in each of `options.processes` processes; None for one process."""
    if options.processes == 1:
        return None
    return math.ceil(ctx.batch / options.processes)


def _local(options: LeccrOptions, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> Tensor:
    """Symmetric InfoNCE of items' slots (n, K, D) with English captions, plus that with translations."""
    local, scale = outputs["local"], outputs["scale"]
    group = batch.group if options.local_labels == "group" else None
    chunk = options.local_chunk or rows_of_a_process(options, ctx)

    def matched(texts: Tensor) -> Tensor:
        if chunk is None:
            return ctx.contrastive(local, texts, scale=scale, group=group, score=slot_scores)
        return ctx.matching(scale * slot_scores(local, ctx.gather(texts)), group=group, chunk=chunk)

    return matched(outputs["english"]) + matched(outputs["target"])


def _teacher_of_slots(options: LeccrOptions, local: Tensor, english: Tensor, ctx: Context) -> Tensor:
    """Min-max normalised scores (n, B) of English captions with slots; `mixed` has items in its rows, as released."""
    scores = slot_scores(local.detach(), ctx.gather(english.detach()))
    if options.teacher == "aligned":
        scores = ctx.transpose(scores)
    return ctx.minmax(scores)


def softened(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Softened matching: similarities of English captions with pictures teach those of translated captions.

    With q_i = softmax_j(teacher_ij / tau) and p_i = softmax_j(student_ij / tau), it is KL(q_i || p_i).

    Args:
        teacher: scores (n, B) of texts with pictures, min-max normalised over the global batch; receives no gradient.
        student: scores (n, B).
        temperature: tau of both. At 1 (as released) scores in [0, 1] make q almost uniform, and the term has almost no
            effect.

    Returns:
        The divergence of each row, (n,).
    """
    q = functional.softmax(teacher.detach() / temperature, dim=1)
    log_p = functional.log_softmax(student / temperature, dim=1)
    return functional.kl_div(log_p, q.to(log_p.dtype), reduction="none").sum(dim=1)
