"""Fetch a public corpus: downloads that go on where they stopped and land whole, archives that stay in their folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from speechllm.errors import UserError

log = logging.getLogger("speechllm")

ATTEMPTS = 5
TIMEOUT = (10, 60)
"""Seconds to connect, and between two pieces of data."""


def fetch_unpacked(url: str, folder: str | os.PathLike, md5: str | None = None) -> Path:
    """The content of the archive ``url`` in ``folder``; the archive stays beside it, and may be deleted.

    Raises:
        UserError: as :func:`fetch` and :func:`unpack`.
    """
    folder = Path(folder)
    if folder.exists():
        return folder
    return unpack(fetch(url, folder.parent / url.rsplit("/", 1)[-1], md5), folder)


def fetch(url: str, path: str | os.PathLike, md5: str | None = None) -> Path:
    """Download ``url`` to ``path``, unless it is there already (with the right checksum, where one is given).

    What has come is kept in ``<path>.part`` and the next call goes on from there, if the server can and has the same
    file still (its ETag is kept in ``<path>.etag``). A broken connection is tried again after 1, 2, 4 and 8 seconds.

    Raises:
        UserError: not http(s), refused by the server, broken off too often, shorter than announced, or another
            checksum than expected, in which case nothing is kept.
    """
    path = Path(path)
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url}: only http and https are downloaded; give a local corpus with ++corpus=DIR")
    if path.exists():
        if md5 is None or _md5(path) == md5:
            return path
        log.warning("%s: not the expected file (md5 %s); it is fetched anew", path, md5)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, etag = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.etag")
    for attempt in range(ATTEMPTS):
        fault = _receive(url, part, etag)
        if fault is None:
            break
        log.warning("%s: %s", url, fault)
        if attempt + 1 < ATTEMPTS:
            time.sleep(2**attempt)
    else:
        raise UserError(f"{url}: {fault}, {ATTEMPTS} times; the same command goes on where it stopped: {part}")
    found = _md5(part)
    etag.unlink(missing_ok=True)
    if md5 not in (None, found):
        part.unlink()
        raise UserError(f"{url}: md5 {found}, expected {md5}; the file has changed or is damaged, fetch it again")
    os.replace(part, path)
    log.info("%s: md5 %s", path, found)
    return path


def _receive(url: str, part: Path, etag: Path) -> str | None:
    """Append to ``part`` what is missing; the reason when that failed and another attempt may help."""
    import requests

    have = part.stat().st_size if part.exists() and etag.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": etag.read_text()}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416:  # nothing follows what has come
                if answer.headers.get("Content-Range", "").endswith(f"/{have}"):
                    return None
                part.unlink()
                return "the file has become shorter than what has come of it; from the start again"
            if answer.status_code == 429 or answer.status_code >= 500:
                return f"HTTP {answer.status_code} {answer.reason}"
            if answer.status_code not in (200, 206):
                raise UserError(f"{url}: HTTP {answer.status_code} {answer.reason}; check the address")
            _append(answer, part, etag)
    except requests.RequestException as error:
        return f"broken off ({type(error).__name__}: {error})"
    return None


def _append(answer, part: Path, etag: Path) -> None:
    from tqdm import tqdm

    start = part.stat().st_size if answer.status_code == 206 else 0
    length = answer.headers.get("Content-Length")
    strong = answer.headers.get("ETag", "")
    etag.unlink(missing_ok=True)
    with open(part, "ab" if start else "wb") as file:
        if strong.startswith('"'):  # a weak tag does not promise the same bytes
            etag.write_text(strong)
        total = start + int(length) if length else None
        with tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True) as bar:
            for block in answer.iter_content(1 << 16):
                file.write(block)
                bar.update(len(block))


def _md5(path: Path) -> str:
    log.info("%s: computing its md5", path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def unpack(archive: str | os.PathLike, folder: str | os.PathLike) -> Path:
    """Unpack a tar (of any compression) or zip into ``folder``, which appears when all of it is there; once only.

    Raises:
        UserError: neither tar nor zip, damaged, or with a member that is a link, a device or outside of the folder.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        with contextlib.closing(_members(archive)) as members:
            for name, file in members:
                target = partial / _inside(name, archive)
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "wb") as copy:
                    shutil.copyfileobj(file, copy)
        os.replace(partial, folder)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        # Only what the system says has an errno: a full disk, or a folder that cannot be written
        mend = f"see to the room and the rights in {folder.parent}" if getattr(error, "errno", None) else "remove it"
        raise UserError(f"{archive}: cannot be unpacked: {error}; {mend} and run the stage again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file in the archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as pack:
            for info in pack.infolist():
                if stat.S_ISLNK(info.external_attr >> 16):
                    raise UserError(f"{archive}: {info.filename} is a link; unpack it by hand and give ++corpus=DIR")
                if not info.is_dir():
                    with pack.open(info) as file:
                        yield info.filename, file
        return
    with tarfile.open(archive) as pack:
        for info in pack:
            if not (info.isfile() or info.isdir()):
                raise UserError(f"{archive}: {info.name} is no plain file; unpack it by hand and give ++corpus=DIR")
            if info.isfile():
                yield info.name, pack.extractfile(info)
        while pack.fileobj.read(1 << 20):  # to the end, where the checksum of the compressed data is
            pass


def _inside(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise UserError(f"{archive}: {name} lies outside of the folder; do not trust this archive")
    return path
