"""CLINC150 as heads and queries: real text, embedded with all-MiniLM-L6-v2, which takes two
minutes. The data is read beside the project, and never copied into it."""

import json
from pathlib import Path

import numpy as np
from problem import Float32

DATA = Path(__file__).parents[2] / "shared/data/clinc150/data_full.json"


def embed_questions(step: int = 1) -> tuple[Float32, Float32]:
    """Unit embeddings of every step-th training question (15,000) and test question (4,500)."""
    from headroute.embedding import Encoder

    document = json.loads(DATA.read_text())
    encoder = Encoder("all-MiniLM-L6-v2")
    train, test = (
        encoder.encode_queries([text for text, _ in document[part][::step]], lambda _: None)
        for part in ("train", "test")
    )
    return np.ascontiguousarray(train), np.ascontiguousarray(test)
