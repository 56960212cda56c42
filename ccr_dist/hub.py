"""Models on a hub of Hugging Face's kind, by huggingface_hub: `hf://org/name[@revision]` to a local folder, and a
folder to a repository.

Which hub is HF_ENDPOINT's, who asks HF_TOKEN's; HF_HUB_OFFLINE=1 takes what the local cache has. All three are read by
huggingface_hub when it is first imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ccr_dist.errors import ConfigError, StorageError, full, storage

SCHEME = "hf://"
_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)


def names_hub(name: str) -> bool:
    """Whether a model's name is an id of a hub."""
    return name.startswith(SCHEME)


def name_in(path: Path) -> str | None:
    """The id that a path was made of (paths keep only one of two slashes); None: it is a path."""
    scheme, rest = SCHEME.replace("//", "/"), str(path)
    return SCHEME + rest.removeprefix(scheme) if rest.startswith(scheme) else None


def fetch_model(name: str) -> Path:
    """A model of a hub as a local folder, in huggingface_hub's cache.

    Args:
        name: `hf://org/name`, or `hf://org/name@revision` with a branch, tag or commit.

    Returns:
        The folder of that revision: the repository's, or its `model/` where the model folder lies there (exports by a
        registered model type).

    Raises:
        ConfigError: no such id, repository or revision, or it needs a token.
        StorageError: the hub cannot be reached, and the cache does not hold the model.
    """
    found = _ID.fullmatch(name.removeprefix(SCHEME)) if names_hub(name) else None
    if found is None:
        raise ConfigError(f"{name}: expected hf://org/name or hf://org/name@revision")
    from huggingface_hub import HfApi

    with _errors(name):
        folder = Path(HfApi().snapshot_download(found["repo"], revision=found["revision"]))
    if not folder.is_dir():
        raise ConfigError(f"{name}: the repository holds no files")
    inside = folder / "model"
    return inside if (inside / "model.json").is_file() and not (folder / "model.json").is_file() else folder


def push_folder(folder: Path, repo: str, *, private: bool = False, message: str = "Add a model") -> str:
    """Puts all files of a folder into a repository, in one commit; makes the repository where there is none.

    Args:
        folder: what to push; files of the repository that it does not have stay.
        repo: `org/name`, with or without `hf://`.
        private: of a repository that is made now.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        ConfigError: no such place, or the token does not allow it.
        StorageError: the hub cannot be reached.
    """
    repo = repo.removeprefix(SCHEME)
    if not (found := _ID.fullmatch(repo)) or found["revision"]:
        raise ConfigError(f"{repo}: expected a repository as org/name")
    from huggingface_hub import HfApi

    api = HfApi()
    with _errors(SCHEME + repo):
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    return str(done.commit_url)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """What the library raises, as errors of ours about `name`."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ConfigError(f"{name}: its owner asks for consent first: give it at {constants.ENDPOINT}") from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(
            f"{name}: {constants.ENDPOINT} shows no such repository; is the name right, and does HF_TOKEN hold a token"
            " that may see it?"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{name}: the repository has no such branch, tag or commit") from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{name}: this is no name of a repository ({error})") from error
    except errors.LocalTokenNotFoundError as error:
        raise ConfigError(f"{name}: {constants.ENDPOINT} asks who you are; set HF_TOKEN") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} could not be reached"
        raise StorageError(
            f"{name}: {offline}, and the local cache ({constants.HF_HUB_CACHE}) does not hold it. Connect and run the"
            " same command again, or name a local folder"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ConfigError(
                f"{name}: {constants.ENDPOINT} refuses ({status}); does HF_TOKEN hold a token that may do this?"
            ) from error
        raise StorageError(f"{name}: {constants.ENDPOINT} answered {status} ({error})") from error
    except (ConnectionError, TimeoutError) as error:
        raise StorageError(f"{name}: {constants.ENDPOINT} could not be reached ({error})") from error
    except Exception as error:
        if number := full(error):
            raise storage(OSError(number, os.strerror(number)), constants.HF_HUB_CACHE) from error
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests", "httpcore"):
            raise StorageError(f"{name}: {constants.ENDPOINT} could not be reached ({error})") from error
        raise
