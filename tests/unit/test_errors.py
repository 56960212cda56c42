"""The boundary of the command line: what the system says becomes a sentence and an exit code, whichever command it
hits.
"""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ccr_dist import cli, errors
from ccr_dist.data.storage import json_lines, store
from ccr_dist.models import huggingface
from tests import toy

ROOT = Path(__file__).parents[2]


def ended(error: BaseException) -> int:
    """The exit code of a command that raises this."""
    with pytest.raises(SystemExit) as end, errors.boundary():
        raise error
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EROFS, "read and write"),
        (errno.EACCES, "read and write"),
        (errno.EPERM, "read and write"),
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EIO, "system's log"),
        (errno.ENOENT, "put it back"),
        (errno.ESTALE, "put it back"),
        (errno.ENOTDIR, "put it back"),
        (errno.ENAMETOOLONG, "another place"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ECONNREFUSED, "reached"),
        (errno.ETIMEDOUT, "reached"),
    ],
)
def test_errors_of_the_system(number: int, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(OSError(number, os.strerror(number), "/data/x.tar")) == errors.StorageError.exit_code
    said = capsys.readouterr().err
    assert (
        said.startswith(f"error: /data/x.tar: {os.strerror(number)}. Everything committed before is intact; ")
        and advice in said
    )
    assert said.count("\n") == 1


def test_a_temporary_name_is_that_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    ended(OSError(errno.EROFS, "", "/data/.tmp-a.b.tar.host.12.ab34"))
    assert "error: /data/a.b.tar: Read-only" in capsys.readouterr().err


def test_two_paths_are_both_named(capsys: pytest.CaptureFixture[str]) -> None:
    ended(OSError(errno.EXDEV, "", "a", None, "b"))
    assert "error: a -> b: " in capsys.readouterr().err


def test_without_a_path_the_line_of_code_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit), errors.boundary():
        json_lines.read_lines(_Broken())
    assert "error: ccr_dist/data/storage/json_lines.py, line " in capsys.readouterr().err


def test_reading_an_open_file_names_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The system tells no path where `read` fails."""
    (tmp_path / "x").write_text("")

    def read() -> None:
        with (tmp_path / "x").open() as file:
            file.read()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(SystemExit), errors.boundary():
        read()
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'x'}: Input/output error.")


def test_what_a_library_makes_of_failing_storage_is_found(tmp_path: Path) -> None:
    """Libraries wrap such errors, or only quote them; handlers that blame a name let them pass."""

    def wrapped() -> None:
        try:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "/w/config.json")
        except OSError as error:
            raise ValueError("Can't load the model") from error

    for raising, named in (
        (wrapped, "/w/config.json"),
        (lambda: _raise(RuntimeError("unable to mmap 104 bytes from file </w/a>: Input/output error (5)")), "/w"),
        (lambda: _raise(OSError("Stale file handle (os error 116)")), "/w"),
    ):
        with pytest.raises(OSError) as end:
            try:
                raising()
            except Exception as error:
                errors.let_pass(error, "/w")
        assert end.value.filename == named and end.value.errno in (errno.EIO, errno.ESTALE)
    for other in (
        OSError("no such id"),
        FileNotFoundError(errno.ENOENT, "", "x"),
        PermissionError(errno.EACCES, ""),
        KeyError("x"),
    ):
        for place in (tmp_path, "no/such", "\0", "x" * 5000):
            errors.let_pass(other, place)


def _raise(error: Exception) -> None:
    raise error


class _Broken:
    def exists(self) -> bool:
        raise OSError(errno.EIO, "")


def test_a_folder_that_is_gone_below_us(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit), errors.boundary():
        Path("x").absolute()
    assert "error: the current folder: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC])
def test_writing_names_the_file_and_not_its_temporary_name(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for without in (True, False):
        with pytest.raises(SystemExit), errors.boundary(), store.staged(tmp_path / "a.tar") as tmp:
            raise OSError(number, "") if without else OSError(number, "", str(tmp))
        assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'a.tar'}: {os.strerror(number)}.")


def test_an_error_from_a_loaders_process_is_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = 'Caught it in process 0.\nOriginal Traceback (most recent call last):\n  File "x.py"\n'
    assert ended(OSError(f"{text}OSError: [Errno 5] Input/output error: 'a.tar'\n")) == 5
    assert ended(errors.DataError(f"{text}ccr_dist.errors.DataError: a.tar: row 3")) == 3
    said = capsys.readouterr().err
    assert (
        "Traceback" not in said.replace("CCR_TRACEBACK", "")
        and "[Errno 5] Input/output error: 'a.tar'" in said
        and "error: a.tar: row 3" in said
    )


def test_a_bug_keeps_its_traceback() -> None:
    for bug in (io.UnsupportedOperation("not readable"), OSError(errno.EBADF, ""), KeyError("x")):
        with pytest.raises(type(bug)), errors.boundary():
            raise bug


def test_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.startswith("interrupted")


CODE = "import sys; from ccr_dist import errors\nwith errors.boundary():\n    {}\nprint('went on', file=sys.stderr)"


@pytest.mark.parametrize(
    "statement",
    ["print('x' * 200_000)", "print('x')", "sys.stdout.write('x' * 200_000); raise errors.DataError('bad')"],
)
def test_output_that_nobody_reads_ends_quietly(statement: str) -> None:
    read, write = os.pipe()
    os.close(read)
    code = CODE.format(statement)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_below_the_output() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", CODE.format("print('x')")], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 5 and "No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_commands_that_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be made, since its parent is a file."""
    monkeypatch.chdir(tmp_path)
    config = toy.dasd(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "file.jsonl").write_text('{"id": "a", "text": "x"}\n')
    (tmp_path / "p.yaml").write_text("name: p\nfolder: file/x\nsteps: {a: {command: methods}}\n")
    there = "file/x"
    for command in (
        ["shards", "build", "texts", "--out", there, "file=file.jsonl", "name=t", "keep_apart=false", "-q"],
        ["train", str(config), f"out={there}"],
        ["run", "p.yaml"],
    ):
        with pytest.raises(SystemExit) as end:
            cli.app(command)
        said = capsys.readouterr().err
        assert end.value.code == 2 and there in said and ": file: a file is there" in said, (command, said)


def test_of_several_ranks_the_first_tells_the_error(tmp_path: Path) -> None:
    """The others wait, and are ended by their launcher with their own code; where nobody ends them, they tell
    theirs.
    """
    script = """
import os, signal, sys, time
from ccr_dist import errors
errors.WAIT_S = 0
if len(sys.argv) > 1:
    time.sleep = lambda seconds: os.kill(os.getpid(), signal.SIGTERM)
with errors.boundary():
    raise errors.ConfigError("misspelt")
"""

    def said(rank: str, *ended: str) -> tuple[int, str]:
        ranks = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
        done = subprocess.run(
            [sys.executable, "-c", script, *ended], env={**os.environ, **ranks}, capture_output=True, text=True
        )
        return done.returncode, done.stderr.strip()

    assert said("0") == said("1") == said("") == (2, "error: misspelt")
    assert said("1", "ended") == (2, "")


def test_the_option_of_deepspeeds_launcher_is_passed_over() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ccr_dist", "--local_rank=1", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip()


def test_a_config_that_cannot_be_read_is_no_wrong_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process' own memory cannot be read from its beginning: an I/O error of the system itself."""
    (tmp_path / "run.yaml").symlink_to("/proc/self/mem")
    with pytest.raises(SystemExit) as end:
        cli.app(["config", "show", str(tmp_path / "run.yaml")])
    assert end.value.code == 5 and capsys.readouterr().err.startswith(
        f"error: {tmp_path / 'run.yaml'}: Input/output error."
    )


def test_an_encoder_that_cannot_be_read_is_no_wrong_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/proc/self/mem")
    for load in (huggingface.load_encoder, huggingface.load_tokenizer):
        with pytest.raises(OSError) as end:
            load(str(tmp_path), what="text")
        assert end.value.errno == errno.EIO and not isinstance(end.value, errors.CcrError)


@pytest.mark.parametrize(
    "words",
    [
        "shards build texts --out FILE",
        "shards index x.tar --out FILE",
        "shards export x --out FILE",
        "shards convert mla x --out FILE",
        "shards convert replay x --out DIR",
        "report x --out FILE",
        "study report x.yaml --out FILE",
        "study bins x.yaml --out FILE",
        "study growth x.yaml --out FILE",
        "checkpoint convert x FILE",
        "checkpoint convert x DIR.safetensors",
        "init FILE",
    ],
)
def test_a_file_where_a_folder_is_to_be_made_is_told_before_anything_is_read(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("mine")
    Path("DIR").mkdir()
    Path("DIR.safetensors").mkdir()
    with pytest.raises(SystemExit) as end:
        cli.app(words.split())
    said = capsys.readouterr().err
    place = words.split()[-1]
    other = "a file is expected" if place.startswith("DIR") else "a folder is expected"
    assert end.value.code == 2 and said.startswith(f"error: {place}: ") and other in said and said.count("\n") == 1
    assert Path("FILE").read_text() == "mine"
