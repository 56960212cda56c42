"""Small Debian packages and files of translations, for recipes that read such packages."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path


def deb(folder: Path, package: str, version: str, to: Path) -> Path:
    """A .deb with the files of a folder, made by dpkg-deb.

    Args:
        folder: The files, as they would be installed below `/`.
        package: Its name.
        version: Its version.
        to: Folder for the .deb.
    """
    control = folder / "DEBIAN/control"
    control.parent.mkdir(exist_ok=True)
    control.write_text(
        f"Package: {package}\nVersion: {version}\nArchitecture: all\nMaintainer: t <t@example.org>\nDescription: test\n"
    )
    path = to / f"{package}_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(folder), str(path)], check=True, capture_output=True)
    return path


def mo(path: Path, messages: dict[str, str]) -> None:
    """A gettext file of translations, little-endian, with its header as the translation of ""."""
    entries = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **messages}.items())
    count, at, tables, strings = len(entries), 28 + 16 * len(entries), [b"", b""], b""
    for side in (0, 1):
        for entry in entries:
            text = entry[side].encode()
            tables[side] += struct.pack("<II", len(text), at + len(strings))
            strings += text + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + tables[0] + tables[1] + strings)
