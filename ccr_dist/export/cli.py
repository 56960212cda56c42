"""`ccr-dist export` and `ccr-dist push`: parse, call, print. No torch at the top."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from ccr_dist import terminal
from ccr_dist.declare import declares
from ccr_dist.errors import ConfigError
from ccr_dist.export.declared import exporting
from ccr_dist.places import folder_to_make, folder_to_read, require_writable

export_app = typer.Typer()  # may be a step of a pipeline
push_app = typer.Typer()
Form = Literal["sentence-transformers", "onnx", "open_clip", "peft", "safetensors"]


@export_app.command("export")
@declares(exporting)
def export_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The folder of a run or a model, or hf://ORG/NAME.")],
    to: Annotated[Form, typer.Option("--to", help="The form.")] = ...,  # type: ignore[assignment]
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="New folder, or an export to replace.", callback=folder_to_make)
    ] = ...,  # type: ignore[assignment]
    *,
    lang: Annotated[
        list[str] | None, typer.Option(help="Languages to export, any number; default: all of the model's.")
    ] = None,
    pictures: Annotated[
        Literal["auto", "yes", "no"], typer.Option(help="Export the picture side: auto: where the form can hold it.")
    ] = "auto",
    check: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET",
            help="Dataset, or text file of lines LANG<TAB>QUERY, to check on; default: the run's validation split.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Write a model in the form of another tool, and check there that it computes the same.

    The export fails with exit code 13, and leaves nothing behind, where a row has a cosine below 0.9999 with the
    model's own.
    """
    from ccr_dist.api import load
    from ccr_dist.export.folder import export

    require_writable(out)
    retriever = load(model, device="cpu")
    asked = {"auto": None, "yes": True, "no": False}[pictures]
    record = export(retriever, to, out, languages=lang or (), pictures=asked, check=check)
    if as_json:
        print(json.dumps(record, ensure_ascii=False, indent=1))
        return
    for what, found in record["measured"].items():
        print(f"{what}: {found['rows']} rows, least cosine with the model's {found['least_cosine']:.7f}")
    for note in record["notes"]:
        print(f"note: {note}")
    print(f"{terminal.visible(str(out))}: written; README.md says how it is used")


@push_app.command("push")
def push_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_EXPORT",
            help="The folder of a run, of a model or of an export.",
            callback=folder_to_read,
        ),
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO_ID", help="ORG/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Of a repository that is made now.")] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Add a model of ccr-dist",
) -> None:
    """Put a model or an export into a repository of a hub (HF_ENDPOINT, HF_TOKEN), with its model card."""
    from ccr_dist.export.folder import is_export
    from ccr_dist.export.push import push_export, push_model

    folder = Path(model)
    if not folder.is_dir():
        raise ConfigError(f"{model}: no such folder; name that of a run, a model or an export")
    push = push_export if is_export(folder) else push_model
    print(push(folder, repo, private=private, message=message))
