"""JSON files that carry their own digest: what decides how a run resumes is read back only as it was written.

    {"step": 12, ..., "digest": "<sha256 of the canonical spelling of all the rest>"}

The digest is one of values, not of bytes: other white space is the same file. Files of earlier versions have none; they
open, and whoever reads them can tell.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ccr_dist.data.storage.store import digest_json, with_digest
from ccr_dist.errors import CcrError, CheckpointError

__all__ = ["DIGEST", "checked", "parse", "read_checked", "with_digest"]
DIGEST = "digest"


def parse(data: bytes | str) -> Any:
    """A JSON value. ValueError on everything else, nesting too deep to read among it."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def checked(
    data: bytes | str, where: object, *, error: type[CcrError] = CheckpointError
) -> tuple[dict[str, Any], bool]:
    """The object in `data` without its digest, and whether it had one. `error`, beginning with `where`, on anything
    else.
    """
    try:
        values = parse(data)
    except ValueError as wrong:
        raise error(f"{where}: damaged, it is not JSON ({wrong})") from None
    if not isinstance(values, dict):
        raise error(f"{where}: damaged, it is no JSON object but {type(values).__name__}")
    digest = values.pop(DIGEST, None)
    try:
        sound = digest is None or digest == digest_json(values)
    except (ValueError, RecursionError):  # NaN, half of a surrogate pair: nothing that was written here
        sound = False
    if not sound:
        raise error(f"{where}: damaged, its content is not what its digest says")
    return values, digest is not None


def read_checked(path: Path, *, error: type[CcrError] = CheckpointError) -> tuple[dict[str, Any], bool]:
    """`checked` of a file. OSErrors pass, that of a missing file, too."""
    return checked(path.read_bytes(), path, error=error)
