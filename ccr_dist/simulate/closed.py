"""Closed forms: how often to save, and what part of the time then trains.

Failures come at random at a constant rate, whatever the job does (also while it restarts). Times are in seconds, rates
per second. `interval` is always the training between two saves: a period is the interval and the save.

- Young (1974): `young`, the first-order optimum.
- Daly (2006), doi:10.1016/j.future.2004.11.016: `daly`, the higher-order optimum.
- Saxena et al., arXiv 2410.18124: `availability_optimal`, which maximises availability.
- Kokolis et al., arXiv 2410.21680: `meta_ettr`, their estimate for jobs that do not queue.
- `ettr` is exact for the model above, and `optimal` its maximum.
"""

from __future__ import annotations

import math


def young(save: float, mtbf: float) -> float:
    """sqrt(2 save mtbf).

    Args:
        save: Seconds that training stands still for a checkpoint.
        mtbf: Mean seconds between failures of the job.

    Returns:
        Seconds of training between saves.
    """
    return math.sqrt(2 * save * mtbf)


def daly(save: float, mtbf: float) -> float:
    """Daly's third-order optimum; `mtbf` where a save takes twice that or more. Arguments and result as of `young`."""
    if save >= 2 * mtbf:
        return mtbf
    ratio = save / (2 * mtbf)
    return young(save, mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def availability_optimal(save: float, mtbf: float, recovery: float) -> float:
    """The interval at which availability is best, by arXiv 2410.18124.

    There a period T_c contains the save T_s: T_c = T_s + sqrt(2 (T_f + T_r) T_s + T_s^2), which maximises
    (1 - T_s / T_c) T_f / (T_f + T_r + T_c / 2).

    Args:
        save: T_s, as of `young`.
        mtbf: T_f, as of `young`.
        recovery: T_r, seconds from a failure until training goes on.

    Returns:
        T_c - T_s: seconds of training between saves.
    """
    return math.sqrt(2 * (mtbf + recovery) * save + save * save)


def meta_ettr(nodes: int, rate: float, restart: float, interval: float) -> float:
    """1 - nodes rate (restart + interval / 2), the estimate of arXiv 2410.21680 where nothing queues and a save costs
    nothing. First order in the failures: it can be less than 0.

    Args:
        nodes: Nodes of the job.
        rate: Failures of a node a second.
        restart: u_0, seconds to start again.
        interval: Delta t_cp, seconds between checkpoints.

    Returns:
        The expected effective training time ratio.
    """
    return 1 - nodes * rate * (restart + interval / 2)


def ettr(
    interval: float, *, save: float, rate: float, survives: float = 1.0, write: float = 0.0, warned: float = 0.0
) -> float:
    """The part of the time that is training whose result is kept, in the long run.

    A failure while the job recovers begins the recovery again. With `write` and `warned` 0 this is the inverse of
    Daly's expected run time.

    Args:
        interval: Seconds of training between saves.
        save: Seconds that training stands still for a save.
        rate: Interruptions of the job a second; 0 is allowed.
        survives: Probability that a recovery is not interrupted: exp(-rate T) where it always takes T seconds.
        write: Seconds after the save in which the checkpoint is still being written, beside training; on a failure it
            is lost.
        warned: Which part of the interruptions is announced, so that the job saves first and loses nothing.

    Returns:
        A ratio between 0 and 1.
    """
    period = interval + save + max(0.0, write - interval)  # a save waits until the one before is written
    if rate == 0:
        return interval / period
    kept = 0.0
    if rate * period < 700:  # otherwise exp overflows, and nothing is ever kept
        kept = rate * interval * math.exp(-rate * write) / math.expm1(rate * period)
    trained = math.expm1(-rate * interval) / math.expm1(-rate * period)
    return survives * ((1 - warned) * kept + warned * trained)


def optimal(*, save: float, rate: float, write: float = 0.0, warned: float = 0.0) -> float:
    """The interval at which `ettr` is best, to a relative 1e-6; how long a recovery takes does not matter.

    Args:
        save, rate, write, warned: As of `ettr`; `save` and `rate` more than 0, `warned` less than 1.

    Returns:
        Seconds of training between saves, at least `write`.
    """

    def at(log: float) -> float:
        return ettr(math.exp(log), save=save, rate=rate, write=write, warned=warned)

    # golden-section search over the logarithm: one maximum, between a thousandth of Young's and far above it
    low = math.log(max(write, young(save, 1 / rate) / 1e3))
    high = max(low, math.log(young(save, 1 / rate) * 1e3))
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = at(left), at(right)
    while high - low > 1e-7:
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = at(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = at(right)
    return math.exp((low + high) / 2)
