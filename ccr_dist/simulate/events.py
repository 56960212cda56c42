"""The event model: a synchronous training job from failure to failure, all repetitions at once.

One turn of the loop takes every repetition to its next event: a failure, an announced stop, a node that comes back, or
the end. What lies between two events, with all its checkpoints, is arithmetic.

A run begins with a restart. In it a period is `interval` seconds of training and a save; a checkpoint counts once it is
written. On a failure the training since the last one that counts is lost. Recovery is detection, then waiting for
nodes, then the restart; a failure meanwhile begins it again. Failures come by the wall clock, also while the job
recovers.
"""

from __future__ import annotations

import math

import numpy as np

from ccr_dist.errors import ConfigError
from ccr_dist.simulate.advise import advised, outlook
from ccr_dist.simulate.clocks import Clocks
from ccr_dist.simulate.outcome import STATES, Outcome
from ccr_dist.simulate.schema import DAY, Job, all_causes, job_rate
from ccr_dist.simulate.slow import Slow

Array = np.ndarray
MOST_EVENTS = 5_000_000  # of a repetition: each takes about a tenth of a millisecond
MOST_CLOCKS = 4_000_000  # or nodes, of all repetitions that are simulated together: 32 MB


def simulate(job: Job, *, interval: float | None = None) -> Outcome:
    """Simulate a job.

    Args:
        job: The job.
        interval: Seconds of training between saves; default: the job's, or the best by closed forms.

    Returns:
        What came out of all repetitions. The same job and seed give the same.

    Raises:
        ConfigError: Unknown rates, no interval is the best or one of 0 or less, or too much fails to be simulated.
    """
    if interval is None:
        interval = interval_of(job)
    if not (math.isfinite(interval) and interval > 0):
        raise ConfigError(f"interval: {interval:g} s of training between saves: expected more than 0")
    causes = all_causes(job).values()
    slow = 0.0 if job.stragglers is None else job.stragglers.per_day * job.nodes * job.days
    events = sum(job_rate(job, cause) for cause in causes) * job.days * DAY + slow
    if events > MOST_EVENTS:
        raise ConfigError(
            f"per_day: about {events:.3g} failures and slow nodes in {job.days:g} days, and at most {MOST_EVENTS:,} are"
            " simulated: rates are those of one GPU, node or group a day; correct them, or give fewer days"
        )
    clocks = sum(job.units(cause.scope) for cause in causes)
    together = max(1, min(job.repetitions, MOST_CLOCKS // max(clocks, job.nodes)))
    parts, seeds = [], np.random.SeedSequence(job.seed)
    for begin in range(0, job.repetitions, together):
        count = min(together, job.repetitions - begin)
        parts.append(_Model(job, interval, count, np.random.default_rng(seeds.spawn(1)[0])).run())
    return Outcome(
        job=job,
        interval=interval,
        seconds={state: np.concatenate([part.spent[state] for part in parts]) for state in STATES},
        work=np.concatenate([part.work for part in parts]),
        interruptions=np.concatenate([part.interruptions for part in parts]),
        again=np.concatenate([part.again for part in parts]),
        regrown=np.concatenate([part.regrown for part in parts]),
        fewest=np.concatenate([part.fewest for part in parts]),
    )


def interval_of(job: Job, *, step: float | None = None) -> float:
    """Seconds of training between saves: the job's, or the best by closed forms, in whole steps where one is given.

    Raises:
        ConfigError: A step of 0 or less, or no interval is the best.
    """
    if step is not None and not (math.isfinite(step) and step > 0):
        raise ConfigError(f"step: {step:g} s: expected more than 0")
    saves = job.checkpoint
    if saves.every is not None:
        return saves.every
    found = outlook(job, saves.stall + saves.write)
    return advised(found, save=saves.stall, write=saves.write, step=step, failures="").interval_s


class _Model:
    """Repetitions that are simulated together.

    Every repetition has been recovering since `since`: until `saved` it saves for an announced stop, until `noticed`
    nobody has noticed the failure, until `there` nodes are missing, at `ready` training goes on.
    """

    def __init__(self, job: Job, interval: float, count: int, dice: np.random.Generator) -> None:
        self.job, self.interval, self.count, self.dice = job, interval, count, dice
        self.end = job.days * DAY
        self.causes = list(all_causes(job).values())
        self.clocks = [Clocks(cause, job, count, dice) for cause in self.causes]
        self.slow = None if job.stragglers is None else Slow(job, count, dice)
        saves = job.checkpoint
        # a save waits until the one before is written
        self.stall = saves.stall + max(0.0, saves.write - interval)
        self.period = interval + self.stall
        self.since, self.saved, self.noticed, self.there, self.ready = np.zeros((5, count))
        self.present = np.ones((count, job.nodes), dtype=bool)
        self.missing = np.zeros(count, dtype=np.int64)
        self.spare = np.full(count, job.spares)
        self.back = np.full((count, job.nodes + job.spares if job.pooled else 0), math.inf)
        self.spent = {state: np.zeros(count) for state in STATES}
        self.work = np.zeros(count)
        self.interruptions, self.again, self.regrown = np.zeros((3, count), dtype=np.int64)
        self.fewest = np.full(count, job.nodes)

    def run(self) -> _Model:
        """To the end of all repetitions."""
        going = np.ones(self.count, dtype=bool)
        rows = np.arange(self.count)
        while going.any():
            units, times = self._failing()
            which = times.argmin(axis=0)
            fails = times[which, rows]
            grows = self._growing()
            stop = np.minimum(np.minimum(fails, grows), self.end)
            # what fails before training goes on meets a job that recovers
            running = going & (self.ready <= stop)
            self._recovered(going, np.minimum(self.ready, stop))
            stops = going & (stop >= self.end)
            broken = going & ~stops & (fails <= grows)
            grown = going & ~stops & ~broken
            warned = np.array([cause.warned for cause in self.causes], dtype=bool)[which] if self.causes else stops
            self._trained(running, stop, safe=stops | grown | warned)
            self.interruptions[running & broken] += 1
            self.again[broken & ~running] += 1
            going &= ~stops
            self._grow(rows[grown], stop[grown])
            for place, cause in enumerate(self.causes):
                hit = rows[broken & (which == place)]
                if len(hit):
                    self._fail(place, hit, units[place][hit], stop[hit], running[hit] & cause.warned)
        return self

    def _failing(self) -> tuple[list[Array], Array]:
        """The unit that fails next and when, by cause; times have the shape (causes, repetitions)."""
        found = [clocks.first() for clocks in self.clocks]
        if not found:
            return [], np.full((1, self.count), math.inf)
        return [units for units, _ in found], np.stack([times for _, times in found])

    def _growing(self) -> Array:
        """When a job that misses nodes, and trains, takes the first one that comes back."""
        if not (self.job.pooled and self.job.regrow and self.job.least_nodes is not None):
            return np.full(self.count, math.inf)
        return np.where(self.missing > 0, np.maximum(self.back.min(axis=1), self.ready), math.inf)

    def _recovered(self, rows: Array, until: Array) -> None:
        """Count the time of a recovery, up to a time."""
        bounds = (self.since, self.saved, self.noticed, self.there, self.ready)
        for state, begin, end in zip(
            ("saving", "detecting", "waiting", "restarting"), bounds, bounds[1:], strict=False
        ):
            self.spent[state][rows] += np.maximum(0.0, np.minimum(end, until) - begin)[rows]

    def _trained(self, rows: Array, until: Array, safe: Array) -> None:
        """Count a run, from `ready` to a time.

        Args:
            rows: Which repetitions.
            until: The end of the run.
            safe: Where it does not end by a failure that came without warning: nothing is lost.
        """
        elapsed = np.where(rows, until - self.ready, 0.0)
        periods = np.floor(elapsed / self.period)
        trained = periods * self.interval + np.minimum(elapsed - periods * self.period, self.interval)
        written = np.maximum(0.0, np.floor((elapsed - min(self.job.checkpoint.write, self.period)) / self.period))
        kept = np.where(safe, trained, written * self.interval)
        self.spent["training"] += kept
        self.spent["lost"] += trained - kept
        self.spent["saving"] += elapsed - trained
        nodes = self.job.nodes - self.missing
        speed = nodes / self.job.nodes
        fast = kept
        if self.slow is not None and self.job.stragglers is not None:
            # of the part of the run whose training is kept, as evenly as saves are
            last = np.where(safe, until, self.ready + written * self.period)
            slow = self.slow.between(np.arange(self.count), self.ready, np.maximum(last, self.ready))
            share = np.divide(kept, last - self.ready, out=np.zeros(self.count), where=last > self.ready)
            fast = kept - slow * share * (1 - 1 / self.job.stragglers.slows)
        self.work += fast * speed
        self.fewest = np.where(rows, np.minimum(self.fewest, nodes), self.fewest)

    def _fail(self, place: int, rows: Array, units: Array, now: Array, announced: Array) -> None:
        """Begin the recovery from failures of one cause.

        Args:
            place: Which cause.
            rows, units: Repetitions, and the unit that failed in each.
            now: When.
            announced: Whether the job ran and was told, so that it saves first.
        """
        cause, clocks, job = self.causes[place], self.clocks[place], self.job
        clocks.renew(rows, units, now)
        save = np.where(announced, job.checkpoint.stall + job.checkpoint.write, 0.0)
        self.since[rows] = now
        self.saved[rows] = now + save
        notice = np.zeros(len(rows)) if cause.warned else (cause.detection or job.detection).draw(self.dice, len(rows))
        self.noticed[rows] = self.saved[rows] + notice
        # nodes that an earlier failure waits for are still on their way
        self.there[rows] = np.maximum(self.there[rows], self.noticed[rows])
        if cause.takes_nodes:
            hit_rows, nodes = clocks.hit(rows, units)
            there = self.present[hit_rows, nodes]
            self._take(hit_rows[there], nodes[there])
        self._fill(rows, self.noticed[rows])
        self.ready[rows] = self.there[rows] + (cause.restart or job.restart).draw(self.dice, len(rows))

    def _take(self, rows: Array, nodes: Array) -> None:
        """Nodes leave for repair; pairs of repetition and node."""
        self.present[rows, nodes] = False
        np.add.at(self.missing, rows, 1)
        for clocks in self.clocks:
            clocks.replace(rows, nodes, None)
        if self.job.pooled and len(rows):
            assert self.job.repair is not None
            # free places first; where there is none, what would come back last does not (others came from outside)
            free = np.argsort(-self.back[rows], axis=1, kind="stable")
            # several nodes of a repetition take one free place after another; rows come grouped
            number = np.arange(len(rows)) - np.searchsorted(rows, rows, side="left")
            places = free[np.arange(len(rows)), np.minimum(number, free.shape[1] - 1)]
            self.back[rows, places] = self.noticed[rows] + self.job.repair.draw(self.dice, len(rows))

    def _grow(self, rows: Array, now: Array) -> None:
        """Save, and restart with the nodes that have come back."""
        if not len(rows):
            return
        self.regrown[rows] += 1
        self.since[rows] = now
        self.saved[rows] = now + self.job.checkpoint.stall + self.job.checkpoint.write
        self.noticed[rows] = self.there[rows] = self.saved[rows]
        self._fill(rows, now)
        self.ready[rows] = self.there[rows] + self.job.restart.draw(self.dice, len(rows))

    def _fill(self, rows: Array, now: Array) -> None:
        """Put nodes where they are missing: spares, then from outside; or wait; or go on with fewer.

        Args:
            rows: Repetitions, each once.
            now: From when on a missing node is known.
        """
        missing = self.missing[rows]
        rows, now, missing = rows[missing > 0], now[missing > 0], missing[missing > 0]
        if not len(rows):
            return
        job = self.job
        came = self.back[rows] <= now[:, None]
        self.spare[rows] += came.sum(axis=1)
        self.back[rows] = np.where(came, math.inf, self.back[rows])
        if job.queue is not None:  # what came from outside is kept, so that of what comes back only spares are needed
            self.spare[rows] = np.minimum(self.spare[rows], job.spares)
        used = np.minimum(self.spare[rows], missing)
        self.spare[rows] -= used
        if job.queue is not None or not job.pooled:
            if job.queue is not None:
                wait = np.where(missing > used, job.queue.draw(self.dice, len(rows)), 0.0)
                self.there[rows] = np.maximum(self.there[rows], now + wait)
            self._place(rows, missing, self.there[rows])
            return
        # the job waits for repairs until it has as many nodes as it needs at least
        least = job.nodes if job.least_nodes is None else job.least_nodes
        wait = np.maximum(0, least - (job.nodes - missing + used))
        for row in np.flatnonzero(wait):
            places = np.argsort(self.back[rows[row]], kind="stable")[: wait[row]]
            self.there[rows[row]] = max(self.there[rows[row]], float(self.back[rows[row], places].max()))
            self.back[rows[row], places] = math.inf
        self._place(rows, used + wait, self.there[rows])

    def _place(self, rows: Array, counts: Array, now: Array) -> None:
        """Put that many nodes into the first places where one is missing."""
        gone = ~self.present[rows]
        if (counts < self.missing[rows]).any():
            gone &= gone.cumsum(axis=1) <= counts[:, None]
        at, nodes = np.divmod(np.flatnonzero(gone), self.job.nodes)
        self.missing[rows] -= counts
        self.present[rows[at], nodes] = True
        for clocks in self.clocks:
            clocks.replace(rows[at], nodes, now[at])
