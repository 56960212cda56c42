"""Models that come inside Python packages: the package's folder, its version, and how to install it when it is
missing.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

from ccr_dist.errors import ConfigError

INSTALL = "pip install 'ccr-dist[demo]'"


def package_folder(module: str, *, needed_for: str) -> Path:
    """The folder of an installed module, without importing it. ConfigError with the command that installs it when it is
    missing.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{needed_for} needs the package '{module}', which is not installed. Run: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def package_file(module: str, name: str, *, needed_for: str) -> Path:
    """A file inside an installed module's folder. ConfigError when the package or the file is missing."""
    path = package_folder(module, needed_for=needed_for) / name
    if not path.exists():
        raise ConfigError(
            f"{needed_for} expects {path}, and the installed package '{module}' has no such file. Run: {INSTALL}"
        )
    return path


def version(distribution: str) -> str:
    """Installed version of a distribution, or "absent"."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"
