"""Downloads against a server on this machine that breaks off, changes its file, or knows no ranges."""

import hashlib
import http.server
import io
import re
import tarfile
import threading
import zipfile

import pytest

from speechllm import download
from speechllm.errors import UserError

CONTENT = bytes(range(256)) * 2000
BLOCK = 65536  # what has come is kept in blocks of this size


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server
        range_ = self.headers.get("Range") if site.ranges else None
        site.requests.append(self.headers.get("Range"))
        if site.faults:
            self.send_error(site.faults.pop(0))
            return
        start = 0
        if range_ and self.headers.get("If-Range", site.etag) == site.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", range_)[1])
        if start >= len(site.content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(site.content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(site.content) - start))
        self.send_header("ETag", site.etag)
        self.end_headers()
        stop = site.cuts.pop(0) if site.cuts else len(site.content)
        self.wfile.write(site.content[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.etag, server.ranges = CONTENT, '"one"', True
    server.cuts, server.faults, server.requests = [], [], []
    server.url = f"http://127.0.0.1:{server.server_address[1]}/corpus.zip"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_broken_connection_goes_on_where_it_stopped(site, tmp_path):
    site.cuts = [2 * BLOCK, 5 * BLOCK]
    path = download.fetch(site.url, tmp_path / "new" / "corpus.zip", hashlib.md5(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT
    assert site.requests == [None, f"bytes={2 * BLOCK}-", f"bytes={5 * BLOCK}-"]
    assert [file.name for file in path.parent.iterdir()] == ["corpus.zip"]


def test_next_call_goes_on_where_the_last_gave_up(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    site.cuts = [2 * BLOCK + 99]
    with pytest.raises(UserError, match="goes on where it stopped"):
        download.fetch(site.url, tmp_path / "corpus.zip")
    assert not (tmp_path / "corpus.zip").exists()
    assert download.fetch(site.url, tmp_path / "corpus.zip").read_bytes() == CONTENT
    assert site.requests[1] == f"bytes={2 * BLOCK}-"


def test_changed_file_is_not_mixed_with_the_old_one(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    site.cuts = [200_000]
    with pytest.raises(UserError):
        download.fetch(site.url, tmp_path / "corpus.zip")
    site.content, site.etag = CONTENT[::-1], '"two"'
    assert download.fetch(site.url, tmp_path / "corpus.zip").read_bytes() == CONTENT[::-1]


def test_part_that_was_complete_is_taken(site, tmp_path):
    (tmp_path / "corpus.zip.part").write_bytes(CONTENT)
    (tmp_path / "corpus.zip.etag").write_text(site.etag)
    assert download.fetch(site.url, tmp_path / "corpus.zip").read_bytes() == CONTENT
    assert len(site.requests) == 1


def test_file_that_became_shorter_is_fetched_anew(site, tmp_path):
    (tmp_path / "corpus.zip.part").write_bytes(CONTENT + b"more")
    (tmp_path / "corpus.zip.etag").write_text(site.etag)
    assert download.fetch(site.url, tmp_path / "corpus.zip").read_bytes() == CONTENT


def test_server_without_ranges_starts_again(site, tmp_path):
    site.cuts, site.ranges = [200_000], False
    assert download.fetch(site.url, tmp_path / "corpus.zip").read_bytes() == CONTENT


def test_weak_etag_is_not_trusted(site, tmp_path):
    site.cuts, site.etag = [200_000], 'W/"one"'
    assert download.fetch(site.url, tmp_path / "corpus.zip").read_bytes() == CONTENT
    assert site.requests == [None, None]


def test_wrong_checksum_leaves_nothing(site, tmp_path):
    with pytest.raises(UserError, match=f"md5 {hashlib.md5(CONTENT).hexdigest()}, expected {'0' * 32}"):
        download.fetch(site.url, tmp_path / "corpus.zip", "0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_fetched_again(site, tmp_path):
    download.fetch(site.url, tmp_path / "corpus.zip")
    download.fetch(site.url, tmp_path / "corpus.zip", hashlib.md5(CONTENT).hexdigest())
    assert len(site.requests) == 1


def test_busy_server_is_asked_again_and_a_refusal_is_not(site, tmp_path):
    site.faults = [503, 429]
    assert download.fetch(site.url, tmp_path / "corpus.zip").read_bytes() == CONTENT
    site.requests.clear()
    site.faults = [404]
    with pytest.raises(UserError, match="HTTP 404"):
        download.fetch(site.url, tmp_path / "other.zip")
    assert len(site.requests) == 1


def test_only_http(tmp_path):
    with pytest.raises(UserError, match="only http and https"):
        download.fetch(f"file://{tmp_path}/a.zip", tmp_path / "b.zip")


def make_tar(path, *names, link=None):
    with tarfile.open(path, "w:gz") as pack:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            pack.addfile(info, io.BytesIO(b"wav"))
        if link:
            info = tarfile.TarInfo("corpus/link")
            info.type, info.linkname = link, "../../outside"
            pack.addfile(info)


def make_zip(path, *names, link=False):
    with zipfile.ZipFile(path, "w") as pack:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if link else 0o100644) << 16
            pack.writestr(info, "wav")


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_unpack(make, tmp_path):
    make(tmp_path / "a.pack", "corpus/README", "corpus/recordings/0.wav")
    folder = download.unpack(tmp_path / "a.pack", tmp_path / "here")
    assert (folder / "corpus" / "recordings" / "0.wav").read_bytes() == b"wav"
    (tmp_path / "a.pack").unlink()
    assert download.unpack(tmp_path / "a.pack", tmp_path / "here") == folder  # once is enough


def test_an_archive_is_fetched_until_it_is_unpacked(site, tmp_path):
    make_zip(tmp_path / "made.zip", "corpus/README")
    site.content = (tmp_path / "made.zip").read_bytes()
    for _ in range(2):
        folder = download.fetch_unpacked(site.url, tmp_path / "here")
        assert (folder / "corpus" / "README").read_bytes() == b"wav"
        (tmp_path / "corpus.zip").unlink(missing_ok=True)
    assert len(site.requests) == 1


def test_a_folder_that_cannot_be_made_is_not_the_archives_fault(tmp_path):
    make_zip(tmp_path / "a.zip", "corpus/README")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"a\.zip: cannot be unpacked: .*see to the room and the rights"):
        download.unpack(tmp_path / "a.zip", tmp_path / "file" / "here")


@pytest.mark.parametrize("make", [make_tar, make_zip])
@pytest.mark.parametrize("name", ["../outside", "corpus/../../outside", "/tmp/outside", "..\\outside", "C:\\outside"])
def test_unpack_refuses_what_lies_outside(make, name, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    make(home / "a.pack", "corpus/README", name)
    with pytest.raises(UserError, match="outside of the folder"):
        download.unpack(home / "a.pack", home / "here")
    assert [file.name for file in home.iterdir()] == ["a.pack"]
    assert [file.name for file in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_unpack_refuses_links_and_devices_in_tar(kind, tmp_path):
    make_tar(tmp_path / "a.tar.gz", "corpus/README", link=kind)
    with pytest.raises(UserError, match="corpus/link is no plain file"):
        download.unpack(tmp_path / "a.tar.gz", tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_unpack_refuses_links_in_zip(tmp_path):
    make_zip(tmp_path / "a.zip", "corpus/link", link=True)
    with pytest.raises(UserError, match="corpus/link is a link"):
        download.unpack(tmp_path / "a.zip", tmp_path / "here")


def test_unpack_names_an_archive_with_a_wrong_byte(tmp_path):
    make_tar(tmp_path / "a.tar.gz", *(f"corpus/{number}.wav" for number in range(50)))
    data = bytearray((tmp_path / "a.tar.gz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.tar.gz").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.tar\.gz: cannot be unpacked"):
        download.unpack(tmp_path / "a.tar.gz", tmp_path / "here")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_unpack_names_a_damaged_archive(make, tmp_path):
    path = tmp_path / "a.pack"
    make(path, *(f"corpus/{number}.wav" for number in range(50)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"a\.pack: cannot be unpacked"):
        download.unpack(path, tmp_path / "here")
    assert [file.name for file in tmp_path.iterdir()] == ["a.pack"]
