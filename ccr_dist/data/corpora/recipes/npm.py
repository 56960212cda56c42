"""Packages of the npm registry, fetched once into the cache folder by the user's npm; recipes know what is in them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from ccr_dist.data.storage.cache_folder import cache_folder
from ccr_dist.errors import ConfigError, DataError


def pack(package: str, folder: Path, *, instead: str) -> Path:
    """Fetch the archive of a package.

    Args:
        package: `NAME@VERSION`.
        folder: An empty folder.
        instead: What else the user can do, to end messages with.

    Returns:
        The archive.

    Raises:
        ConfigError: npm is not installed or fails.
    """
    if shutil.which("npm") is None:
        raise ConfigError(f"npm is not installed, and {package} comes from its registry; install npm, {instead}")
    done = subprocess.run(
        ["npm", "pack", package, "--silent", "--ignore-scripts"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        raise ConfigError(f"`npm pack {package}` failed: {done.stderr.strip()[-500:]}; try again, {instead}")
    return archives[0]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Context manager: an open archive.

    Raises:
        DataError: The archive is damaged, lacks a member that the block asks for, or has members that lead out of the
            folder.
    """
    try:
        with tarfile.open(path) as archive:
            yield archive
    except (tarfile.TarError, EOFError, zlib.error, KeyError) as e:
        raise DataError(
            f"{path.name}: not the archive that was expected ({type(e).__name__}: {e}); run again to fetch it again"
        ) from e


def unpacked(package: str, *, instead: str) -> Path:
    """The folder with a package's files, fetched if needed. Arguments and errors as for `pack`."""
    cache = cache_folder("npm")
    target = cache / package.lstrip("@").replace("/", "-")
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            with opened(pack(package, Path(folder), instead=instead)) as archive:
                archive.extractall(Path(folder) / "all", filter="data")
            try:
                Path(folder, "all/package").rename(target)
            except OSError:
                if not target.exists():  # otherwise another build was faster
                    raise
    return target
