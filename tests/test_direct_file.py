"""A file written past the cache is the same file, whatever the pieces, whatever the system."""

import fcntl
import os

import numpy as np
import pytest

from headroute.batch import direct_file
from headroute.batch.direct_file import BLOCK, DirectFile


@pytest.fixture(params=["direct", "refused", "larger blocks"])
def way(request, monkeypatch) -> None:
    if request.param == "larger blocks":  # as on a disk whose blocks are larger than ours
        write = os.write

        def misaligned(file, data):
            if fcntl.fcntl(file, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0):
                raise OSError(22, "Invalid argument")
            return write(file, data)

        def no_space(*_):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(os, "write", misaligned)
        monkeypatch.setattr(os, "posix_fallocate", no_space)
    if request.param == "refused":  # as on a file system without O_DIRECT
        real = os.open

        def refuse(path, flags, *mode):
            if flags & getattr(os, "O_DIRECT", 0):
                raise OSError(22, "Invalid argument")
            return real(path, flags, *mode)

        monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("buffer_blocks", [1, 3])
def test_any_pieces_flushes_and_reopenings(tmp_path, rng, way, monkeypatch, buffer_blocks) -> None:
    monkeypatch.setattr(direct_file, "_BUFFER_BYTES", buffer_blocks * BLOCK)
    for size in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 10 * BLOCK, 50_001):
        content = rng.integers(0, 256, size, dtype=np.uint8)
        path = tmp_path / f"{size}"
        file, done = DirectFile(path), 0
        file.allocate(max(size, 1))
        while done < size:
            n = int(rng.choice([1, 7, 100, BLOCK - 3, BLOCK, 2 * BLOCK + 1, 9000]))
            file.write(content[done : done + n])
            done = min(done + n, size)
            if rng.random() < 0.3:
                file.flush()
                file.sync()
                # The first bytes are there, whoever asks.
                assert path.read_bytes()[:done] == content[:done].tobytes()
            if rng.random() < 0.2:
                file.flush()
                if rng.random() < 0.5:
                    back = int(rng.integers(0, done + 1))
                    done = back
                file.close()
                file = DirectFile(path)
                file.seek(done)
        file.flush()
        file.truncate(size)
        file.close()
        assert path.read_bytes() == content.tobytes()


def test_what_cannot_be_opened(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        DirectFile(tmp_path / "nowhere" / "file")
