"""The command `serve`: opens indexes and their models, takes the port, and answers until somebody ends it."""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any

from ccr_dist.errors import CcrError, ConfigError, storage
from ccr_dist.serve.access import Access

if TYPE_CHECKING:
    from ccr_dist.search.index import Index
    from ccr_dist.serve.gallery import Gallery
    from ccr_dist.serve.limits import Limits

HEARD = 2048  # connections that wait to be accepted


def serve(
    paths: Sequence[Path],
    *,
    host: str,
    port: int,
    access: Access,
    models: Sequence[Path] = (),
    engine: str | None = None,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    opened: bool = False,
    quiet: bool = False,
) -> None:
    """Serves indexes until SIGINT or SIGTERM.

    Args:
        paths: folders of indexes.
        host: name or address to listen on.
        port: to listen on; 0: one that is free.
        access: who may ask.
        models: of the indexes, in their order, where these lie elsewhere by now; empty: as recorded.
        engine: that translates queries into English; None: the first one that is installed and can.
        options: of the engine.
        device: for the models.
        opened: open the page in a browser.
        quiet: log no requests.

    Raises:
        ConfigError: the port is taken, an index is of another model, an extra is missing.
        DataError: an index is damaged.
    """
    import fastapi  # noqa: F401 (what is not installed is said before models are read)
    import uvicorn  # noqa: F401

    with listening(host, port) as listener:  # before models are read, too
        galleries = opened_galleries(paths, models, device, engine=engine, options=options or {})
        for gallery in galleries:
            print(f"{gallery.name}: {gallery.index.items:,} items, model {gallery.searcher.retriever.name}")
        address = _address(host, listener)
        print(f"Serving at {address} (Ctrl-C ends it)", flush=True)
        if opened:
            import webbrowser

            webbrowser.open(address)
        answer(galleries, listener, access=access, quiet=quiet)
        print("Stopped.", file=sys.stderr)


def answer(
    galleries: Sequence[Gallery],
    listener: socket.socket,
    *,
    access: Access,
    limits: Limits | None = None,
    quiet: bool = False,
) -> None:
    """Answers on a socket until SIGINT or SIGTERM. In the main thread.

    Args:
        galleries: what is served.
        listener: listens already.
        access: who may ask.
        limits: of requests and connections; None: the usual ones.
        quiet: log no requests.
    """
    import uvicorn

    from ccr_dist.serve.app import create_app
    from ccr_dist.serve.connections import protocol
    from ccr_dist.serve.guard import to_stderr
    from ccr_dist.serve.limits import Limits

    limits = limits or Limits()
    app = create_app(galleries, access=access, limits=limits, log=None if quiet else to_stderr)
    config = uvicorn.Config(
        app, http=protocol(limits), ws="none", lifespan="on", loop="asyncio", access_log=False, log_config=None,
        proxy_headers=False, server_header=False, h11_max_incomplete_event_size=limits.header, timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    with _ended_by_signals():
        uvicorn.Server(config).run(sockets=[listener])


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens on an address.

    Raises:
        ConfigError: the port is taken, or not for this user; there is no such address here.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror or error}; expected an address of this machine") from None
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(HEARD)
            listener.setblocking(False)
        except OSError as error:
            raise _cannot_listen(error, host, port) from None
        yield listener


def _cannot_listen(error: OSError, host: str, port: int) -> CcrError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} of {host} is in use, perhaps by another `ccr-dist serve`: end it, or choose another port"
            " (--port; 0 takes a free one)"
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port}: not for this user; choose one from 1024 on (--port)")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f"--host {host}: this machine has no such address; 0.0.0.0 means all it has")
    return storage(error, f"{host}:{port}")


def opened_galleries(
    paths: Sequence[Path],
    models: Sequence[Path] = (),
    device: str = "auto",
    *,
    engine: str | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> list[Gallery]:
    """Indexes with their models. A model that made several of them is loaded once.

    Args:
        paths: folders of indexes.
        models: of the indexes, in their order; empty: as these record.
        device: for the models.
        engine, options: as for `serve`.

    Raises:
        ConfigError: a model is not where it was, or is not the one that made the index; or `engine` translates none of
            the languages.
        DataError: an index is damaged, or there is none.
    """
    import ccr_dist
    from ccr_dist.search.english import english_by, known
    from ccr_dist.search.index import Index
    from ccr_dist.search.searcher import Searcher
    from ccr_dist.serve.gallery import Gallery

    if models and len(models) != len(paths):
        raise ConfigError(f"--model: {len(models)} given for {len(paths)} indexes; give one for each, in their order")
    indexes = [Index.open(path) for path in paths]
    folders = [Path(model) for model in models] or [_recorded(index) for index in indexes]
    retrievers = {folder: ccr_dist.load(folder, device=device) for folder in dict.fromkeys(folders)}
    spoken = dict.fromkeys(lang for index in indexes for lang in index.languages)
    english = known(list(spoken), engine, options)
    if engine is not None and not english:
        raise ConfigError(f"--engine {engine}: translates none of {', '.join(spoken)} into English here")
    translate = english_by(engine, options) if english else None
    found = zip(names_of(paths), indexes, folders, strict=True)
    return [
        Gallery(
            place,
            name,
            index,
            Searcher(index, retrievers[folder], translate=translate),
            [lang for lang in index.languages if lang in english],
        )
        for place, (name, index, folder) in enumerate(found)
    ]


def _recorded(index: Index) -> Path:
    folder = index.model["path"]
    if folder is None or not Path(folder).exists():
        raise ConfigError(
            f"{index.path}: its model {index.model['name']} is not at {folder} any more; name its folder with --model"
        )
    return Path(folder)


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each folder: its own, or with that of the folder above where two are called alike."""
    short = [path.resolve().name for path in paths]
    often = Counter(short)
    return [
        name if often[name] == 1 else f"{path.resolve().parent.name}/{name}"
        for name, path in zip(short, paths, strict=True)
    ]


def _address(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGINT and SIGTERM end the server, and not as an error: uvicorn sends itself the signal again at the end."""

    def passed(number: int, frame: FrameType | None) -> None:
        return

    before = {number: signal.signal(number, passed) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
