"""egs/aishell/asr on a miniature of AISHELL-1, built from a sample of its recordings."""

import json
import re
import tarfile

import miniature
import pytest
from miniature import ROOT, Recipe, aishell_sample, make_aishell
from tiny import make_model

from speechllm import cli, download
from speechllm.config import RunConfig
from speechllm.errors import UserError

SCRIPT = ROOT / "egs" / "aishell" / "asr" / "local" / "prepare_aishell.py"
COUNTS = {("train", "S0002"): 12, ("train", "S0003"): 4, ("dev", "S0724"): 3, ("test", "S0764"): 3}
SETS = ("train", "dev", "test")


@pytest.fixture
def recipe(tmp_path):
    return Recipe(tmp_path / "project", "aishell")


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """The prepare script, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return miniature.load(SCRIPT, "prepare_aishell")


def make(folder, shared_data, packed=False):
    sample = aishell_sample(shared_data)
    if not sample:
        pytest.skip(f"no aishell_sample in {shared_data}")
    return make_aishell(folder, sample, COUNTS, packed)


def rows(home, name):
    return [json.loads(line) for line in (home / "data" / "full" / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("below", ["", "data_aishell"])
def test_stages_0_and_1_of_a_corpus_with_packed_speakers(recipe, shared_data, tmp_path, below):
    texts = make(tmp_path, shared_data, packed=True)
    tokenizer = make_model(tmp_path / "model")
    words = ["--corpus", tmp_path / below, "--tokenizer", tokenizer, "--stop-stage", 1]
    done = recipe.run(*words)
    assert done.returncode == 0, done.stderr
    found = {}
    for name in SETS:
        table = recipe.table(f"data/full/{name}/text")
        paths = recipe.table(f"data/full/{name}/wav.scp")
        speakers = {speaker for part, speaker in COUNTS if part == name}
        assert list(table) == list(paths) == sorted(key for key in texts if key[6:11] in speakers)
        assert recipe.table(f"data/full/{name}/utt2spk") == {key: key[6:11] for key in table}
        assert list(paths.values()) == [
            str(tmp_path / "data_aishell" / "wav" / name / key[6:11] / f"{key}.wav") for key in paths
        ]
        written = [row["messages"][2]["content"] for row in rows(recipe.home, name)]
        assert written == list(table.values())
        found |= table
    assert found == texts
    assert any(" " in text for text in found.values()), "the sample has Latin words, which stay apart"
    assert {row["messages"][1]["content"].split("<|")[0] for row in rows(recipe.home, "test")} == {
        "语音转写，不进行文本规整："  # upstream's prompt for text without figures and punctuation
    }
    assert "train: 16 utterances; the whole corpus has 120098" in done.stderr
    again = recipe.run(*words, "--stop-stage", 0)
    assert again.returncode == 0 and "unpack" not in again.stderr


def test_stages_0_to_4(recipe, shared_data, tmp_path):
    make(tmp_path, shared_data)
    model = make_model(tmp_path / "model")
    quick = ["--size", "quick", "--corpus", tmp_path, "--tokenizer", model, f"++model={model}"]
    done = recipe.run(*quick, "--nproc", 1, "++max_new_tokens=8", "++dataset_conf.num_workers=0")
    assert done.returncode == 0, done.stdout + done.stderr
    score = json.loads((recipe.home / "exp/quick/decode_test/score.json").read_text())
    assert score["metric"] == "cer" and score["counts"]["utterances"] == 3 and score["counts"]["missing"] == 0
    trained = re.findall(r"^  (audio_encoder|audio_adaptor|llm) .* ([\d.]+)%$", done.stderr, re.M)
    assert [(part, share != "0.0") for part, share in trained] == [
        ("audio_encoder", False),
        ("audio_adaptor", True),
        ("llm", False),
    ]
    assert "| quick | test | CER |" in (recipe.home / "exp/quick/RESULTS.md").read_text()


def test_what_lacks_its_transcript_or_recording_is_left_out_and_listed(recipe, shared_data, tmp_path):
    texts = make(tmp_path, shared_data)
    transcript = tmp_path / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    lines = transcript.read_text("utf-8").splitlines(keepends=True)
    gone = lines.pop(3).split()[0]
    transcript.write_text("".join(lines) + "BAC009S0764W9999 没 有 录音\n", encoding="utf-8")
    words = ["--corpus", tmp_path, "--stop-stage", 0]
    done = recipe.run(*words)
    assert done.returncode == 0, done.stderr
    assert [line.split("\t") for line in (recipe.home / "data/full/corpus.bad").read_text().splitlines()] == [
        [gone, f"{tmp_path}/data_aishell/wav/train/S0002/{gone}.wav", "audio without transcript"],
        ["BAC009S0764W9999", f"{transcript}:{len(lines) + 1}", "transcript without audio"],
    ]
    kept = {key for name in SETS for key in recipe.table(f"data/full/{name}/text")}
    assert kept == set(texts) - {gone}
    strict = recipe.run(*words, "--max-bad", 1)
    assert strict.returncode == 1
    assert "2 bad row(s), 1 allowed; the first:" in strict.stderr and gone in strict.stderr


def no_corpus(folder):
    (folder / "data_aishell" / "wav").rename(folder / "waves")


def no_transcript(folder):
    (folder / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt").unlink()


def no_dev(folder):
    (folder / "data_aishell" / "wav" / "dev").rename(folder / "dev")


def a_name_twice(folder):
    (folder / "data_aishell" / "wav" / "test" / "S0764").rename(folder / "data_aishell" / "wav" / "test" / "S0765")
    (folder / "data_aishell" / "wav" / "test" / "S0764").mkdir()
    name = "BAC009S0764W0000.wav"
    wavs = folder / "data_aishell" / "wav" / "test"
    (wavs / "S0764" / name).write_bytes((wavs / "S0765" / name).read_bytes())


def another_archive(folder):
    with tarfile.open(folder / "data_aishell" / "wav" / "S0999.tar.gz", "w:gz") as pack:
        pack.add(folder / "data_aishell" / "transcript", "S0999")


def a_broken_archive(folder):
    another_archive(folder)
    path = folder / "data_aishell" / "wav" / "S0999.tar.gz"
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    "damage, message",
    [
        (no_corpus, r"neither wav/ nor data_aishell/wav/; give what data_aishell\.tgz unpacks to"),
        (no_transcript, r"aishell_transcript_v0\.8\.txt: no such file; .* unpack that again"),
        (no_dev, "dev: no utterance with audio and transcript"),
        (a_name_twice, r"S0765/BAC009S0764W0000\.wav: .*S0764/BAC009S0764W0000\.wav has that name too"),
        (another_archive, r"S0999\.tar\.gz: none of train/S0999, dev/S0999, test/S0999 in it"),
        (a_broken_archive, r"S0999\.tar\.gz: cannot be unpacked: .* remove it and run the stage again"),
    ],
)
def test_what_is_wrong_with_a_corpus_is_named(prepare, shared_data, tmp_path, damage, message):
    make(tmp_path, shared_data)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        prepare.main(prepare.Options(corpus=str(tmp_path)))


@pytest.fixture
def site(shared_data, tmp_path, monkeypatch):
    """A server with the miniature as data_aishell.tgz, and its texts."""
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    texts = make(tmp_path / "made", shared_data, packed=True)
    server = miniature.serve({"/resources/33/data_aishell.tgz": miniature.packed(tmp_path / "made", "data_aishell")})
    server.texts = texts
    yield server
    server.shutdown()
    server.server_close()


def test_a_broken_download_goes_on_and_is_unpacked_once(prepare, site, tmp_path, monkeypatch):
    (content,) = site.files.values()
    monkeypatch.setattr(prepare, "MD5", miniature.md5(content))
    site.cuts = [3 << 16, 5 << 16]  # what has come is kept in blocks of 64 KiB
    for _ in range(2):
        prepare.main(prepare.Options(mirror=site.url))
        text = dict(line.split(" ", 1) for line in (tmp_path / "data/test/text").read_text("utf-8").splitlines())
        assert text == {key: words for key, words in site.texts.items() if "S0764" in key}
    assert [first for _, first in site.requests] == [0, 3 << 16, 5 << 16]
    assert (tmp_path / "downloads/aishell/data_aishell/wav/train/S0002/BAC009S0002W0000.wav").is_file()


def test_a_speaker_whose_unpacking_was_killed_is_not_lost(prepare, shared_data, tmp_path):
    texts = make(tmp_path, shared_data, packed=True)
    wavs = tmp_path / "data_aishell" / "wav"
    download.unpack(wavs / "S0002.tar.gz", wavs / "S0002.unpacked")  # killed before the folder went to its place
    (wavs / "S0003.unpacked.partial" / "train").mkdir(parents=True)  # killed within
    prepare.main(prepare.Options(corpus=str(tmp_path)))
    assert len((tmp_path / "data/train/text").read_text("utf-8").splitlines()) == sum("S000" in key for key in texts)
    assert sorted(path.name for path in wavs.iterdir() if path.is_dir()) == ["dev", "test", "train"]


def test_an_archive_with_another_checksum_is_refused(recipe, site):
    done = recipe.run("--mirror", site.url, "--stop-stage", 0)
    assert done.returncode == 1
    assert "expected 2f494334227864a8a8fec932999db9d8; the file has changed or is damaged" in done.stderr
    assert list((recipe.home / "downloads").iterdir()) == [] and not (recipe.home / "data").exists()


@pytest.mark.parametrize(
    "words, text",
    [
        # From upstream's example of this corpus: BAC009S0764W0121, as the corpus has it and as Fun-ASR's text does
        ("甚至 出现 交易 几乎 停滞 的 情况", "甚至出现交易几乎停滞的情况"),
        ("想 听 歌曲 Call Me Maybe", "想听歌曲Call Me Maybe"),
        ("三 个 ｋ ｔ ｖ  的 名字", "三个k t v的名字"),
    ],
)
def test_blanks_go_but_for_those_between_latin_words(prepare, words, text):
    assert prepare.unspaced(words) == text


TRAINED = {
    "adaptor": {"audio_adaptor"},
    "lora": {"llm by LoRA"},
    "encoder_adaptor": {"audio_encoder", "audio_adaptor"},
    "full": {"audio_encoder", "audio_adaptor", "llm"},
    "quick": {"audio_adaptor"},
}


@pytest.mark.parametrize("corpus", ["aishell", "librispeech"])
@pytest.mark.parametrize("name", TRAINED)
def test_what_each_yaml_trains(corpus, name):
    path = ROOT / "egs" / corpus / "asr" / "conf" / f"{name}.yaml"
    config = cli.parse(RunConfig, [f"--config={path}"])
    parts = {part: config.part(part) for part in ("audio_encoder", "audio_adaptor", "llm")}
    lora = {f"{part} by LoRA" for part, conf in parts.items() if conf.use_lora}
    assert lora | {part for part, conf in parts.items() if not (conf.freeze or conf.use_lora)} == TRAINED[name]
    assert config.model == "FunAudioLLM/Fun-ASR-Nano-2512"
    command = path.read_text().splitlines()[0]
    assert command.endswith(f"--run {name} --config conf/{name}.yaml" if name != "quick" else "--size quick")
