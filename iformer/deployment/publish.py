"""``iformer publish``: the model in a folder as a repository of the Hugging Face Hub.

What goes there is what a user of the model needs: its two files, its card, and the figures of its test. Checkpoints,
logs, recipes and pictures of images stay.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from iformer.common.files import write_text
from iformer.models import locations, model_card
from iformer.models.saved import resolve


def publish(
    folder: Path,
    repository: str,
    private: bool = False,
    revision: str = "",
    message: str = "",
    licence: str = "",
    dry_run: bool = False,
) -> dict[str, Any]:
    """Put the model in ``folder`` into a repository of the Hub, which is created if it does not exist.

    The card's commands name the repository. It is written into the folder too.

    Args:
        folder: The folder of a saved model of any task, such as a run's.
        repository: The repository, ``USER/NAME``.
        private: Whether nobody else may see the repository.
        revision: The branch to put it into, which is created if it does not exist; '' for the main one.
        message: The message of the commit.
        licence: The model's licence, by the Hub's name for it, such as ``apache-2.0``; '' for that of the card.
        dry_run: Whether only to say what would be uploaded; nothing is written and nothing is sent.

    Returns:
        ``repository``, its ``url`` and ``revision``, the ``commit`` (None in a dry run), ``private``, ``dry_run``, the
        ``licence``, and ``files``, with the ``name`` and the ``bytes`` of each.

    Raises:
        ValueError: The folder holds no model that can be loaded, the name is none, there is no token or it does not
            permit this, or the repository is public but is to be private.
        OSError: A file is missing or cannot be read, or the Hub could not be reached.
    """
    repository = repository.removeprefix(locations.HUB)
    _require_name(repository)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected the folder of a saved model, such as a run's")
    resolve(folder / "config.json")  # what cannot be loaded here cannot be loaded by others
    card = model_card.card(folder, repository, licence)
    content: dict[str, bytes | Path] = {model_card.CARD: card.encode()}
    content |= {name: folder / name for name in locations.FILES}
    content |= {name: folder / name for name in model_card.FIGURES if (folder / name).is_file()}
    files = [
        {"name": name, "bytes": len(source) if isinstance(source, bytes) else source.stat().st_size}
        for name, source in content.items()
    ]
    result: dict[str, Any] = {
        "repository": repository,
        "url": f"{HfApi().endpoint}/{repository}",
        "revision": revision or "main",
        "commit": None,
        "private": private,
        "dry_run": dry_run,
        "licence": model_card.licence_of(model_card.parsed(card, folder / model_card.CARD)),
        "files": files,
    }
    if dry_run:
        return result
    write_text(folder / model_card.CARD, card)
    operations = [CommitOperationAdd(name, source) for name, source in content.items()]
    message = message or f"Publish {folder.resolve().name}"
    with _errors_of_the_hub(repository):
        return {**result, **_upload(repository, operations, private, revision, message)}


def _require_name(repository: str) -> None:
    """Raise ValueError if the Hub could have no repository of this name."""
    try:
        validate_repo_id(repository)
        valid = "/" in repository
    except HFValidationError:
        valid = False
    if not valid:
        raise ValueError(
            f"{repository}: no name for a repository; expected USER/NAME, of letters, digits, '-', '_' and '.'"
        )


def _upload(
    repository: str, operations: list[CommitOperationAdd], private: bool, revision: str, message: str
) -> dict[str, Any]:
    """Create the repository and the branch if they do not exist, and commit; return ``private`` and ``commit``."""
    if not get_token():
        raise ValueError("no access token for the Hugging Face Hub; log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    api.create_repo(repository, private=private or None, exist_ok=True)
    is_private = bool(api.model_info(repository).private)
    if private and not is_private:  # the Hub leaves a repository that exists as it is
        raise ValueError(f"{repository}: exists and is public; make it private in its settings, or omit --private")
    if revision:
        api.create_branch(repository, branch=revision, exist_ok=True)
    commit = api.create_commit(repository, operations, commit_message=message, revision=revision or None)
    return {"private": is_private, "commit": commit.oid}


@contextmanager
def _errors_of_the_hub(repository: str) -> Iterator[None]:
    """Turn what the Hub answers, and that it does not answer, into errors of one line."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = error.server_message or f"status {status}"
        if status == 401:
            raise ValueError(f"the Hugging Face Hub does not accept the access token ({said})") from error
        if status == 403:
            raise ValueError(f"{repository}: the access token does not permit writing there ({said})") from error
        raise OSError(f"{repository}: the Hugging Face Hub refused it ({said})") from error
    except (ValueError, KeyboardInterrupt):
        raise
    except Exception as error:  # those of the HTTP library, whichever huggingface_hub uses, and of the upload
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(f"{HfApi().endpoint}: could not be reached ({reason})") from error


def lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield what :func:`publish` has done as lines of text."""
    for file in result["files"]:
        yield f"{file['bytes']:>13,} bytes  {file['name']}"
    branch = "" if result["revision"] == "main" else f"@{result['revision']}"
    if not result["licence"]:
        yield "The card states no licence, so nobody may use the model; --license NAME states one."
    if result["dry_run"]:
        yield f"Nothing was uploaded; without --dry-run this goes to {result['url']}."
    else:
        yield f"Published:   {result['url']} ({'private, ' * result['private']}commit {result['commit'][:7]})"
        yield f"Use it:      iformer predict IMAGE... --model {locations.HUB}{result['repository']}{branch}"
