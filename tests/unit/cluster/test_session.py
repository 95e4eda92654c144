"""Which Ray cluster a job joins."""

import socket

import pytest

from rlflow.cluster.session import find_cluster
from rlflow.errors import UserError


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """Note an address as `ray start` does."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def note(address):
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)

    return note


@pytest.fixture
def closed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


def test_without_a_note_ray_decides(noted):
    assert find_cluster() is None


def test_a_noted_cluster_that_is_gone_is_not_waited_for(noted, closed, caplog, monkeypatch):
    monkeypatch.setattr("rlflow.cluster.session.logger.propagate", True)
    noted(closed)
    with caplog.at_level("INFO"):
        assert find_cluster() == "local"
    assert f"no Ray cluster answers at {closed}" in caplog.text


def test_a_noted_cluster_that_answers_is_joined(noted):
    with socket.create_server(("127.0.0.1", 0)) as server:
        noted(f"127.0.0.1:{server.getsockname()[1]}")
        assert find_cluster() is None


@pytest.mark.parametrize("address", ["auto", "itself"])
def test_an_address_of_the_environment_that_does_not_answer_is_an_error(noted, closed, monkeypatch, address):
    noted(closed)
    monkeypatch.setattr("rlflow.cluster.session.find_gcs_addresses", set)  # none runs here
    monkeypatch.setenv("RAY_ADDRESS", closed if address == "itself" else address)
    with pytest.raises(UserError, match=f"^RAY_ADDRESS: .*no Ray cluster answers at {closed}"):
        find_cluster()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert find_cluster() is None


def test_auto_may_find_a_cluster_that_ray_start_has_not_noted(noted, closed, monkeypatch):
    noted(closed)
    monkeypatch.setattr("rlflow.cluster.session.find_gcs_addresses", lambda: {"127.0.0.1:6379"})
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert find_cluster() is None
