"""The Flower app that starts a coordinator, and its start and stop at a SuperLink.

The app holds no code of ours: it names the coordinator that is installed beside the SuperLink, and a ClientApp that
refuses, because Flower wants one. Runs are started over the SuperLink's Control interface at once; `flwr run` on the
directory that `write_app` makes does the same, seconds later.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.supercore.fab import Fab

from provisioning.authority.superlink import SuperLinkConnection
from provisioning.coordinator.control import open_control

DIRECTORY_KEY = "coordinator-directory"
"""Key of the run configuration that names the coordinator's directory on the SuperLink's host."""

_PROJECT = f"""\
[project]
name = "secure-health-coordinator"
version = "1.0.0"
description = "Coordinates one study; all code is installed beside the SuperLink."
license = "Apache-2.0"
dependencies = []

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.flwr.app]
publisher = "secur-e-health"

[tool.flwr.app.components]
serverapp = "provisioning.coordinator.app:app"
clientapp = "refusing_client:app"

[tool.flwr.app.config]
{DIRECTORY_KEY} = ""
"""
_CLIENT = '''\
"""No hospital's box runs an app that it is sent; one that did would refuse here."""

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def refuse(message: Message, context: Context) -> Message:
    """Answer with a refusal."""
    return Message(Error(100, "not-permitted"), reply_to=message)
'''


def write_app(directory: Path) -> Path:
    """Write the app's files into `directory`, for Flower's own commands; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in _files().items():
        (directory / name).write_bytes(content)
    return directory


def build_fab() -> bytes:
    """The app as the bundle that a SuperLink takes; the same bytes each time."""
    with warnings.catch_warnings():
        # Flower asks its path library for a pattern kind by an old name.
        warnings.simplefilter("ignore", DeprecationWarning)
        return bytes(build_fab_from_files(_files())[0])


def launch_run(connection: SuperLinkConnection, directory: Path) -> int:
    """Start a coordinator at a SuperLink; it runs, or resumes, the study in `directory`.

    Args:
        connection: The SuperLink.
        directory: A coordinator directory on the SuperLink's host.

    Returns:
        The run's id.

    Raises:
        OperatorError: The SuperLink refuses.
        NetworkError: It does not answer.
    """
    fab = build_fab()
    request = StartRunRequest(
        fab=fab_to_proto(Fab(hashlib.sha256(fab).hexdigest(), fab, {})),
        override_config=user_config_to_proto({DIRECTORY_KEY: str(directory.resolve())}),
    )
    with open_control(connection) as client:
        return int(client.StartRun(request).run_id)


def stop_run(connection: SuperLinkConnection, run_id: int) -> None:
    """Stop a run; the study can be resumed from its last round.

    Raises:
        OperatorError: There is no such run, or it has ended.
        NetworkError: The SuperLink does not answer.
    """
    with open_control(connection) as client:
        client.StopRun(StopRunRequest(run_id=run_id))


def has_ended(connection: SuperLinkConnection, run_id: int) -> str | None:
    """How a run ended, in the SuperLink's words; None while it is at work.

    Raises:
        OperatorError: There is no such run.
        NetworkError: The SuperLink does not answer.
    """
    with open_control(connection) as client:
        status = client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
    if status.status != "finished":
        return None
    return f"{status.sub_status}: {status.details}".rstrip(": ")


def _files() -> dict[str, bytes]:
    return {"pyproject.toml": _PROJECT.encode(), "refusing_client.py": _CLIENT.encode()}
