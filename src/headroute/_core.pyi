"""The compiled extension: shapes and dtypes are checked before it is called."""

from typing import TypedDict, final

import numpy as np
import numpy.typing as npt

from headroute._validate import Float32

class BuildInfo(TypedDict):
    compiler: str
    flags: str
    isas_built: list[str]
    isas_available: list[str]

class HeadRounding(TypedDict):
    centroid_norm: float
    centroid_rounding: float
    answer_radius: float
    answer_rounding: float
    query_scale: float
    weight_chain: int
    weight_total: float

class PackedLayout(TypedDict):
    version: int
    isa: str
    lanes: int
    block_heads: int
    packed_bytes: int

def build_info() -> BuildInfo: ...
def packed_layout(n_heads: int, query_dim: int, answer_dim: int, isa: str = "") -> PackedLayout: ...

@final
class Engine:
    def __init__(
        self, centroids: Float32, answers: Float32, isa: str = "", precision: str = "float32"
    ) -> None: ...
    def project(
        self,
        queries: Float32,
        temperature: float,
        out: Float32,
        num_threads: int,
        account: Float32 | None = None,
        may_drop: float = 0.0,
        stats: Float32 | None = None,
    ) -> int: ...
    def route(
        self, queries: Float32, temperature: float, out: Float32, num_threads: int
    ) -> int: ...
    def top_heads(
        self,
        queries: Float32,
        temperature: float,
        heads: npt.NDArray[np.int64],
        weights: Float32,
        num_threads: int,
    ) -> int: ...
    def project_one(self, query: object, temperature: float, out: object) -> Float32 | None: ...
    def route_one(self, query: object, temperature: float, out: object) -> Float32 | None: ...
    @staticmethod
    def from_packed(
        packed: memoryview | npt.NDArray[np.uint8],
        n_heads: int,
        query_dim: int,
        answer_dim: int,
        answer_scale: float,
        isa: str = "",
    ) -> Engine: ...
    @property
    def packed(self) -> npt.NDArray[np.uint8]: ...
    @property
    def answer_scale(self) -> float: ...
    @property
    def isa(self) -> str: ...
    @property
    def packed_bytes(self) -> int: ...
    @property
    def rounding(self) -> HeadRounding: ...
    @property
    def int16_cost(self) -> float: ...
    @property
    def search_cost(self) -> float: ...
