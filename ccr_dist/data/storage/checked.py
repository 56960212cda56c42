"""JSON files that carry their own digest: files that decide how a run resumes are read only if they are unchanged.

    {"step": 12, ..., "digest": "<sha256 of the rest in canonical form>"}

The digest covers values, not bytes, so white space does not matter. Files of earlier versions have no digest; they are
accepted, and the caller is told.
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
    """Parses a JSON value. Raises ValueError for anything else, including values that are nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def checked(
    data: bytes | str, where: object, *, error: type[CcrError] = CheckpointError
) -> tuple[dict[str, Any], bool]:
    """Parses a JSON object and checks its digest.

    Args:
        data: The content of a file.
        where: Beginning of messages, usually the file.
        error: The class of errors to raise.

    Returns:
        The object without its digest, and whether it had one.

    Raises:
        CcrError: Of the class `error`; `data` is no JSON object or does not match its digest.
    """
    try:
        values = parse(data)
    except ValueError as wrong:
        raise error(f"{where}: damaged, it is not JSON ({wrong})") from None
    if not isinstance(values, dict):
        raise error(f"{where}: damaged, it is not a JSON object but {type(values).__name__}")
    digest = values.pop(DIGEST, None)
    try:
        sound = digest is None or digest == digest_json(values)
    except (ValueError, RecursionError):  # NaN, half of a surrogate pair: never written by ccr-dist
        sound = False
    if not sound:
        raise error(f"{where}: damaged, its content does not match its digest")
    return values, digest is not None


def read_checked(path: Path, *, error: type[CcrError] = CheckpointError) -> tuple[dict[str, Any], bool]:
    """`checked` for a file. Raises OSError, including FileNotFoundError, as well."""
    return checked(path.read_bytes(), path, error=error)
