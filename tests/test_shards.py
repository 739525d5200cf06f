"""Tar shards as WebDataset lays them out. They are written by Python's tarfile and by the system's tar."""

import gzip
import io
import json
import os
import subprocess
import tarfile

import numpy as np
import pytest
import soundfile
from byte_tokenizer import make_tokenizer

from speechllm import audio
from speechllm.errors import UserError
from speechllm.formats import shards
from speechllm.formats.kaldi import write_table
from speechllm.sample import Clip


def sound(seed, ending="wav", seconds=0.5):
    body = io.BytesIO()
    wave = np.random.default_rng(seed).uniform(-0.2, 0.2, round(seconds * 16000)).astype(np.float32)
    soundfile.write(body, wave, 16000, format=ending.upper())
    return body.getvalue()


def pack(path, members, form=tarfile.USTAR_FORMAT):
    """A tar of ``{name: bytes}`` or ``[(name, bytes), ...]``."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, body in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return str(path)


def joined(*paths):
    """``{key: (source, text)}`` of the utterances, and the faults."""
    found = []
    index = shards.join(paths, on_fault=lambda *fault: found.append(fault))
    rows = {row.key: (row.source, row.text) for row in index}
    assert len(rows) == len(index)
    return rows, found


def decoded(body):
    return soundfile.read(io.BytesIO(body), dtype="float32")[0]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_audio_is_read_where_it_stands(tmp_path, form):
    """Long names take headers of their own, another kind in each of the two forms."""
    kinds = ("wav", "flac", "mp3", "ogg")
    bodies = {f"spk/{'long' * 30 * (i % 2)}u{i}": sound(i, ending) for i, ending in enumerate(kinds)}
    members = {}
    for (key, body), ending in zip(bodies.items(), ("wav", "flac", "MP3", "ogg"), strict=True):
        members |= {f"{key}.{ending}": body, f"{key}.txt": f"words of {key[-1]}\n".encode()}
    path = pack(tmp_path / "a 语.tar", members, form)
    rows, faults = joined(path)
    assert not faults and list(rows) == list(bodies)
    for key, (source, text) in rows.items():
        assert source.startswith(f"{path}:") and text == f"words of {key[-1]}"
        assert np.array_equal(audio.read(Clip(source)), decoded(bodies[key]))
        assert np.array_equal(audio.read(Clip(source, 0.1, 0.2)), decoded(bodies[key])[1600:3200])
        assert audio.duration(Clip(source)) == 0.5


def test_a_tar_of_the_system_in_any_order(tmp_path):
    """As `tar` packs a folder: names begin with ./, folders are members too, and the order is the disk's."""
    folder = tmp_path / "data"
    (folder / "b").mkdir(parents=True)
    for key in ("a1", "a2", "b/u.x"):
        (folder / f"{key}.flac").write_bytes(sound(1, "flac"))
        (folder / f"{key}.txt").write_text(f"words of {key}")
    names = ["./a1.flac", "./a2.flac", "./b", "./a2.txt", "./a1.txt"]
    subprocess.run(["tar", "cf", "../x.tar", "--no-recursion", *names], cwd=folder, check=True)
    subprocess.run(["tar", "rf", "../x.tar", "b/u.x.txt", "b/u.x.flac"], cwd=folder, check=True)
    rows, faults = joined(str(tmp_path / "x.tar"))
    assert not faults
    assert {key: text for key, (_, text) in rows.items()} == {key: f"words of {key}" for key in ("a1", "a2", "b/u.x")}
    assert all(audio.duration(Clip(source)) == 0.5 for source, _ in rows.values())


def test_texts(tmp_path, caplog):
    caplog.set_level("INFO")
    texts = {
        "a.txt": "\ufeff 今天\r\nfour  five\n".encode(),
        "b.json": json.dumps({"text": "from json", "speaker": "s"}).encode(),
        "c.json": json.dumps({"speaker": "s"}).encode(),  # with c.txt beside it, no text is missed here
        "c.txt": b"from txt",
        "d.txt": b" \n",
        "e.txt": b"thr\xe9e",
        "f.json": json.dumps({"transcript": "x"}).encode(),
        "g.json": b"{",
    }
    members = {f"{key}.wav": sound(0) for key in "abcdefg"} | texts | {"a.npy": b"x", "b.npy": b"y", "._a.wav": b"z"}
    path = pack(tmp_path / "x.tar", members)
    rows, faults = joined(path)
    assert {key: text for key, (_, text) in rows.items()} == {
        "a": "今天 four  five",
        "b": "from json",
        "c": "from txt",
    }
    assert [fault[:2] for fault in faults] == [
        ("d", f"{path}:d.txt"),
        ("e", f"{path}:e.txt"),
        ("f", f"{path}:f.json"),
        ("g", f"{path}:g.json"),
    ]
    assert all(fault[2].startswith("no text in it") for fault in faults)
    assert "passed over in the shards: 2 .npy, 1 .wav" in caplog.text


def test_what_does_not_match_is_named_with_shard_and_member(tmp_path):
    one = pack(tmp_path / "1.tar", {"a.wav": sound(0), "a.txt": b"a", "b.wav": sound(0), "c.txt": b"c"})
    two = pack(
        tmp_path / "2.tar", {"a.flac": sound(0, "flac"), "a.txt": b"again", "d e.wav": sound(0), "d e.txt": b"d"}
    )
    rows, faults = joined(one, two)
    assert {key: text for key, (_, text) in rows.items()} == {"a": "a"} and rows["a"][0].startswith(one)
    assert [(key, where, reason.split(":")[0]) for key, where, reason in faults] == [
        ("a", f"{two}:a.flac", f"the id stands at {one}"),
        ("d e", f"{two}:d e.wav", "its name is the id, which has to be one word; rename the member"),
        ("a", f"{two}:a.txt", f"the id stands at {one}"),
        ("d e", f"{two}:d e.txt", "its name is the id, which has to be one word; rename the member"),
        ("c", f"{one}:c.txt", "text without audio"),
        ("b", f"{one}:b.wav", "audio without text"),
    ]


def test_truncated_shards(tmp_path):
    members = {f"u{i}.{kind}": sound(i) if kind == "wav" else b"x" for i in range(4) for kind in ("txt", "wav")}
    path = pack(tmp_path / "x.tar", members)
    with tarfile.open(path) as tar:
        ends = {member.name: member.offset_data + -(-member.size // 512) * 512 for member in tar}
        within = tar.getmember("u2.wav").offset_data + 1000
    source = joined(path)[0]["u2"][0]

    os.truncate(path, within)
    rows, faults = joined(path)
    assert list(rows) == ["u0", "u1"]
    assert faults[0][:2] == ("u2", f"{path}:u2.wav") and "truncated" in faults[0][2]
    assert {fault[1] for fault in faults} == {f"{path}:u2.wav"}
    with pytest.raises(
        audio.AudioError, match=r"x\.tar:\d+: truncated: the tar holds 1000 of the member's 16044 bytes"
    ):
        audio.read(Clip(source))

    for size in (ends["u2.txt"], ends["u2.txt"] + 100):  # between two members, and within a header
        pack(path, members)
        os.truncate(path, size)
        rows, faults = joined(path)
        assert list(rows) == ["u0", "u1"]
        assert faults[0][:2] == ("x.tar", f"{path}:u2.txt") and "breaks off" in faults[0][2]
        assert faults[1][:2] == ("u2", f"{path}:u2.txt")  # its text has no audio now

    pack(path, members)
    with open(path, "r+b") as file:
        file.seek(ends["u1.wav"])
        file.write(b"damage" * 100)
    rows, faults = joined(path)
    assert list(rows) == ["u0", "u1"] and "damaged" in faults[0][2]


def test_compressed_and_foreign_files_are_refused(tmp_path):
    path = pack(tmp_path / "x.tar", {"a.wav": sound(0), "a.txt": b"a"})
    (tmp_path / "y.tar").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    with pytest.raises(UserError, match=r"y\.tar: compressed with gzip.*unpack it"):
        joined(path, str(tmp_path / "y.tar"))
    (tmp_path / "y.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(UserError, match=r"y\.tar: not a tar"):
        joined(str(tmp_path / "y.tar"))
    for name in ("x.tar.gz", "x.tgz"):
        os.link(path, tmp_path / name)
        with pytest.raises(audio.AudioError, match="compressed tar has no offsets; unpack it"):
            audio.read(Clip(f"{tmp_path / name}:512"))
    with pytest.raises(audio.AudioError, match="no member of the tar begins at this offset"):
        audio.read(Clip(f"{path}:600"))


def test_patterns(tmp_path):
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b-1.tar"):
        (tmp_path / name).touch()

    def names(pattern):
        return [os.path.basename(path) for path in shards.expand(f"{tmp_path}/{pattern}")]

    assert names("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert names("*.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "b-1.tar"]
    assert names("?-{1..1}.tar") == names("b-1.tar") == ["b-1.tar"]
    for pattern, missing in (("a-{08..11}.tar", "a-11.tar"), ("c.tar", "c.tar"), ("c-*.tar", "c-*.tar")):
        with pytest.raises(UserError) as caught:
            names(pattern)
        assert str(caught.value).startswith(f"{tmp_path}/{missing}: no such file")


def test_shards_to_rows_and_a_table_that_points_into_them(tmp_path, tool):
    for shard in range(3):
        members = {}
        for i in range(5):
            members |= {f"s{shard}u{i}.wav": sound(i, seconds=0.1 * (1 + i)), f"s{shard}u{i}.txt": b"x" * (1 + i)}
        pack(tmp_path / f"x-{shard:03d}.tar", members)
    write_table(tmp_path / "hotwords", {"s1u1": "甲,乙 丙"})
    words = [f"++tokenizer={make_tokenizer(tmp_path)}", f"++jsonl_file={tmp_path}/x.jsonl"]
    done = tool("scp2jsonl", "++shards=x-{000..002}.tar", f"++hotwords_file={tmp_path}/hotwords", *words)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["key"] for row in rows] == [f"s{shard}u{i}" for shard in range(3) for i in range(5)]
    assert [row["speech_length"] for row in rows[:5]] == [8, 18, 28, 38, 48]
    assert [row["text_length"] for row in rows[:5]] == [1, 2, 3, 4, 5]
    asked = [row["messages"][1]["content"] for row in rows]
    assert [i for i, text in enumerate(asked) if "[甲, 乙 丙]" in text] == [6]

    sources = {row["key"]: text.partition("!")[2].partition("<")[0] for row, text in zip(rows, asked, strict=True)}
    write_table(tmp_path / "wav.scp", sources)
    write_table(tmp_path / "text", {row["key"]: row["messages"][2]["content"] for row in rows})
    tables = [f"++scp_file={tmp_path}/wav.scp", f"++transcript_file={tmp_path}/text"]
    before = (tmp_path / "x.jsonl").read_bytes()
    assert tool("scp2jsonl", *tables, f"++hotwords_file={tmp_path}/hotwords", *words).returncode == 0
    assert (tmp_path / "x.jsonl").read_bytes() == before

    done = tool("scp2jsonl", "++shards=x-*.tar", *tables, *words)
    assert done.returncode == 1 and "or ++shards in place of tables" in done.stderr
