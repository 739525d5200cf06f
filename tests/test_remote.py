"""Audio at URLs, from servers of every manner. What they send is counted at their sockets."""

import functools
import os
import socket
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile

from speechllm import sources
from speechllm.audio import AudioError, duration, durations, read
from speechllm.sample import Clip


class Server(SimpleHTTPRequestHandler):
    """Files of a folder. What it does, and what it did, stands in the class."""

    protocol_version = "HTTP/1.1"

    @classmethod
    def reset(cls):
        cls.sent = cls.requests = cls.connections = 0
        cls.busy = 0  # answers of 503 before the first good one
        cls.cut = 0  # answers that break off in the middle, before the first good one
        cls.delay = 0.0  # seconds before an answer
        cls.ranges = True  # whether it knows them
        cls.told = True  # whether it says how long a body is

    def setup(self):
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)  # so that what is sent is on its way
        super().setup()
        Server.connections += 1

    def do_GET(self):
        Server.requests += 1
        time.sleep(Server.delay)
        path = self.translate_path(self.path)
        if Server.busy:
            Server.busy -= 1
            return self.send_error(503)
        if not os.path.isfile(path):
            return self.send_error(404)
        with open(path, "rb") as file:
            body = file.read()
        asked = self.headers.get("Range") if Server.ranges else None
        self.send_response(206 if asked else 200)
        if asked:
            last = min(int(asked.rpartition("-")[2]), len(body) - 1)
            self.send_header("Content-Range", f"bytes 0-{last}/{len(body)}")
            body = body[: last + 1]
        if Server.told:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if Server.cut:
            Server.cut -= 1
            body, self.close_connection = body[: len(body) // 2], True
        self.send(body)

    def send(self, body):
        try:
            for start in range(0, len(body), 8192):
                Server.sent += self.connection.send(body[start : start + 8192])
        except OSError:  # the client has heard enough
            self.close_connection = True

    def log_message(self, *_):
        """Keep the test's output quiet."""


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    Server.reset()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def noise(path, seconds, rate=16000):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)
    soundfile.write(path, wave, rate)
    return str(path)


def reason(call, clip):
    with pytest.raises(AudioError) as caught:
        call(clip)
    return str(caught.value)


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "ogg"])
def test_every_format_from_every_kind_of_server(tmp_path, site, ending):
    local = noise(tmp_path / f"a.{ending}", 4.0, 44100)
    url = Clip(f"{site}/a.{ending}", 1.0, 3.5)
    assert np.array_equal(read(url), read(Clip(local, 1.0, 3.5)))
    for Server.ranges in (True, False):
        for Server.told in (True, False):
            assert duration(url) == 2.5


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_the_length_of_5_megabytes_costs_under_100_kilobytes(tmp_path, site, ending):
    size = os.path.getsize(noise(tmp_path / f"a.{ending}", 170.0))
    assert size > 5_000_000
    assert duration(Clip(f"{site}/a.{ending}")) == 170.0
    assert Server.sent <= 65536
    Server.sent, Server.ranges = 0, False
    assert duration(Clip(f"{site}/a.{ending}")) == 170.0
    assert Server.sent < 500_000  # a server that ignores the range is cut off


def test_truncation_shows(tmp_path, site):
    os.truncate(noise(tmp_path / "a.wav", 60.0), 1_000_000)
    for Server.ranges in (True, False):
        assert "promises 1920000 bytes of samples, the file holds 999956" in reason(duration, Clip(f"{site}/a.wav"))


def test_a_busy_or_broken_server_is_asked_again(tmp_path, site):
    noise(tmp_path / "a.wav", 20.0)
    clip = Clip(f"{site}/a.wav")
    for call, expected in ((duration, 20.0), (lambda clip: len(read(clip)), 320000)):
        Server.busy = 2
        assert call(clip) == expected
        Server.cut = 2
        assert call(clip) == expected
    Server.requests, Server.busy = 0, 99
    assert "HTTP 503" in reason(duration, clip)
    assert Server.requests == 4
    Server.busy, Server.cut = 0, 99
    assert "4 tries" in reason(read, clip)


def test_what_is_not_there_is_not_asked_for_again(site):
    assert "HTTP 404" in reason(duration, Clip(f"{site}/b.wav"))
    assert Server.requests == 1
    assert "ConnectionError" in reason(duration, Clip("http://127.0.0.1:9/a.wav"))


def test_a_server_that_says_nothing_is_left(site, monkeypatch):
    monkeypatch.setattr(sources, "TIMEOUT", (1, 0.1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        message = reason(duration, Clip(f"http://127.0.0.1:{silent.getsockname()[1]}/a.wav"))
    assert "Timeout" in message and "4 tries" in message


def test_other_schemes_are_refused():
    for url in ("ftp://host/a.wav", "s3://bucket/a.wav", "file:///etc/passwd"):
        assert reason(duration, Clip(url)) == (
            f"{url}: only http and https are read; download the file and give its path"
        )


def test_many_are_asked_at_a_time_and_keep_their_order(tmp_path, site, monkeypatch):
    monkeypatch.undo()  # the server shall sleep
    for i in range(32):
        noise(tmp_path / f"{i}.wav", 0.1 + i / 100)
    Server.delay = 0.1
    started = time.monotonic()
    found = list(durations([Clip(f"{site}/{i % 32}.wav") for i in range(33)] + [Clip(str(tmp_path / "0.wav"))], 1))
    assert time.monotonic() - started < 0.5 * 32 * Server.delay
    assert found == [pytest.approx(0.1 + i / 100) for i in range(32)] + [pytest.approx(0.1)] * 2
    assert Server.requests == 32  # the recording that stands twice is asked for once
    assert Server.connections <= sources.AT_ONCE
