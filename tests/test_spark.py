"""The example of docs/cluster.md in Spark: `mapInArrow` over `project_batches`.

Without Java there is no Spark: then the iterator that Spark would call is called here, and the test
of Spark itself is skipped and says why.
"""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headroute import Router

D, E, ROWS = 12, 4, 1000
DOCUMENT = Path(__file__).parents[1] / "docs" / "cluster.md"


def example():
    """The code block after <!-- test:spark --> of the document, on files in this folder."""
    text = DOCUMENT.read_text(encoding="utf-8")
    code = re.search(r"<!-- test:spark -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    return code.replace("/shared/", "")


@pytest.fixture
def heads(tmp_path, monkeypatch, rng):
    """The example's files, in the working directory."""
    monkeypatch.chdir(tmp_path)
    router = Router(rng.standard_normal((20, D)), rng.standard_normal((20, E)))
    router.save("heads.safetensors")
    queries = rng.standard_normal((ROWS, D), dtype=np.float32)
    lists = pa.FixedSizeListArray.from_arrays(queries.reshape(-1), D).cast(pa.list_(pa.float32()))
    Path("queries").mkdir()
    for number in range(2):
        part = slice(number * ROWS // 2, (number + 1) * ROWS // 2)
        table = pa.table({"id": np.arange(ROWS)[part], "embedding": lists[part]})
        pq.write_table(table, f"queries/{number}.parquet")
    return router, queries


@pytest.mark.skipif(not shutil.which("java"), reason="no Java on this machine: Spark needs it")
# mapInArrow asks which pandas there is, and then uses none.
@pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning")
def test_spark(heads, monkeypatch):
    sql = pytest.importorskip("pyspark.sql")
    router, queries = heads
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    spark = (
        sql.SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "512m")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "300")
        .getOrCreate()
    )
    try:
        exec(example(), {"spark": spark})
    finally:
        spark.stop()
    table = pa.concat_tables(pq.read_table(path) for path in Path("projected").glob("*.parquet"))
    check(table, router, queries)


class Frame:
    """What the example does with Spark, for the iterator protocol alone."""

    def __init__(self, tables):
        self.tables = tables
        self.read = self

    def parquet(self, folder):
        return Frame([pq.read_table(path) for path in sorted(Path(folder).glob("*.parquet"))])

    def select(self, *names):
        return Frame([table.select(names) for table in self.tables])

    def mapInArrow(self, function, _schema):  # noqa: N802
        batches = [function(iter(table.to_batches(max_chunksize=300))) for table in self.tables]
        return Result([pa.Table.from_batches(iterator) for iterator in batches])


class Result:
    def __init__(self, tables):
        self.tables = tables
        self.write = self

    def parquet(self, folder):
        Path(folder).mkdir()
        for number, table in enumerate(self.tables):
            pq.write_table(table, f"{folder}/{number}.parquet")


def test_iterators_as_spark_has_them(heads):
    router, queries = heads
    exec(example(), {"spark": Frame([])})
    check(pq.read_table("projected"), router, queries)


def check(table, router, queries):
    table = table.sort_by("id")
    assert table.column_names == ["id", "projected"]
    assert table["id"].to_pylist() == list(range(ROWS))
    projected = np.array(table["projected"].to_pylist(), np.float32)
    assert np.array_equal(projected, router.project(queries))
