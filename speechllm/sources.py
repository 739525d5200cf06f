"""Where a recording's bytes come from: a file, an ``ark:offset``, a ``shard.tar:offset``, a URL or a Kaldi pipe."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from speechllm.errors import UserError

HEAD = 65536  # bytes that a URL is asked for when only its header is wanted
AT_ONCE = 8  # URLs that one process asks for at a time
TRIES, TIMEOUT = 4, (10, 60)  # of a URL; seconds to connect and between bytes
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
PACKED = re.compile(r"\.(tgz|tbz2?|txz|tar\.\w+)$")  # compressed tars


class AudioError(UserError):
    """A recording that cannot be used. The message names it, says what was found and ends with the mend."""


class Recording(NamedTuple):
    """An open recording: ``file`` stands at byte ``start``, where it begins, and has ``size`` bytes in all."""

    file: BinaryIO
    size: int
    start: int = 0
    in_ark: bool = False


class Member(io.RawIOBase):
    """A stretch of an open file, as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, size: int):
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._at)])
        self._at += count
        return count


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


@contextlib.contextmanager
def open_source(source: str, allow_pipes: bool, only_head: bool = False) -> Iterator[Recording]:
    """Open any kind of source. What goes wrong while it is open becomes an AudioError that begins with its name.

    Args:
        only_head: of a wav or flac at a URL, fetch only the start.
    """
    try:
        if source.endswith("|"):
            body = _run(source, allow_pipes)
            yield Recording(io.BytesIO(body), len(body))
        elif is_url(source):
            body, size = _fetch_head(source) if only_head else _fetch(source)
            yield Recording(io.BytesIO(body), size)
        else:
            path, colon, offset = source.rpartition(":")
            placed = bool(colon) and offset.isdecimal()
            with open(path if placed else source, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if not placed:
                    yield Recording(file, size)
                elif path.endswith(".tar"):
                    yield _member(file, int(offset), size)
                elif PACKED.search(path):
                    raise AudioError(
                        "a compressed tar has no offsets; unpack it to a .tar (gunzip) and list its members"
                    )
                else:
                    file.seek(int(offset))
                    yield Recording(file, size, int(offset), in_ark=True)
    except FileNotFoundError:
        if SCHEME.match(source):
            raise AudioError(f"{source}: only http and https are read; download the file and give its path") from None
        raise AudioError(f"{source}: no such file; correct the path, or put the file there") from None
    except OSError as error:
        raise AudioError(f"{source}: {error.strerror or error}; give a file that can be read") from error
    except AudioError as error:
        raise AudioError(f"{source}: {error}") from error.__cause__


def _member(file: BinaryIO, offset: int, size: int) -> Recording:
    """The member of a tar whose first byte stands at ``offset``; its header is the block of 512 bytes before it."""
    try:
        file.seek(max(0, offset - tarfile.BLOCKSIZE))
        member = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise AudioError("no member of the tar begins at this offset; list the shard anew with ++shards") from error
    if offset + member.size > size:
        raise AudioError(f"truncated: the tar holds {size - offset} of the member's {member.size} bytes; copy it anew")
    return Recording(Member(file, offset, member.size), member.size)


def _run(source: str, allow_pipes: bool) -> bytes:
    """The output of a Kaldi pipe, which is by definition a shell command and a ``|``."""
    if not allow_pipes:
        raise AudioError("a pipe is a command, which is not run unasked; allow such commands with ++allow_pipes=true")
    done = subprocess.run(source.rstrip("|"), shell=True, capture_output=True)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise AudioError(f"the command ended with status {done.returncode} ({last}); run it by hand to see why")
    return done.stdout


def _fetch_head(url: str) -> tuple[bytes, int]:
    """The start of a wav or flac, which tells the length; any other body whole."""
    body, size = _fetch(url, HEAD)
    enough = body[:4] == b"fLaC" or (body[:4] == b"RIFF" and b"data" in body)
    return (body, size) if (enough and size > 0) or size == len(body) else _fetch(url)


def _fetch(url: str, only: int | None = None) -> tuple[bytes, int]:
    """The body of a URL, or its first ``only`` bytes (at least, if it is longer), and the bytes of the whole."""
    import requests

    for attempt in range(TRIES):
        time.sleep(2**attempt - 1)  # 0, 1, 3, 7 s
        try:
            with _session(os.getpid(), bool(only)).get(
                url, headers=_asking(only), timeout=TIMEOUT, stream=True
            ) as response:
                if response.ok:
                    return _body(response, only)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            reason = f"{type(error).__name__}, {attempt + 1} tries"
            continue
        except requests.RequestException as error:  # such as a malformed URL
            raise AudioError(f"{error}; correct the URL") from error
        reason = f"HTTP {response.status_code} {response.reason}"
        if response.status_code < 500 and response.status_code != 429:
            break
    raise AudioError(f"the server does not give it ({reason}); correct the URL, or download the file and give its path")


def _asking(only: int | None) -> dict[str, str]:
    return {"Accept-Encoding": "identity"} | ({"Range": f"bytes=0-{only - 1}"} if only else {})


def _body(response: Any, only: int | None) -> tuple[bytes, int]:
    """As :func:`_fetch`. A server that ignores ranges is cut off, where it says how long the whole would be."""
    promised = response.headers.get("Content-Length", "")
    if response.status_code == 206:
        total = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
        return response.content, int(total[1]) if total else -1
    body = bytearray()
    for chunk in response.iter_content(HEAD):
        body += chunk
        if only and promised.isdigit() and len(body) >= only:
            return bytes(body), int(promised)
    return bytes(body), len(body)


@functools.cache
def _session(process: int, narrow: bool) -> Any:
    """It keeps connections open, which threads may share and forked processes may not.

    Args:
        narrow: let a server send little more than what is read: one that ignores ranges sends as fast as it can.
    """
    import requests
    from urllib3.connection import HTTPConnection

    class Narrow(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *sizes: Any, **options: Any) -> None:
            window = (socket.SOL_SOCKET, socket.SO_RCVBUF, HEAD // 2)  # Linux takes twice as much
            super().init_poolmanager(*sizes, **options, socket_options=[*HTTPConnection.default_socket_options, window])

    session = requests.Session()
    adapter = Narrow if narrow else requests.adapters.HTTPAdapter
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter(pool_maxsize=AT_ONCE))
    return session
