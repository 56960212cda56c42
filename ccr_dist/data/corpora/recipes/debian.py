"""Files of Debian packages: installed ones, given ones, or fetched once into the cache folder by the user's apt-get;
recipes know what is in them.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from ccr_dist.data.storage.cache_folder import cache_folder
from ccr_dist.errors import ConfigError


def package_files(package: str, inside: str, source: str | None, *, cache: str = "debian") -> tuple[Path, str]:
    """Find a folder of a package, and fetch the package if needed.

    Args:
        package: Its name.
        inside: The folder that is wanted, as it is installed, without the first slash: `usr/share/...`.
        source: The folder itself, an unpacked package or a .deb; None: the installed package, otherwise one fetched by
            apt-get.
        cache: Name of the cache folder for what is fetched and unpacked.

    Returns:
        The folder, and the version of the package.

    Raises:
        ConfigError: There is no such source, it lacks the folder, or a program that is needed is missing or fails.
    """
    if source is not None:
        path = Path(source)
        if path.is_dir():
            return (path / inside if (path / inside).is_dir() else path), "unknown (given folder)"
        if path.suffix == ".deb" and path.is_file():
            return _unpack(package, path, inside, cache)
        raise ConfigError(f"source: {path} is neither a folder nor a .deb file")
    installed = Path("/") / inside
    if installed.is_dir() and (version := _installed_version(package)):
        return installed, version
    folder = cache_folder(cache)
    if not (debs := sorted(folder.glob(f"{package}_*.deb"))):
        if shutil.which("apt-get") is None:
            raise ConfigError(
                f"source: {package} is not installed and there is no apt-get here to fetch it; get the Debian package"
                " elsewhere and set source=FILE.deb, or source=FOLDER of an unpacked one"
            )
        with tempfile.TemporaryDirectory(dir=folder) as fetched:
            _output(["apt-get", "download", package], package, Path(fetched))
            for deb in Path(fetched).glob("*.deb"):
                deb.replace(folder / deb.name)
        debs = sorted(folder.glob(f"{package}_*.deb"))
    return _unpack(package, debs[-1], inside, cache)


def _installed_version(package: str) -> str:
    """The version of an installed package; "" if the folder is there without it, as after a build from source."""
    if shutil.which("dpkg-query") is None:
        return ""
    command = ["dpkg-query", "-W", "-f", "${Version}", package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _unpack(package: str, deb: Path, inside: str, cache: str) -> tuple[Path, str]:
    name, version = _output(["dpkg-deb", "-W", "--showformat", "${Package} ${Version}", str(deb)], package).split()
    if name != package:
        raise ConfigError(f"source: {deb} is the package {name}; expected {package}")
    folder = cache_folder(cache)
    target = folder / f"{package}-{version}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as unpacked:
            _output(["dpkg-deb", "-x", str(deb), f"{unpacked}/all"], package)
            try:
                Path(unpacked, "all").rename(target)
            except OSError:
                if not target.exists():  # otherwise another build was faster
                    raise
    if not (target / inside).is_dir():
        raise ConfigError(f"source: {package} {version} has no folder /{inside}; expected another version")
    return target / inside, version


def _output(command: list[str], package: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError(
            f"`{command[0]}` is not installed; on other systems unpack the Debian package {package} and say"
            " source=FOLDER"
        ) from None
    if done.returncode:
        raise ConfigError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]} (run `apt-get update` first?)")
    return done.stdout
