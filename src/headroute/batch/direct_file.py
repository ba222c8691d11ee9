"""A file that is written from front to back, past the system's cache.

Results that nobody reads at once are not worth the memory, and filling a cache costs more than
computing them: for 7.7 GB on two cores 5 s of CPU time, where the kernel with 64 heads takes 5 and
the disk needs no CPU at all. So whole disk blocks go from memory of ours straight to the disk.

    bytes → an aligned buffer → whole buffers to the disk
                              → at a flush also the rest, in a block that is written again later

Where a file system cannot do that (O_DIRECT), the same writes go through its cache.
"""

import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

# What offsets, lengths and memory are multiples of: no disk and no file system asks for more.
BLOCK = 4096

# Large enough for the disk: with 1 MiB it has two thirds of its speed.
_BUFFER_BYTES = 8 << 20


class DirectFile:
    """Owns the file from its opening to `close`; used by one thread at a time.

    Not truncated when it is opened. Raises OSError.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        try:
            self._file = os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o666)
        except OSError:  # there is no such way here, or no such path
            self._file = os.open(path, flags, 0o666)
        self._memory = mmap.mmap(-1, _BUFFER_BYTES)  # begins with a page
        self._buffer = np.frombuffer(self._memory, np.uint8)
        self._start = 0  # of the buffer, in the file; a multiple of BLOCK
        self._filled = 0  # bytes of the buffer

    def fileno(self) -> int:
        return self._file

    def allocate(self, size: int) -> None:
        """Have the disk's space for `size` bytes, and for the rest of their last block."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file, 0, -(-size // BLOCK) * BLOCK)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._file, size)

    def seek(self, position: int) -> None:
        """Go on writing there; nothing is left to be flushed."""
        self._start = position // BLOCK * BLOCK
        self._filled = position - self._start
        if self._filled:  # the bytes before, in the same block
            os.preadv(self._file, [self._buffer[:BLOCK].data], self._start)

    def write(self, data: npt.NDArray[np.uint8]) -> None:
        """Add bytes (n,); they are in the file after the next `flush`, at the latest."""
        while len(data):
            n = min(len(data), _BUFFER_BYTES - self._filled)
            self._buffer[self._filled : self._filled + n] = data[:n]
            self._filled += n
            data = data[n:]
            if self._filled == _BUFFER_BYTES:
                self._put(_BUFFER_BYTES)
                self._start += _BUFFER_BYTES
                self._filled = 0

    def flush(self) -> None:
        """Give all bytes to the system. What the file has after them in their last block is
        unspecified until it is written.
        """
        whole = self._filled // BLOCK * BLOCK
        self._put(-(-self._filled // BLOCK) * BLOCK)
        self._buffer[: self._filled - whole] = self._buffer[whole : self._filled].copy()
        self._start += whole
        self._filled -= whole

    def sync(self) -> None:
        """Wait until what was flushed is on the disk."""
        os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def _put(self, n: int) -> None:
        done = 0
        while done < n:
            done += os.pwrite(self._file, self._buffer[done:n].data, self._start + done)
