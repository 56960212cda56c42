"""`ccr-dist index` and `ccr-dist search`: parse, call, print. No torch at the top."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ccr_dist import terminal
from ccr_dist.data.table.names import column_names
from ccr_dist.declare import declares
from ccr_dist.errors import STOPPED, ConfigError, DataBudgetError, DataError
from ccr_dist.generate.declared import both, options_of
from ccr_dist.generate.job_options import JobOptions, with_job_options
from ccr_dist.places import file_to_read, folder_to_make, folder_to_read, require_writable
from ccr_dist.search.declared import indexing, searching

if TYPE_CHECKING:
    from ccr_dist.retriever.retriever import Retriever
    from ccr_dist.search.index import Index
    from ccr_dist.search.searcher import Answer
    from ccr_dist.search.update import Update

search_app = typer.Typer()
_SHOWN = 10  # files that cannot be read, in a message
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _load(path: str, device: str) -> Retriever:
    from ccr_dist.api import load

    return load(path, device=device)


@search_app.command("index")
@declares(indexing)
@functools.partial(with_job_options, without=("share", "wait"))
def index_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The folder of a run or a model, or hf://ORG/NAME.")],
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURES", help="Folders of pictures and videos, datasets (or URLs of them), tars; any number."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="INDEX", help="Folder of the index.", callback=folder_to_make)
    ] = ...,  # type: ignore[assignment]
    *,
    dtype: Annotated[
        Literal["float32", "float16", "int8"] | None,
        typer.Option(
            "--dtype",
            help="Of the rows that are searched. The best of the smaller ones are scored again with float32 rows."
            " [default: float32]",
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, help="Of each video, evenly spaced. [default: 8]")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            "--column",
            help="Of a dataset: pictures, videos or features. Default: what the model was trained with.",
            callback=column_names,
        ),
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Keep what else the index holds.")] = False,
    instead: Annotated[bool, typer.Option("--instead", help="Drop what else the index holds.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read all files again, also where size and time are as before.")
    ] = False,
    ann: Annotated[
        bool,
        typer.Option(
            "--ann", help="Make approximate search, too (faiss), and say its recall. Later updates make it anew."
        ),
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
    job: JobOptions,
) -> None:
    """Make an index of pictures and videos, or bring one up to date: what is new or changed is encoded, what is gone is
    no longer found. Several processes may do so together.
    """
    from ccr_dist.generate.bad_items import Budget
    from ccr_dist.search.index import begin
    from ccr_dist.search.update import JobSettings

    if add and instead:
        raise ConfigError("--add and --instead exclude each other")
    require_writable(out)
    retriever = _load(model, device)
    index = begin(out, retriever, dtype=dtype, frames=frames, model=model)
    settings = JobSettings(
        batch=job.batch,
        workers=job.workers,
        threads=job.threads,
        lease_s=job.lease_s,
        silence_s=job.silence_s,
        progress=job.progress,
    )
    others: Any = "keep" if add else "drop" if instead else "refuse"
    done = index.update(retriever, pictures, column=column, others=others, check=check, ann=ann, settings=settings)
    if as_json:
        print(json.dumps({"index": str(out), **done.to_json()}, ensure_ascii=False))
    elif not done.stopped:
        _report(out, done)
    if done.stopped:
        _say(f"{out}: stopped on request: the same command goes on from here")
        raise typer.Exit(STOPPED)
    limit = Budget(job.bad_items, job.bad_fraction).limit(done.names)
    if len(done.bad) > limit:
        raise DataBudgetError(
            f"{out}: {len(done.bad)} of {done.names} files cannot be read, {limit} are tolerated (--bad-items,"
            " --bad-fraction). All others are in the index; mend these, or allow more, and run again"
        )


def _report(out: Path, done: Update) -> None:
    show = terminal.console(soft_wrap=True)
    changes = [f"{n} {what}" for what, n in (("new", done.new), ("changed", done.changed), ("gone", done.removed)) if n]
    show.print(
        f"{out}: {done.items} pictures and videos can be found"
        f" ({', '.join(changes) or 'nothing new'}; {done.encoded} encoded)"
    )
    if copies := done.names - len(done.bad) - done.items:
        same = "1 file has the same content as another, and is found with it"
        show.print(same if copies == 1 else f"{copies} files have the same content as others, and are found with them")
    for what, some in (
        ("cannot be read", done.bad),
        ("folders cannot be listed; what was known of them is kept", done.closed),
    ):
        if some:
            show.print(f"{len(some)} {what}:", style="yellow")
            for path, why in list(some.items())[:_SHOWN]:
                show.print(f"  {path}: {why}", style="yellow")
            if len(some) > _SHOWN:
                show.print(f"  ... and {len(some) - _SHOWN} more; --json lists all", style="yellow")
    for note in done.notes:
        show.print(f"note: {note}")
    if done.ann:
        show.print(
            "approximate search (--ann) finds {recall:.1%} of the 10 best, measured with {queries} of the pictures; it"
            " reads {probes} of {lists} lists".format(**done.ann)
        )
    if done.passed:
        files = "1 other file is" if len(done.passed) == 1 else f"{len(done.passed)} other files are"
        show.print(f"{files} passed over; --json lists what", style="dim")


@search_app.command("search")
@declares(searching)
def search_command(
    index: Annotated[
        Path, typer.Argument(metavar="INDEX", help="What `ccr-dist index` has made.", callback=folder_to_read)
    ],
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="QUERY", help="What to look for; in quotes; any number.")
    ] = None,
    *,
    lang: Annotated[
        str | None, typer.Option("--lang", metavar="LANG", help="Language of the queries. Default: found out for each.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many to show for each query.")] = 10,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The model, where it is no longer where it was when the index was made."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Queries from a text file, one a line.", callback=file_to_read)
    ] = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option("--picture", help="A picture as a query; may be repeated.", callback=file_to_read),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", metavar="LABEL=VALUE", help="Only items with this label; files have the label `folder`."
        ),
    ] = None,
    via_english: Annotated[
        Literal["only", "average"] | None,
        typer.Option(
            "--via-english", help="Translate queries: search by the English `only`, or by the `average` of both scores."
        ),
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="That translates. Default: the first one that is installed.")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the engine; may be repeated.")
    ] = None,
    ann: Annotated[
        bool, typer.Option("--ann", help="Approximate search, where the index has it. Default: exact.")
    ] = False,
    opened: Annotated[bool, typer.Option("--open", help="Show the best picture in the system's viewer.")] = False,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a query, one a line.")] = False,
) -> None:
    """Find pictures and videos with sentences, or with pictures."""
    from ccr_dist.search.english import english_by, require_engine
    from ccr_dist.search.index import Index
    from ccr_dist.search.searcher import EnglishNeededError, Searcher

    texts = [*(queries or []), *(_lines(file) if file else [])]
    if not (texts or picture):
        raise ConfigError("nothing to search for: give QUERY, --file or --picture")
    require_engine(engine, via_english, options or [])
    labels = dict(_label(word) for word in where or [])
    opened_index = Index.open(index)
    if not opened_index.items:
        raise DataError(f"{opened_index.path}: the index is empty, or was not finished; run `ccr-dist index` again")
    retriever = _load(model or _model_of(opened_index), device)
    translate = english_by(engine, options_of(both(None, options), None)) if via_english else None
    searcher = Searcher(opened_index, retriever, translate=translate, ann=ann)
    try:
        answers = searcher.texts(texts, lang, k, via_english, labels) if texts else []
    except EnglishNeededError as error:
        raise ConfigError(f"{error}: add --via-english average, which translates it") from None
    answers += searcher.pictures([str(path) for path in picture or []], k, labels)
    for answer in answers:
        if as_json:
            print(json.dumps(answer.to_json(), ensure_ascii=False))
        else:
            _show(answer, opened_index)
    if opened:
        _open(opened_index, answers)


def _model_of(index: Index) -> str:
    path = index.model["path"]
    if path is None or not ("://" in path or Path(path).exists()):
        raise ConfigError(
            f"{index.path}: its model {index.model['name']} is not at {path} any more; name its folder with --model"
        )
    return str(path)


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error})") from None
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None


def _label(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not (equals and name):
        raise ConfigError(f"--where {word!r}: expected LABEL=VALUE")
    return name.removeprefix("label."), value


def _show(answer: Answer, index: Index) -> None:
    """Rank, score, name, and of an item of a dataset a caption, in the language of the query where there is one."""
    from rich.table import Table

    from ccr_dist.search.searcher import uncertain

    show = terminal.console()
    spoken = f" ({answer.lang})" if answer.lang else ""
    show.print(f"{answer.query}{spoken}", style="bold")
    for note in answer.notes:
        how = "; if it is another one, name it with --lang" if note == uncertain(answer.lang or "") else ""
        show.print(f"note: {note}{how}", style="yellow", soft_wrap=True)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="dim")
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    table.add_column(overflow="ellipsis", no_wrap=True, style="dim")
    for hit in answer.hits:
        table.add_row(str(hit.rank), f"{hit.score:.3f}", hit.name, _caption(index, hit.number, answer.lang))
    show.print(table)


def _caption(index: Index, number: int, lang: str | None) -> str:
    try:
        captions = index.item(number).captions
    except DataError:  # its dataset is gone or damaged; what was found stands
        return ""
    return next(iter(captions.get(lang or "") or next(iter(captions.values()), [])), "")


def _open(index: Index, answers: list[Answer]) -> None:
    """Shows the best picture of the first answer, as it was indexed."""
    hit = next((answer.hits[0] for answer in answers if answer.hits), None)
    if hit is None:
        return
    path = Path(hit.path)
    data = index.picture(hit.number)
    if not path.is_file():
        kind = index.named(hit.number).kind
        path = Path(tempfile.mkdtemp(prefix="ccr-dist-")) / f"picture.{_extension(kind, data)}"
        path.write_bytes(data)
    viewer = {"darwin": "open", "win32": "explorer"}.get(sys.platform, "xdg-open")
    if shutil.which(viewer) is None:
        raise ConfigError(f"--open: there is no {viewer} here; the picture is {path}")
    subprocess.Popen(
        [viewer, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=os.name == "posix"
    )


def _extension(kind: str, data: bytes) -> str:
    from ccr_dist.data.media.decode import file_extension

    return file_extension(kind, data)


def _say(text: str) -> None:
    terminal.console(stderr=True, soft_wrap=True).print(text)
