"""Rule-based MT by an `apertium` on the PATH (Debian and Ubuntu: `apt install apertium apertium-eng-spa`)."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pydantic import Field

from ccr_dist.data.storage import store
from ccr_dist.errors import DataError, EngineError
from ccr_dist.generate.engines import base
from ccr_dist.generate.text import languages

_SPECIAL = re.compile(r"([\\\[\]^$/@<>{}])")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@base.translators.register("apertium")
class Apertium(base.Translator):
    """Runs one `apertium` process per call; each text is a NUL-terminated unit.

    Rules keep variables across sentences, and only a flush resets them: with blank lines between texts, 9 of 1,664
    translations changed with the order of the texts; with NULs none did. Each unit ends with a full stop and its number
    in a superblank, which the pipeline passes through, so that the alignment of texts and translations is checked.
    """

    directed = ("mode",)
    tools = ("apertium",)

    class Options(base.EngineOptions):
        mode: str | None = Field(
            None, description="name of a mode as `apertium -l` prints it; default: found by the languages"
        )
        timeout_s: float = Field(600, gt=0, description="seconds a call may take")

    batch = 512

    def __init__(self, source: str, target: str, options: Apertium.Options) -> None:
        self._timeout_s = options.timeout_s
        if shutil.which("apertium") is None:
            raise EngineError(
                "engine 'apertium' is not installed; on Debian and Ubuntu: apt install apertium apertium-eng-spa (or"
                " another pair)"
            )
        there = self._run("-l").split()
        wanted = [options.mode] if options.mode else [f"{s}-{t}" for s in _codes(source) for t in _codes(target)]
        self._mode = next((mode for mode in wanted if mode in there), "")
        if not self._mode:
            raise EngineError(
                f"engine 'apertium' has no mode {' or '.join(wanted)} here; there are: {', '.join(there) or 'none'}. "
                "Others come as packages (apt-cache search apertium)"
            )

    def _run(self, *args: str, text: str = "") -> str:
        command = ["apertium", *args]
        try:  # a session of its own, so that Ctrl-C reaches only the job, which finishes the batch
            done = subprocess.run(
                command,
                input=text.encode(),
                capture_output=True,
                timeout=self._timeout_s,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as e:
            raise EngineError(f"engine 'apertium': {' '.join(command)} gave no result in {self._timeout_s:g} s") from e
        if done.returncode:
            said = done.stderr.decode(errors="replace")[-500:].strip()
            raise EngineError(f"engine 'apertium': {' '.join(command)} ended with code {done.returncode}: {said}")
        return done.stdout.decode()

    def identity(self) -> dict[str, Any]:
        mode = self._data_folder() / "modes" / f"{self._mode}.mode"
        pipeline = mode.read_text(encoding="utf-8")
        digest = hashlib.sha256(re.sub(r"'[^']*/", "'", pipeline).encode())
        for name in re.findall(r"'([^']+)'", pipeline):
            if Path(name).is_file():
                digest.update(store.sha256_file(name).encode())
        version = self._run("-V").strip().removeprefix("Apertium ")
        return {"engine": "apertium", "version": version, "mode": self._mode, "data": digest.hexdigest()}

    def _data_folder(self) -> Path:
        if folder := os.environ.get("APERTIUM_DATADIR"):
            return Path(folder)
        return Path(shutil.which("apertium") or "").parent.parent / "share" / "apertium"

    def translate(self, texts: list[str]) -> list[str | DataError]:
        marks = [f".[][{i}]" for i in range(len(texts))]
        units = (
            _SPECIAL.sub(r"\\\1", text.replace("\0", " ")) + mark + "\0"
            for text, mark in zip(texts, marks, strict=True)
        )
        answer = self._run("-f", "none", "-z", "-u", self._mode, text="".join(units)).split("\0")
        results: list[str | DataError] = []
        # each stage of the pipeline appends another NUL at the end
        for text, mark, unit in zip(texts, marks, answer, strict=False):
            if not unit.endswith(mark):
                raise EngineError(
                    f"engine 'apertium' ({self._mode}): answer {unit[-80:]!r} is not the one to {text!r}; expected it"
                    f" to end with {mark!r}"
                )
            results.append(_ESCAPED.sub(r"\1", unit.removesuffix(mark)).strip())
        if len(results) != len(texts) or any(answer[len(texts) :]):
            raise EngineError(
                f"engine 'apertium' ({self._mode}): {len(results)} translations of {len(texts)} texts; is the language"
                " data damaged?"
            )
        return results


def _codes(language: str) -> list[str]:
    """Spellings of a language in names of modes, the most common first: por_BR, pt_BR, por, pt for pt-BR."""
    tag = languages.parse(language)
    plain = languages.Language("nb", tag.script, tag.region) if tag.language == "no" else tag
    names = [languages.three(plain.language), plain.language]
    return list(dict.fromkeys([f"{name}_{plain.region}" for name in names if plain.region] + names))
