"""`ccr-dist plan`: parse, call, print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ccr_dist import terminal
from ccr_dist.errors import ConfigError
from ccr_dist.places import file_to_make, file_to_read

PLAIN = "run"  # the command that `plan CONFIG` stands for


class Planning(TyperGroup):
    """`plan CONFIG ...` is `plan run CONFIG ...`."""

    plain = PLAIN

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the command's name in front where none is given."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [PLAIN, *args]
        return super().parse_args(ctx, args)


plan_app = typer.Typer()
planning_app = typer.Typer(
    cls=Planning,
    no_args_is_help=True,
    help="Plan a training on hardware that is not at hand (`plan CONFIG --gpus 8 --device h100-80gb`), or a job.",
)
plan_app.add_typer(planning_app, name="plan")


@planning_app.command(PLAIN)
def run(
    config: Annotated[Path, typer.Argument(help="Run config (YAML). Its weights and datasets need not be there.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings that replace those of the config: key.sub=value, any number.")
    ] = None,
    gpus: Annotated[str, typer.Option(help="Numbers of GPUs: 1,8,64.")] = "1,8",
    device: Annotated[
        str | None,
        typer.Option(help="A GPU of the table, such as h100-80gb or a100-80gb; or a YAML file with one of your own."),
    ] = None,
    nodes_of: Annotated[
        int | None, typer.Option(min=1, help="GPUs of a node. Default: as such GPUs usually come.")
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="Link between nodes: ndr400, hdr200x4 (4 adapters a node), ... Default: as they usually have."
        ),
    ] = None,
    strategies: Annotated[
        str | None, typer.Option(help="ddp,zero1,zero2,zero3,fsdp2, or some of them. Default: all.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32,bf16,fp16, or some of them. Default: the config's.")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="First measure this machine for about a minute, and plan for machines like it."),
    ] = False,
    clock: Annotated[
        Literal["wall", "cpu"] | None,
        typer.Option(help="With --measure: wall; or cpu, processor time, which other work here changes little."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="File of a measured machine, to be made with --measure, else used. Default: OUT/calibrations."
        ),
    ] = None,
    loader_rows: Annotated[
        float | None,
        typer.Option(help="Rows a second that one loader process makes ready. Default: reading is fast enough."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of a caption, with start and end, without prompt. Default: as many as the text tower reads.",
        ),
    ] = None,
    captions: Annotated[
        int | None,
        typer.Option(min=1, help="Captions that a stage in closed form sums up. Default: counted in the datasets."),
    ] = None,
    failures: Annotated[
        str | None,
        typer.Option(help="How often to save, and what that costs: rates by name (llama3, ...), or hours of a node."),
    ] = None,
    stall: Annotated[
        str | None, typer.Option(help="With --failures: how long a save takes. Default: its bytes at 1 GB/s.")
    ] = None,
    restart: Annotated[str, typer.Option(help="With --failures: from a failure until training goes on.")] = "10m",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a training would need and take: memory of a GPU by part, time of a step by part, GPU-hours; the best way to
    run it, and the command for that.

    Nothing is computed and no weights are read: the step runs on fake tensors. Example: `ccr-dist plan
    configs/clip/dasd.yaml --gpus 1,8,64 --device h100-80gb`. How it is done and how far it is right: docs/plan.md.
    """
    import itertools
    import json
    import shlex

    from ccr_dist.methods.run_config import load_config
    from ccr_dist.plan.cost.machine import machine_of
    from ccr_dist.plan.cost.messages import STRATEGIES
    from ccr_dist.plan.measure import calibrated
    from ccr_dist.plan.predict import Traces, require_rows, steps_of
    from ccr_dist.plan.recommend import options, recommend
    from ccr_dist.plan.table import duration

    if failures is None and stall is not None:
        raise ConfigError(f"--stall {stall}: only with --failures")
    read = load_config(config, overrides or ())
    counts = numbers(gpus)
    wanted = chosen("--strategies", strategies, [each for each in STRATEGIES if each != "single"])
    precisions = chosen("--precision", precision, ["fp32", "bf16", "fp16"]) if precision else [read.runtime.precision]
    found = device_of(device)
    if calibration is not None:
        (file_to_make if measure else file_to_read)(calibration)
    if captions is not None and len(steps_of(read)) == len(read.stages):
        raise ConfigError(f"--captions {captions}: only for stages in closed form, and {config} has none")
    if failures is not None and not steps_of(read):
        raise ConfigError(
            f"--failures: {config} has only stages in closed form, which save their sums every minute by themselves;"
            " there is no interval to choose"
        )
    require_rows(read, max(counts))
    per_node = nodes_of or (found.node.gpus if found is not None else max(counts))
    if found is not None:  # what no machine can be is said before anything is traced
        for count, kind in itertools.product(counts, precisions):
            machine_of(found, gpus=count, per_node=per_node, precision=kind, network=network)
    traces = Traces(read, tokens=tokens, captions=captions)
    speeds = calibrated(
        read, traces, fresh=measure, path=calibration, precisions=precisions, counts=counts, clock=clock
    )
    if found is None and speeds is None:
        raise ConfigError("--device is missing: name a GPU, such as --device h100-80gb, or measure here with --measure")
    every = {
        count: options(
            read, gpus=count, per_node=per_node, device=found, strategies=wanted, precisions=precisions,
            calibration=speeds, network=network, rows_per_s=loader_rows, traces=traces,
        )
        for count in counts
    }  # fmt: skip
    words = shlex.join([str(config), *(overrides or ())])
    gpu = speeds is None or speeds.machine["device"] == "cuda"
    best = {count: recommend(read, each, per_node=per_node, path=words, gpu=gpu) for count, each in every.items()}
    broken = []
    if failures is not None:
        from ccr_dist.plan.failures import interrupted, rates_of

        rates = rates_of(failures, per_node)
        broken = [
            interrupted(
                each.option, rates, per_node=per_node, stall=stall, restart=restart,
                state_bytes=[
                    3 * traces.of(s.stage, s.world, s.precision).trained_bytes
                    for s in each.option.stages if s.stage in steps_of(read)
                ],
            )
            for each in best.values()
            if each.option is not None
        ]  # fmt: skip
    if as_json:
        plain = {
            "config": str(config),
            "device": found.title if found is not None and speeds is None else speeds and speeds.name,
            "gpus_of_a_node": per_node,
            "options": [each.to_json() for several in every.values() for each in several],
            "recommendations": [each.to_json() for each in best.values()],
            "interrupted": [each.to_json() for each in broken],
        }
        print(json.dumps(plain, indent=1))
        return
    _show(every, best)
    for each in broken:
        said = f"{each.gpus} GPUs: {each.advice.sentence()}; all steps take {duration(each.total_s)} then."
        terminal.console().print(said, soft_wrap=True, markup=False)


JOB = {"allow_extra_args": True, "ignore_unknown_options": True}
Sample = Annotated[int, typer.Option(min=2, help="Rows that are made to measure the job, evenly spaced.")]
Workers = Annotated[str, typer.Option("--gpus", help="Numbers of workers, one GPU each: 1,8.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@planning_app.command("describe", context_settings=JOB)
def describe(ctx: typer.Context, sample: Sample = 64, gpus: Workers = "1", as_json: Json = False) -> None:
    """GPU-hours of `ccr-dist describe`, with that command's own arguments after it.

    Some rows go through the real job, in a temporary folder; the dataset is not changed. Example: `ccr-dist plan
    describe data/train --engine vllm model=Qwen/Qwen2.5-VL-7B-Instruct --gpus 1,8`.
    """
    _job("describe", ctx.args, sample, gpus, as_json)


@planning_app.command("translate", context_settings=JOB)
def translate(ctx: typer.Context, sample: Sample = 64, gpus: Workers = "1", as_json: Json = False) -> None:
    """GPU-hours of `ccr-dist translate`, with that command's own arguments after it, as `plan describe`."""
    _job("translate", ctx.args, sample, gpus, as_json)


@planning_app.command("featurise", context_settings=JOB)
def featurise(ctx: typer.Context, sample: Sample = 64, gpus: Workers = "1", as_json: Json = False) -> None:
    """GPU-hours of `ccr-dist featurise`, with that command's own arguments after it, as `plan describe`."""
    _job("featurise", ctx.args, sample, gpus, as_json)


def _job(name: str, words: list[str], sample: int, gpus: str, as_json: bool) -> None:
    import json
    import tempfile

    from ccr_dist.data.table.dataset import open_all
    from ccr_dist.generate.cli import jobs_app
    from ccr_dist.generate.summary import LISTENER
    from ccr_dist.plan import table
    from ccr_dist.plan.jobs import Stopwatch, extrapolated, sampled

    command: Any = typer.main.get_command(jobs_app).commands[name]  # type: ignore[attr-defined]
    counts = numbers(gpus)
    with command.make_context(f"ccr-dist {name}", list(words)) as context:
        given = context.params
        if given.get("back"):
            raise ConfigError("--back: plan each way by itself; the way back is as long as the first one again")
        columns = [given[name] for name in ("source", "captions") if given.get(name) is not None]
        datasets = open_all(given["dataset"])
        rows = sum(each.rows for each in datasets)
        largest = max(datasets, key=lambda each: each.rows)
        with tempfile.TemporaryDirectory(prefix="ccr-dist-plan-") as place:
            made = sampled(largest, columns, sample, Path(place) / "sample")
            given |= {"dataset": made.root, "progress": False}
            heard = Stopwatch()
            token = LISTENER.set(heard)
            try:
                command.invoke(context)
            finally:
                LISTENER.reset(token)
    rate = heard.rate()
    plans = [extrapolated(rate, rows, count) for count in counts]
    if as_json:
        print(json.dumps({"rate": vars(rate), "plans": [each.to_json() for each in plans]}, indent=1))
    else:
        terminal.console().print(table.jobs(rate, plans))


def _show(every: Any, best: Any) -> None:
    from ccr_dist.plan import table

    show = terminal.console(soft_wrap=False)
    tables = [table.overview(every, best)]
    predictions = [stage for each in best.values() if each.option for stage in each.option.stages]
    if predictions:
        tables += table.details(predictions)
    for each in tables:
        show.width = max(show.width, each.__rich_measure__(show, show.options.update(max_width=1000)).maximum)
        show.print(each)
    for each in best.values():
        name = f"{each.option.strategy} in {each.option.precision}" if each.option else "nothing"
        show.print(f"{each.gpus} GPU{'s' * (each.gpus != 1)}: {name}: {each.reason}.", soft_wrap=True, markup=False)
        for text in filter(None, (each.command, each.step)):
            show.print(text, soft_wrap=True, markup=False, highlight=False)
    refused = {(o.strategy, o.refused): o.gpus for several in every.values() for o in several if o.refused}
    for strategy, why in refused:
        show.print(f"{strategy} is refused: {why}.", soft_wrap=True, markup=False)
    for note in dict.fromkeys(note for each in predictions for note in each.notes):
        show.print(f"note: {note}", soft_wrap=True, markup=False)


def numbers(text: str) -> list[int]:
    """`1,8,64` as numbers. Raises ConfigError."""
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch("[1-9][0-9]{0,6}", word) for word in words):
        raise ConfigError(f"--gpus {text}: expected whole numbers above 0 with commas between them, like 1,8,64")
    return sorted({int(word) for word in words})


def chosen(option: str, text: str | None, known: list[str]) -> list[str]:
    """Words of a list that the user chose; None: all. Raises ConfigError."""
    words = known if text is None else [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in known]:
        raise ConfigError(f"{option} {text}: {', '.join(unknown) or 'empty'}: expected some of {','.join(known)}")
    return list(dict.fromkeys(words))


def device_of(name: str | None) -> Any:
    """The device that the user names. Raises ConfigError."""
    from ccr_dist import devices, resources
    from ccr_dist.devices.table import read

    if name is None:
        return None
    if not resources.is_path(name):
        return devices.named(name)
    gpus = read(Path(name)).gpus
    if len(gpus) != 1:
        raise ConfigError(f"--device {name}: expected a file with one GPU below `gpus:`, it has {len(gpus)}")
    return next(iter(gpus.values()))
