"""JSON files that carry their own digest: what decides how a run resumes is accepted only as it was written.

    {"step": 12, ..., "digest": "<sha256 of the canonical spelling of all the rest>"}

The digest covers values, not bytes: white space makes no difference. Files of earlier versions have no digest; they
open, and the caller can see it.
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
    """Parses a JSON value. Raises ValueError for anything else, also where the nesting is too deep to read."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def checked(
    data: bytes | str, where: object, *, error: type[CcrError] = CheckpointError
) -> tuple[dict[str, Any], bool]:
    """Parses a JSON object and checks its digest.

    Args:
        data: the content of a file.
        where: how messages begin, usually the file.
        error: what is raised.

    Returns:
        The object without its digest, and whether it had one.

    Raises:
        CcrError: of the class `error`, where `data` is not such an object or does not match its digest.
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
    except (ValueError, RecursionError):  # NaN, half of a surrogate pair: nothing that was written here
        sound = False
    if not sound:
        raise error(f"{where}: damaged, its content does not match its digest")
    return values, digest is not None


def read_checked(path: Path, *, error: type[CcrError] = CheckpointError) -> tuple[dict[str, Any], bool]:
    """`checked` of a file. OSErrors pass, also FileNotFoundError."""
    return checked(path.read_bytes(), path, error=error)
