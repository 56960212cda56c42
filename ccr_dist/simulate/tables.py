"""What people read of simulations: lines and Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from ccr_dist.simulate.advise import outlook, shown
from ccr_dist.simulate.curve import Curve
from ccr_dist.simulate.outcome import MEANING, STATES, Estimate, Outcome
from ccr_dist.simulate.published import Again
from ccr_dist.simulate.schema import Job, in_repair


def assumed(job: Job, interval: float) -> str:
    """One line of what was simulated, defaults included."""
    saves = job.checkpoint
    nodes = f"{job.nodes:,} node{'s' if job.nodes > 1 else ''}"
    lost = "a lost node is replaced at once"
    if job.queue is not None:
        lost = f"{'then ' if job.spares else ''}a lost node is replaced after {shown(job.queue.average)}"
    elif job.least_nodes is not None:
        lost = f"{'then ' if job.spares else ''}it goes on with fewer nodes, down to {job.least_nodes}"
    elif job.spares:
        lost = "then it waits for a repair"
    supply = (f"{job.spares} spare node{'s' if job.spares > 1 else ''}, " if job.spares else "") + lost
    return (
        f"{job.gpus:,} GPUs on {nodes}, {job.days:g} days, {job.repetitions} repetitions, seed {job.seed}; a save every"
        f" {shown(interval)} of training, {shown(saves.stall)} of stall"
        + (f" and {shown(saves.write)} of writing beside training" if saves.write else "")
        + f"; detection {shown(job.detection.average)} and restart {shown(job.restart.average)}, but for causes with"
        f" their own; {supply}"
    )


def outcome_lines(outcome: Outcome, closed: float) -> str:
    """What a simulation gave."""
    job = outcome.job
    lines = [
        assumed(job, outcome.interval),
        "",
        f"ETTR         {_shares(outcome.ettr)}; closed form {closed:.1%}",
        f"goodput      {_shares(outcome.goodput)}",
    ]
    if job.spares:
        lines.append(f"with spares  {_shares(outcome.goodput_of_all)}")
    lines += [
        f"interrupted  {_counts(outcome.interruptions)}; while it recovered {_counts(outcome.again)}",
        f"lost work    {outcome.seconds['lost'].mean() * job.gpus / 3600:,.0f} GPU-hours",
        "",
        *(f"{state:<12} {outcome.seconds[state].mean() / outcome.length:7.2%}   {MEANING[state]}" for state in STATES),
    ]
    if job.pooled:
        lines += ["", f"in repair    {in_repair(job):.1f} nodes at a time, on average, for {job.spares} spares"]
    if job.least_nodes is not None:
        lines += [f"fewest       {int(outcome.fewest.min())} nodes; restarts to grow {_counts(outcome.regrown)}"]
    return "\n".join(lines)


def curve_table(curve: Curve) -> str:
    """A curve as Markdown, and the optima."""
    lines = ["| interval | ETTR | goodput | single runs | closed form | lost | saving |", "| --: |" + " --: |" * 6]
    for point in curve.points:
        found, length = point.outcome, point.outcome.length
        spread = found.goodput
        lines.append(
            f"| {shown(found.interval)} | {found.ettr.mean:.2%} | {spread.mean:.2%} |"
            f" {spread.least:.1%} to {spread.most:.1%} | {point.closed:.2%} |"
            f" {found.seconds['lost'].mean() / length:.2%} | {found.seconds['saving'].mean() / length:.2%} |"
        )
    said = [f"{name}: {shown(interval)}" for name, interval in curve.optima.items()]
    best = f"best simulated: {shown(curve.best.outcome.interval)}"
    return "\n".join([*lines, "", "; ".join([*said, best])])


def published_table(found: Sequence[Again]) -> str:
    """Published ratios beside simulated ones, as Markdown, with what was assumed."""
    lines = ["| rates | GPUs | reported | simulated | closed form | |", "| --- | --: | --- | --: | --: | --- |"]
    for each in found:
        lines.append(
            f"| {each.name} | {each.job.gpus:,} | {each.report.says} | {each.found.mean:.1%} | {each.closed:.1%} |"
            f" {'agrees' if each.agrees else 'DIFFERS'} |"
        )
    lines.append("\nassumed, since it is not published:")
    for name, notes in {each.name: each.assumed for each in found}.items():
        lines += [f"- {name}: {note}" for note in notes]
    return "\n".join(lines)


def rates_line(job: Job) -> str:
    """How often the job is interrupted, for people. ConfigError for unknown rates."""
    found = outlook(job, 0.0)
    return "nothing interrupts it" if not found.rate else f"interrupted every {shown(1 / found.rate)} on average"


def _shares(found: Estimate) -> str:
    if found.low != found.low:  # one repetition
        return f"{found.mean:.2%}"
    return f"{found.mean:.2%} ± {found.high - found.mean:.2%}; single runs {found.least:.1%} to {found.most:.1%}"


def _counts(values: object) -> str:
    found = Estimate.of(values.astype(float))  # type: ignore[attr-defined]
    return f"{found.mean:,.1f} times ({found.least:,.0f} to {found.most:,.0f})"
