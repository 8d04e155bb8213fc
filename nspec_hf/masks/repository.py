"""Files from the Hub and to it: what of a repository is fetched, and one commit for all that is uploaded.

A push that is interrupted has changed nothing: files become visible by the commit that ends it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from nspec_hf import __version__
from nspec_hf.core import warn
from nspec_hf.masks.select import LIBRARY
from nspec_hf.recording import ActivationStats

_OURS: Any = {"library_name": LIBRARY, "library_version": __version__}


def fetch(
    folder_or_repo: str | os.PathLike,
    files: Sequence[str] | None,
    revision: str | None = None,
    subfolder: str = "",
    download: Mapping[str, Any] | None = None,
) -> Path:
    """Return a folder as it is, or the one in the cache that holds a repository's files.

    Args:
        folder_or_repo: A path, or the id of a repository.
        files: Which files of a repository, as paths in `subfolder`; None: all that are there.
        revision: Of the repository: a branch, tag or commit.
        subfolder: Folder inside it, which is then what is returned.
        download: For `huggingface_hub.snapshot_download`: `token`, `cache_dir`, `local_files_only` …

    Raises:
        FileNotFoundError: If it is neither a folder nor a repository.
        huggingface_hub.errors.RevisionNotFoundError: If the repository has no such revision.

    Warns:
        UserWarning: If a revision is asked for of a folder.
    """
    folder = Path(folder_or_repo)
    if folder.is_dir():
        if revision is not None:
            warn(f"{folder} is a folder here, which has no revisions; {revision} is not looked for")
        return folder / subfolder
    return pull(str(folder_or_repo), files, revision, subfolder, download)


def pull(
    repo: str,
    files: Sequence[str] | None,
    revision: str | None = None,
    subfolder: str = "",
    download: Mapping[str, Any] | None = None,
) -> Path:
    """Return the folder in the cache that holds a repository's files, also where a folder here has its name.

    For arguments and errors see `fetch`.
    """
    below = f"{subfolder}/" if subfolder else ""
    patterns = [f"{below}{name}" for name in (["*"] if files is None else files)]
    try:
        found = snapshot_download(
            repo, revision=revision, allow_patterns=patterns, **_OURS, **(download or {})
        )
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{repo} is no folder, and cannot be a repository's id either: {error}"
        ) from None
    except (RepositoryNotFoundError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{repo} is no folder here, and as a repository it was not found: {error}"
        ) from error
    return Path(found) / subfolder


def prepare(
    repo: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
) -> tuple[str, str]:
    """Make repository and branch where there are none; return the repository's id and the last commit.

    For arguments see `NeuronMasks.push_to_hub`.
    """
    api = HfApi(token=token, **_OURS)
    repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True)
    return repo, str(api.model_info(repo, revision=revision).sha)


def upload(
    folder: Path,
    repo: str,
    parent: str,
    *,
    subfolder: str = "",
    token: str | bool | None = None,
    revision: str | None = None,
    message: str = "Upload neuron masks",
    replaces: Sequence[str] = (),
) -> CommitInfo:
    """Upload a folder's files in one commit; for arguments see `NeuronMasks.push_to_hub`.

    `prepare` returns repository and parent, the commit that this one follows; where another has come since,
    it is refused. `replaces` are patterns of files, in `subfolder`, that go where the folder has none of
    that name.
    """
    return HfApi(token=token, **_OURS).upload_folder(
        repo_id=repo,
        folder_path=folder,
        path_in_repo=subfolder or None,
        commit_message=message,
        revision=revision,
        parent_commit=parent,
        delete_patterns=list(replaces) or None,
    )


def last_part(name: str) -> str:
    """Return the last part of a path of this machine; anything else, a repository's id say, as it is."""
    # Of `os.path`, since a Path of a text that cannot be a file's name, being too long, raises when asked.
    path = os.path.expanduser(name)
    return Path(path).name if name and (os.path.isabs(path) or os.path.exists(path)) else name


def facts_without_paths(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts whose texts that are paths of this machine are their last part, also further inside."""
    return {name: _without_paths(value) for name, value in facts.items()}


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return facts_without_paths(value)
    if isinstance(value, (list, tuple)):
        return [_without_paths(each) for each in value]
    return last_part(value) if isinstance(value, str) else value


def stats_without_paths(stats: ActivationStats) -> ActivationStats:
    """Return the same statistics, whose base and corpus are named without paths of this machine."""
    copied = stats.subset(stats.pairs)
    copied.base, copied.corpus = facts_without_paths(stats.base), facts_without_paths(stats.corpus)
    return copied
