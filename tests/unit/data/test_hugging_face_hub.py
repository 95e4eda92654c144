"""Finding models on a stand-in for the hub, in the cache, and where there is neither."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants as constants
import pytest
from huggingface_hub.errors import HfHubHTTPError

from rlflow.data import hugging_face_hub
from rlflow.data.hugging_face_hub import find_hub_model, may_be_id, retried
from rlflow.errors import DataError, SpecError
from rlflow.spec.sources import HubSource


class Hub:
    """Answers with these statuses, one after the other, then with 200; `asked` are the paths."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.asked: list[str] = []


@pytest.fixture
def hub(monkeypatch, tmp_path):
    served = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status = 200
            if "org" in self.path or "models" in self.path:  # huggingface_hub asks once for something else
                served.asked.append(self.path)
                status = served.statuses.pop(0) if served.statuses else 200
            text = b'{"id": "org/name", "sha": "1", "tags": []}'
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hugging_face_hub, "_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.chdir(tmp_path)
    hugging_face_hub._find.cache_clear()
    yield served
    hugging_face_hub._find.cache_clear()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def unreachable(hub, monkeypatch):
    """Nobody listens at the hub's address."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")


@pytest.fixture
def cached(tmp_path):
    """The directory of a cached model `org/name`."""
    folder = tmp_path / "cache" / "models--org--name"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    return str(snapshot)


def test_a_model_that_the_hub_has_keeps_its_id(hub):
    assert find_hub_model("org/name", "model.path") == "org/name"
    assert hub.asked == ["/api/models/org/name"]


def test_a_missing_directory_that_is_on_no_hub_is_one_line(hub, tmp_path):
    hub.statuses = [404]
    with pytest.raises(SpecError) as error:
        find_hub_model("models/mine", "teacher.path")
    assert str(error.value) == (
        f"teacher.path: there is no directory models/mine (looked in {tmp_path / 'models' / 'mine'}), and the Hugging Face hub "
        "has no such model (or it is private: set HF_TOKEN)"
    )
    assert len(hub.asked) == 1


def test_without_a_network_it_is_said_in_seconds(unreachable, tmp_path, monkeypatch):
    monkeypatch.setattr(hugging_face_hub, "_PAUSES_S", (0.5, 1.0, 2.0))
    begin = time.monotonic()
    with pytest.raises(SpecError) as error:
        find_hub_model("models/smollm2", "model.path")
    assert time.monotonic() - begin < 10
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(
        f"model.path: there is no directory models/smollm2 (looked in {tmp_path / 'models' / 'smollm2'}), "
        "and the Hugging Face hub cannot be reached: "
    )
    assert text.endswith("; make it: python deploy/smollm2_model.py models/smollm2")


@pytest.mark.parametrize("name", ["a/b/c", "models/../m", "models/m/"])
def test_what_can_be_no_id_is_not_asked_for(hub, name):
    with pytest.raises(SpecError, match=rf"^model.path: there is no directory {name} \(looked in .*\), and it is no hub id$"):
        find_hub_model(name, "model.path")
    assert hub.asked == []


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hiccup_is_asked_again(hub, status):
    hub.statuses = [status, status]
    assert find_hub_model("org/name", "model.path") == "org/name"
    assert len(hub.asked) == 3


def test_a_hub_that_stays_down_is_one_line(hub):
    hub.statuses = [503] * 9
    with pytest.raises(SpecError, match=r"^model.path: .* and the Hugging Face hub cannot be reached: .*503[^\n]*$"):
        find_hub_model("org/name", "model.path")
    assert len(hub.asked) == 4


def test_a_refusal_is_not_asked_again(hub):
    hub.statuses = [403] * 9
    with pytest.raises(SpecError, match=r"^model.path: .* and the Hugging Face hub refuses to say more: .*403"):
        find_hub_model("org/name", "model.path")
    assert len(hub.asked) == 1


def test_a_cached_model_is_used_where_the_hub_does_not_answer(unreachable, cached):
    assert find_hub_model("org/name", "model.path") == cached


def test_a_cached_model_keeps_its_id_where_the_hub_has_only_a_hiccup(hub, cached):
    hub.statuses = [503] * 9
    assert find_hub_model("org/name", "model.path") == "org/name", "a path of this machine is none on another node"


def test_the_hub_is_asked_once_a_process(hub):
    for field in ("model.path", "teacher.path"):
        assert find_hub_model("org/name", field) == "org/name"
    assert len(hub.asked) == 1


def test_names_that_may_be_ids():
    assert all(map(may_be_id, ("gpt2", "org/name")))
    assert not any(map(may_be_id, ("./name", "/name", "~/name", "a/b/c")))


def test_offline_only_the_cache_counts(hub, cached, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_hub_model("org/name", "model.path") == "org/name"
    with pytest.raises(SpecError, match=r"the Hugging Face hub is switched off \(HF_HUB_OFFLINE\), and its cache has no such"):
        find_hub_model("org/other", "model.path")
    assert hub.asked == []


def test_what_a_hiccup_caused_is_asked_again_and_nothing_else(hub):
    from huggingface_hub import HfApi, snapshot_download

    hub.statuses = [503]
    with pytest.raises(HfHubHTTPError):
        HfApi().model_info("org/name")
    calls: list[int] = []

    def fail(error):
        calls.append(1)
        raise error

    with pytest.raises(ValueError, match="wrong"):
        retried(lambda: fail(ValueError("wrong")))
    assert len(calls) == 1
    hub.statuses = [503] * 9
    with pytest.raises(OSError, match="cannot find the appropriate snapshot"):  # whose cause is the 503
        retried(lambda: snapshot_download("org/name"))
    assert len(hub.asked) == 5


def test_a_data_set_is_asked_for_again_after_a_hiccup(hub, monkeypatch, tmp_path):
    from huggingface_hub import HfApi

    from rlflow.data.sources import load_hugging_face_dataset

    hub.statuses = [503]

    def load(name, subset, **options):
        HfApi().model_info("org/name")
        return name, options["split"]

    monkeypatch.setattr("datasets.load_dataset", load)
    source = HubSource(id="org/rows")
    assert load_hugging_face_dataset(source.id, None, "train", tmp_path, "data.sources[0]") == ("org/rows", "train")
    hub.statuses = [403]
    with pytest.raises(DataError, match=r"^data.sources\[0\].id: cannot load org/rows, split train: "):
        load_hugging_face_dataset(source.id, None, "train", tmp_path, "data.sources[0]")
