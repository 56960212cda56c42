"""`ccr-dist simulate`: parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccr_dist import terminal, yamlfile
from ccr_dist.declare import File, Folder, Settings, Uses, declares
from ccr_dist.errors import ConfigError
from ccr_dist.places import file_to_make, folder_to_read
from ccr_dist.resources import is_path

if TYPE_CHECKING:
    from ccr_dist.simulate.schema import Job

simulate_app = typer.Typer()


def _using(words: list[str] | None, failures: str | None, run: Path | None, plot: Path | None) -> Uses:
    file, overrides = _split(words)
    reads: list[Any] = [] if file is None else [Settings(str(file), overrides=overrides)]
    if failures is not None and is_path(failures):
        reads.append(Settings(failures))
    if run is not None:
        reads.append(Folder(str(run)))
    made = () if plot is None else (File(str(plot)),)
    return Uses(reads=tuple(reads), makes=made, packages=() if plot is None else ("matplotlib",))


def _split(words: list[str] | None) -> tuple[Path | None, tuple[str, ...]]:
    """The file, if the first word is no `key=value`, and the overrides."""
    given = list(words or ())
    file = Path(given.pop(0)) if given and "=" not in given[0] else None
    return file, tuple(given)


def _plot_to_make(path: Path | None) -> Path | None:
    if path is not None and path.suffix != ".png":
        raise ConfigError(f"{path}: a plot is written as PNG: name a file that ends in .png")
    return None if path is None else file_to_make(path)


@simulate_app.command()
@declares(_using)
def simulate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[JOB.yaml] [KEY=VALUE]...",
            help="A job (YAML), and settings that replace its own, such as checkpoint.every=5m.",
        ),
    ] = None,
    failures: Annotated[
        str | None, typer.Option(help="Published rates by name, or a YAML file of rates; `?` lists the names.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of the job.")] = None,
    per_node: Annotated[int | None, typer.Option(help="GPUs of a node. [default: that of the rates, else 8]")] = None,
    days: Annotated[float | None, typer.Option(help="Wall-clock days. [default: 30]")] = None,
    checkpoint_every: Annotated[
        str | None, typer.Option(help="Training between two saves: seconds, or 5m, 1h. [default: the best]")
    ] = None,
    stall: Annotated[str | None, typer.Option(help="How long training stands still for a save. [default: 30s]")] = None,
    write: Annotated[str | None, typer.Option(help="How long it is then written beside training. [default: 0]")] = None,
    detection: Annotated[str | None, typer.Option(help="Until a failure is noticed. [default: 0]")] = None,
    restart: Annotated[str | None, typer.Option(help="From then until training goes on. [default: 5m]")] = None,
    queue: Annotated[str | None, typer.Option(help="Wait for a node from outside, where no spare is left.")] = None,
    repair: Annotated[str | None, typer.Option(help="Until a node that failed is back.")] = None,
    spares: Annotated[int | None, typer.Option(help="Nodes that stand ready. [default: 0]")] = None,
    least_nodes: Annotated[int | None, typer.Option(help="Goes on with fewer nodes, down to this number.")] = None,
    repetitions: Annotated[int | None, typer.Option(help="How often it is simulated. [default: 100]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random numbers. [default: 0]")] = None,
    step: Annotated[
        float | None, typer.Option(help="Seconds of a training step: prints the override that sets the interval.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of a run, whose log tells step and stall.", callback=folder_to_read),
    ] = None,
    curve: Annotated[bool, typer.Option("--curve", help="Also simulate shorter and longer intervals.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw that curve into this PNG file.", callback=_plot_to_make)
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Instead: simulate what papers report, and compare.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Simulate a long training job on GPUs that fail: useful time, lost work, interruptions, and how often to save.

    A pipeline takes the interval as a value: `submit PIPELINE.yaml values.every=N`, where the step's command has
    `runtime.checkpoint_every=$every`.
    """
    from ccr_dist.simulate.published import published as again
    from ccr_dist.simulate.tables import published_table

    if failures == "?":
        return _list_rates()
    if published:
        own = {
            "gpus": gpus, "per-node": per_node, "days": days, "checkpoint-every": checkpoint_every, "stall": stall,
            "write": write, "detection": detection, "restart": restart, "queue": queue, "repair": repair,
            "spares": spares, "least-nodes": least_nodes, "step": step, "run": run, "plot": plot,
            "curve": curve or None,
        }  # fmt: skip
        given = [*(words or ()), *(f"--{name}" for name, value in own.items() if value is not None)]
        if given:
            raise ConfigError(f"{', '.join(given)}: --published takes all numbers from the rates; leave them out")
        results = again(None if failures is None else [failures], repetitions=repetitions or 40, seed=seed or 0)
        text = json.dumps([each.to_json() for each in results], indent=1) if as_json else published_table(results)
        print(text if as_json else terminal.visible(text))
        return None
    measured = _measured(run) if run is not None else {}
    options = {
        "failures": failures, "gpus": gpus, "per_node": per_node, "days": days, "checkpoint.every": checkpoint_every,
        "checkpoint.stall": stall if stall is not None else measured.get("stall"), "checkpoint.write": write,
        "detection": detection, "restart": restart, "queue": queue, "repair": repair, "spares": spares,
        "least_nodes": least_nodes, "repetitions": repetitions, "seed": seed,
    }  # fmt: skip
    file, overrides = _split(words)
    _simulated(
        _job(file, [*overrides, *(f"{key}={value}" for key, value in options.items() if value is not None)]),
        step=step if step is not None else measured.get("step"),
        curved=curve or plot is not None,
        plot=plot,
        as_json=as_json,
    )


def _job(file: Path | None, overrides: list[str]) -> Job:
    from ccr_dist.simulate.schema import Job

    document = yamlfile.load(file) if file is not None else yamlfile.of_options({})
    return yamlfile.validate(Job, yamlfile.overridden(document, overrides))


def _simulated(job: Job, *, step: float | None, curved: bool, plot: Path | None, as_json: bool) -> None:
    from ccr_dist.simulate.advise import every_steps
    from ccr_dist.simulate.curve import closed_form
    from ccr_dist.simulate.curve import curve as simulate_curve
    from ccr_dist.simulate.events import interval_of
    from ccr_dist.simulate.events import simulate as simulate_job
    from ccr_dist.simulate.plot import draw
    from ccr_dist.simulate.tables import curve_table, outcome_lines, rates_line

    interval = interval_of(job, step=step)
    steps = None if step is None else every_steps(interval, step, job.checkpoint.write)
    outcome = simulate_job(job, interval=interval)
    found = simulate_curve(job) if curved else None
    if plot is not None and found is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_bytes(draw(found, f"{job.gpus:,} GPUs, {rates_line(job)}"))
    override = None if steps is None else f"runtime.checkpoint_every={steps}"
    if as_json:
        values = outcome.to_json() | {
            "closed_form_ettr": closed_form(job, interval),
            "override": override,
            "job": job.model_dump(mode="json"),
            "curve": None if found is None else found.to_json(),
        }
        print(json.dumps(values, indent=1))
        return
    lines = [outcome_lines(outcome, closed_form(job, interval))]
    if found is not None:
        lines += ["", curve_table(found)]
    if override is not None:
        lines += ["", f"set {override}"]
    if plot is not None:
        lines += ["", str(plot.resolve())]
    print(terminal.visible("\n".join(lines)))


def _list_rates() -> None:
    from ccr_dist.resources import RATES
    from ccr_dist.simulate.schema import load_rates

    for name in RATES.files():
        print(terminal.visible(f"{name:<12} {load_rates(name).title}"))


def _measured(run: Path) -> dict[str, float]:
    """Median seconds of a step, and of the stall of a save, in a run's log. ConfigError where they are not in it."""
    import statistics

    from ccr_dist.data.storage.json_lines import has_types, read_lines

    wanted: dict[str, Any] = {"step_s": int | float, "data_s": int | float, "stall_s": int | float}
    lines = read_lines(run / "log.jsonl", lambda line: has_types(line, wanted)).values
    steps = [line["step_s"] + line.get("data_s", 0.0) for line in lines if "step_s" in line]
    stalls = [line["stall_s"] for line in lines if "stall_s" in line]
    if not steps or not stalls:
        raise ConfigError(
            f"{run / 'log.jsonl'}: no {'step' if not steps else 'save'} was logged yet, whose length is needed: give"
            " --step and --stall instead"
        )
    return {"step": statistics.median(steps), "stall": statistics.median(stalls)}
