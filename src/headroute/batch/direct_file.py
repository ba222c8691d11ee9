"""A file that is written from front to back, past the system's cache.

Results that nobody reads at once are not worth the memory, and filling a cache costs more than
computing them: for 7.7 GB on two cores 5 s of CPU time, where the kernel with 64 heads takes 5 and
the disk needs no CPU at all. So whole disk blocks go from memory of ours straight to the disk.

    bytes → an aligned buffer → whole buffers to the disk
                              → at a flush also the rest, in a block that is written again later

Where a file system cannot do that (O_DIRECT), the same writes go through its cache.
"""

import contextlib
import errno
import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

with contextlib.suppress(ImportError):  # not a Unix; there is no O_DIRECT then either
    import fcntl

# What offsets, lengths and memory are multiples of: no disk and no file system asks for more.
BLOCK = 4096

_DIRECT = getattr(os, "O_DIRECT", 0)
_CANNOT = (errno.EINVAL, errno.EOPNOTSUPP)  # what a file system says that has no such call

# Large enough for the disk: with 1 MiB it has two thirds of its speed.
_BUFFER_BYTES = 8 << 20


class DirectFile:
    """Owns the file from its opening to `close`; used by one thread at a time.

    Not truncated when it is opened. Raises OSError.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._file = os.open(path, flags | _DIRECT, 0o666)
        except OSError:  # there is no such way here, or no such path
            self._file = os.open(path, flags, 0o666)
        self._path = path
        self._memory = mmap.mmap(-1, _BUFFER_BYTES)  # begins with a page
        self._buffer = np.frombuffer(self._memory, np.uint8)
        self._start = 0  # of the buffer, in the file; a multiple of BLOCK
        self._filled = 0  # bytes of the buffer

    def fileno(self) -> int:
        return self._file

    def allocate(self, size: int) -> None:
        """Have the disk's space for `size` bytes, and for the rest of their last block."""
        try:
            os.posix_fallocate(self._file, 0, -(-size // BLOCK) * BLOCK)
        except (AttributeError, OSError) as error:  # not every system, nor every file system
            if isinstance(error, OSError) and error.errno not in _CANNOT:
                raise

    def truncate(self, size: int) -> None:
        os.ftruncate(self._file, size)

    def seek(self, position: int) -> None:
        """Go on writing there; nothing is left to be flushed."""
        self._start = position // BLOCK * BLOCK
        self._filled = position - self._start
        if self._filled:  # the bytes before, in the same block
            with open(self._path, "rb") as file:
                file.seek(self._start)
                file.readinto(self._buffer[: self._filled].data)

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
        getattr(os, "fdatasync", os.fsync)(self._file)

    def close(self) -> None:
        os.close(self._file)

    def _put(self, n: int) -> None:
        done = 0
        while done < n:
            os.lseek(self._file, self._start + done, os.SEEK_SET)
            try:
                done += os.write(self._file, self._buffer[done:n].data)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._past_cache():
                    raise
                self._through_cache()  # this disk wants larger blocks

    def _past_cache(self) -> bool:
        return bool(_DIRECT and fcntl.fcntl(self._file, fcntl.F_GETFL) & _DIRECT)

    def _through_cache(self) -> None:
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~_DIRECT)
