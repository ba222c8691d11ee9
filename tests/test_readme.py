"""The README's Python is pasted by people: it runs as it is."""

import re
from pathlib import Path

import pytest

import headroute

README = Path(__file__).parents[1] / "README.md"


def test_from_python(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sentence_transformers")
    monkeypatch.chdir(tmp_path)
    threads = headroute.get_num_threads()
    section = README.read_text().split("## From Python", 1)[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    try:
        exec(compile(code, str(README), "exec"), {})
    finally:
        headroute.set_num_threads(threads)
    assert (tmp_path / "router.safetensors").exists()
    assert "Head 33" in capsys.readouterr().out
