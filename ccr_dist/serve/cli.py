"""`ccr-dist serve`: parse, call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccr_dist.errors import ConfigError
from ccr_dist.places import file_to_read, folder_to_read

serve_app = typer.Typer()


@serve_app.command()
def serve(
    indexes: Annotated[
        list[Path],
        typer.Argument(
            metavar="INDEX...",
            help="Indexes that `ccr-dist index` made; two are shown side by side.",
            callback=folder_to_read,
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. Any other than loopback needs a token, or --no-token."),
    ] = "127.0.0.1",
    name: Annotated[
        list[str] | None,
        typer.Option(help="Further name under which browsers reach this server (header Host), any number."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="Token that clients must give; other users of this machine can see it in the list of processes."
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File whose first line is the token.", callback=file_to_read)
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Everybody who reaches --host may search and see all pictures.")
    ] = False,
    model: Annotated[
        list[Path] | None,
        typer.Option(help="Model folder of each index, in their order, where it lies elsewhere than recorded."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="That translates queries into English. Default: the first one that is installed and can."),
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the engine; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of the models: auto, cpu, cuda, cuda:1, ...")] = "auto",
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log no requests.")] = False,
) -> None:
    """Serve indexes as a page to search in, and as an HTTP API. Only this machine reaches it, unless --host says so."""
    from ccr_dist.generate.declared import both, options_of
    from ccr_dist.serve.access import Access, chosen_token
    from ccr_dist.serve.server import serve as run

    chosen = chosen_token(host, token=token, file=token_file, none=no_token)
    access = Access(host, names=tuple(name or ()), token=chosen)
    if options and engine is None:
        raise ConfigError("--set is for --engine: name it")
    run(
        indexes,
        host=host,
        port=port,
        access=access,
        models=model or (),
        engine=engine,
        options=options_of(both(None, options), None),
        device=device,
        opened=open_page,
        quiet=quiet,
    )
