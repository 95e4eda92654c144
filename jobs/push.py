"""Uploading a model directory to a hub. The token is never part of a message."""

from pathlib import Path

from rlflow.data.hugging_face_hub import transport_errors
from rlflow.errors import HubError, SpecError, UserError

_REFUSED = (401, 403)


def push(directory: Path, repository: str, *, hub: str, token: str | None, private: bool) -> str:
    """Create the repository if need be, upload every file, and return its address.

    Raises `UserError` where the hub refuses the token or the name, and `HubError` where it cannot be reached.
    """
    try:
        upload = _to_huggingface if hub == "huggingface" else _to_modelscope
        return upload(directory, repository, token, private)
    except (UserError, HubError) as error:
        raise type(error)(_without(token, str(error))) from None


def push_written(directory: Path, repository: str, *, hub: str, token: str | None, private: bool) -> str:
    """Push what was just written. If that fails, the error says how it can be pushed without being written again."""
    try:
        return push(directory, repository, hub=hub, token=token, private=private)
    except (UserError, HubError) as error:
        where = f"--push {repository}{f' --hub {hub}' if hub != 'huggingface' else ''}{' --private' if private else ''}"
        rest = f"not pushed; {directory} is whole: `rlflow export {directory} {where}` uploads it"
        raise type(error)(f"{error}\n{rest}") from None


def _to_huggingface(directory: Path, repository: str, token: str | None, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi(token=token)
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=directory, commit_message="Model exported by rlflow")
        return str(url)
    except (HFValidationError, LocalTokenNotFoundError) as error:
        raise SpecError(f"--push {repository}: {_line(error)}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in _REFUSED:
            raise SpecError(
                f"--push {repository}: the hub refuses the token; set HF_TOKEN or --token to one that may write"
            ) from None
        raise HubError(f"--push {repository}: {_line(error)}") from None
    except (*transport_errors(), OSError) as error:
        raise HubError(f"--push {repository}: {type(error).__name__}: {_line(error)}") from None


def _to_modelscope(directory: Path, repository: str, token: str | None, private: bool) -> str:
    from modelscope.hub.api import HubApi  # pyright: ignore[reportMissingImports]

    api = HubApi()
    try:
        if token is not None:
            api.login(token)
        visibility = 1 if private else 5  # modelscope.hub.constants.ModelVisibility
        api.push_model(repository, str(directory), visibility=visibility, commit_message="Model exported by rlflow")
    except Exception as error:  # its exceptions share no base
        raise HubError(f"--push {repository}: {type(error).__name__}: {_line(error)}") from None
    return f"https://modelscope.cn/models/{repository}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _without(token: str | None, text: str) -> str:
    return text.replace(token, "***") if token else text
