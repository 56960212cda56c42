"""`ccr-dist train`, `evaluate`, `doctor`, `scale compare` and `checkpoint ...`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ccr_dist import terminal
from ccr_dist.declare import File, Folder, Uses, declares
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.places import file_to_make, folder_to_make, folder_to_read, require_writable
from ccr_dist.train.declared import check_evaluated, configs_of, evaluated_place, evaluating, training

train_app = typer.Typer()
checkpoint_app = typer.Typer(no_args_is_help=True, help="Look at checkpoints, check them, convert them.")
train_app.add_typer(checkpoint_app, name="checkpoint")
scale_app = typer.Typer(
    no_args_is_help=True, help="Scaling experiments: carry one out, report what it showed, compare finished runs."
)
train_app.add_typer(scale_app, name="scale")
Config = Annotated[Path, typer.Argument(help="Run config (YAML).")]
Measured = Annotated[Path, typer.Argument(help="Run config (YAML), or the folder of a run or a model.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings that replace those of the config: key.sub=value, any number.")
]
Seeds = Annotated[str | None, typer.Option(help="Several runs, one after the other, with these seeds: 0,1,2.")]
Target = Annotated[Path, typer.Argument(help="Run folder, or one checkpoint of it.", callback=folder_to_read)]


@train_app.command()
@declares(training)
def train(
    config: Config,
    overrides: Overrides = None,
    seeds: Seeds = None,
    test: Annotated[
        bool, typer.Option("--test", help="Then measure the selected checkpoint on the test split.")
    ] = False,
    world: Annotated[int | None, typer.Option(help="Refuse to run on any other number of processes.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="ddp, zero1, zero2, zero3 or fsdp2. Refuses another launch profile. Default: the profile's, or ddp."
        ),
    ] = None,
) -> None:
    """Train a run, or resume one.

    Writes the run folder OUT/NAME-sSEED: checkpoints, the log, and the weights that validation selects. An interrupted
    run resumes with the same command.

    Example: `ccr-dist train configs/demo/dasd.yaml --test`. On several processes: `accelerate launch --config_file
    launch/accelerate/ddp.yaml --num_processes 2 -m ccr_dist train configs/demo/dasd.yaml --test`.
    """
    configs = configs_of(config, overrides, seeds)
    from ccr_dist.train import commands

    _exit(commands.train(configs, test=test, world=world, spread=strategy))


@train_app.command()
@declares(evaluating)
def evaluate(
    config: Measured,
    overrides: Overrides = None,
    seeds: Seeds = None,
    split: Annotated[str, typer.Option(help="The split that is measured: val or test.")] = "test",
    again: Annotated[
        bool,
        typer.Option("--again", help="Measure again although a result exists; readings of a test set are counted."),
    ] = False,
    world: Annotated[int | None, typer.Option(help="Refuse to run on any other number of processes.")] = None,
    mteb: Annotated[
        str | None, typer.Option(help="Measure on these tasks of mteb instead: NAME,NAME=DATASET (docs/mteb.md).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With --mteb: folder of its results. Default: results/mteb of the run.", callback=folder_to_make
        ),
    ] = None,
    langs: Annotated[
        str | None, typer.Option(help="With --mteb: languages of its tasks, such as de,pt. Default: all.")
    ] = None,
) -> None:
    """Measure a run on a split.

    Takes the checkpoint that validation selected, or a method that is not trained, and writes RUN/results/SPLIT.json:
    recalls in both directions for each language, with intervals. Example: `ccr-dist evaluate configs/demo/dasd.yaml
    --split val`.

    Instead of a config, the folder of a run or of a model can be named, wherever it lies; overrides then change `data`
    and `runtime` alone.
    """
    check_evaluated(split, world, mteb, out, langs)
    if mteb is not None:
        if out is not None:
            require_writable(out)
        from ccr_dist.standard import command

        place = evaluated_place(config, overrides, seeds)
        if place is None:
            models = [command.run_of(each) for each in configs_of(config, overrides, seeds)]
        else:
            models = [command.model_at(place)]
        command.evaluate(models, mteb, out=out, langs=langs, again=again)
        return
    configs = configs_of(config, overrides, seeds)
    from ccr_dist.train import commands

    if config.is_dir():
        subjects = [commands.measured(config, overrides or ())]
        _exit(commands.evaluate_all(subjects, split=split, again=again, world=world))
    else:
        _exit(commands.evaluate(configs, split=split, again=again, world=world))


@train_app.command()
@declares(lambda: Uses())
def doctor(
    out: Annotated[Path, typer.Option(help="The folder that run folders will lie in.", callback=folder_to_make)] = Path(
        "runs"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine before a training.

    Looks at software, devices, limits and the disk; under a launcher also at the network between its processes. Says
    what to do about each problem, and then ends with exit code 2. Example: `ccr-dist doctor --out runs`.
    """
    from ccr_dist.train.watch import doctor as machine

    _exit(machine.command(out, as_json=as_json))


@scale_app.command("compare")
@declares(lambda runs: Uses(reads=tuple(Folder(str(run)) for run in runs)))
def compare_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders of the same training, on different numbers of nodes.", callback=folder_to_read
        ),
    ],
    warmup: Annotated[int, typer.Option(min=0, help="Steps at the beginning of each stage that are left out.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare the speed of a training on several numbers of nodes.

    Reads the logs of its runs: samples a second, efficiency, waiting for data, communication. Only logged steps count:
    train with runtime.log_every=1. Example: `ccr-dist scale compare runs/scale-1-s0 runs/scale-2-s0`
    (docs/start/scaling.md).
    """
    import json

    from ccr_dist.scaling.compare import rows, table

    found = rows(runs, warmup)
    print(json.dumps([row.to_json() for row in found], indent=1) if as_json else table(found))


def _exit(code: int) -> None:
    if code:
        raise typer.Exit(code)


def _looking(path: Path) -> Uses:
    return Uses(reads=(Folder(str(path)),))


def _converting(path: Path, out: Path) -> Uses:
    made = File(str(out)) if out.suffix == ".safetensors" else Folder(str(out))
    return Uses(reads=(Folder(str(path)),), makes=(made,))


@checkpoint_app.command("inspect")
@declares(_looking)
def inspect_command(
    path: Target,
    every: Annotated[bool, typer.Option("--tensors", help="list every tensor")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What there is: of a run its checkpoints and why they are kept; of a checkpoint its progress, tensors by module,
    and sizes.
    """
    import json

    from ccr_dist.train.state import checkpoint_contents

    alone = checkpoint_contents.checkpoints_of(path) == [path]
    found = checkpoint_contents.inspect(path) if alone else checkpoint_contents.inspect_run(path)
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return
    console = terminal.console(soft_wrap=True)
    if isinstance(found, list):
        console.print(_run_table(found))
        return
    row = found
    for line in _lines(row):
        console.print(line, markup=False)
    for part, tensors in row["tensors"].items():
        if tensors and every:
            for name, tensor in tensors.items():
                console.print(
                    f"{part}  {name}  {tensor['dtype']} {tensor['shape']}  {_size(tensor['bytes'])}", markup=False
                )
        elif tensors:
            console.print(_group_table(part, checkpoint_contents.groups(tensors)))


@checkpoint_app.command("verify")
@declares(_looking)
def verify_command(path: Target) -> None:
    """Compare every file with the digest that was recorded when it was written. Exit code 8 when one is damaged."""
    from ccr_dist.train.state import checkpoint_contents

    damaged, healthy = [], []
    for found, wrong, sealed in checkpoint_contents.verify(path):
        well = "as it was written" if found.is_dir() else "its digest is right"
        if not sealed:
            well = "readable, but an earlier version wrote it without a digest of its own"
        print(f"{found}: {wrong or well}", flush=True)
        if wrong:
            damaged.append(f"{found.name}: {wrong}")
        elif found.parent.name == "checkpoints":
            healthy.append(found)
    if gone := checkpoint_contents.missing_best(path):
        damaged.append(gone)
    if damaged:
        resumed = (
            f"; a resume continues from {healthy[-1].name}"
            if healthy
            else "; no checkpoint is left that a resume could continue from"
        )
        raise CheckpointError(
            f"{path}: {'; '.join(damaged)}{resumed if path != checkpoint_contents.checkpoints_of(path)[0] else ''}"
        )


@checkpoint_app.command("convert")
@declares(_converting)
def convert_command(
    path: Annotated[Path, typer.Argument(help="one checkpoint, of either layout", callback=folder_to_read)],
    out: Annotated[
        Path,
        typer.Argument(
            help="NAME.safetensors: the weights alone; a folder: below it the checkpoint, with whole tensors"
        ),
    ],
    bf16: Annotated[bool, typer.Option("--bf16", help="weights in bfloat16")] = False,
) -> None:
    """Weights for other programs, as they were validated (averaged, where the run averages); or a sharded checkpoint
    made whole.
    """
    from ccr_dist.train.state.checkpoint import load, publish, save

    alone = out.suffix == ".safetensors"
    (file_to_make if alone else folder_to_make)(out)
    if out.exists() and (alone or any(out.iterdir())):
        raise ConfigError(f"{out} already exists; give another name, or delete it")
    if bf16 and not alone:
        raise ConfigError(
            f"--bf16 is for weights alone (NAME.safetensors); the checkpoint below {out} could not be resumed exactly"
        )
    require_writable(out.parent)
    if not (path / "state.json").exists():
        raise CheckpointError(f"{path}: no checkpoint; expected RUN/checkpoints/step-00000100")
    state = load(path)
    if alone:
        from ccr_dist.train.step.ema import selected

        weights = selected(state)
        publish(
            {
                name: value.bfloat16() if bf16 and value.is_floating_point() else value
                for name, value in weights.items()
            },
            out,
        )
    else:
        save(out, state)
    print(out)


def _lines(row: dict[str, Any]) -> list[str]:
    made, best = row["made_by"] or {}, row["best"]
    return [
        row["path"],
        (
            f"step {row['step']}, stage {row['stage']} step {row['stage_step']}; {row['layout']},"
            f" {_size(row['bytes'])}; saved {_age(row['age_s'])} ago by {made.get('strategy', '?')} on"
            f" {made.get('world', '?')} process(es)"
        ),
        (
            f"best so far: {best['metric']} {best['value']:.2f} at step {best['step']} ({best['stage']})"
            if best
            else "not validated yet"
        ),
        f"{row['skipped']} steps skipped, {row['substituted']} samples substituted; optimiser states: "
        + (", ".join(row["optimizer_states"]) or "none: the stage has just begun"),
    ]


def _run_table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("step", "stage", "made by", "layout", "size", "age", "kept")
    for row in rows:
        if "problem" in row:
            table.add_row(Path(row["path"]).name, row["problem"])
            continue
        made = row["made_by"] or {}
        table.add_row(
            str(row["step"]), f"{row['stage']} {row['stage_step']}",
            f"{made.get('strategy', '?')} x {made.get('world', '?')}",
            row["layout"], _size(row["bytes"]), _age(row["age_s"]),
            "; ".join(row["kept"]) or "nothing: goes with the next save",
        )  # fmt: skip
    return table


def _group_table(part: str, groups: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(part, "tensors", "numbers", "size", "dtypes")
    for group in groups:
        table.add_row(
            group["module"],
            str(group["tensors"]),
            f"{group['numbers']:,}",
            _size(group["bytes"]),
            ", ".join(group["dtypes"]),
        )
    return table


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
