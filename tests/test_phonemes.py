"""Phonemes as tokens: the codec, and the tool that extends a tokenizer by those of the data."""

import json
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechllm import vocabulary
from speechllm.errors import UserError
from speechllm.formats.chatml import to_row
from speechllm.formats.kaldi import write_table
from speechllm.formats.tokens import counter
from speechllm.phonemes import Phonemes, stretches
from speechllm.sample import Clip, Prompt, Sample

TEXTS = ["hello she had your dark suit", "请你做语音评测", "total 8 accuracy 9"]
MIXED = "<PH_START> sil ɑː AH0 AH1 <PH_END> total 8"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tokenizer with what Qwen's has: bytes, and text composed by NFC."""
    from tokenizers.normalizers import NFC

    from speechllm.models.tiny import train_tokenizer

    folder = tmp_path_factory.mktemp("base")
    made = train_tokenizer(TEXTS * 9, 400)
    made.backend_tokenizer.normalizer = NFC()
    made.save_pretrained(folder)
    return folder


def auto(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def fast(folder):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def text_phone(path, *answers):
    write_table(path, {f"u{i:03d}": answer for i, answer in enumerate(answers)})
    return path


def conversations(path, *answers):
    rows = [
        {"conversations": [{"from": "user", "value": "<audio>a.wav</audio>?"}, {"from": "assistant", "value": answer}]}
        for answer in answers
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def build(base, folder, *paths, marks=False):
    paths = [str(path) for path in paths]
    counts = vocabulary.build(vocabulary.collect(paths), paths, str(base), str(folder), marks)
    return Phonemes(auto(folder)), counts


# The codec.


def test_stretches():
    assert stretches(" sil  sh iy ") == [["sil", "sh", "iy"]]
    assert stretches("a<PH_START>sil sh<PH_END> b <PH_START> <PH_END>") == [["sil", "sh"], []]
    for text in ("<PH_START> a", "a <PH_END>", "<PH_END> a <PH_START>", "<PH_START> a <PH_START> b <PH_END>"):
        with pytest.raises(UserError, match="do not come in pairs"):
            stretches(text)


def test_a_tokenizer_without_phonemes_has_plain_text(base):
    phonemes = Phonemes(auto(base))
    assert not phonemes.ids and not phonemes.marks
    assert phonemes.encode("she had") == auto(base).encode("she had", add_special_tokens=False)
    assert phonemes.decode(phonemes.encode("请你做 she")) == "请你做 she"


def test_mixed_answers(base, tmp_path):
    phonemes, _ = build(base, tmp_path / "tok", conversations(tmp_path / "x.jsonl", MIXED))
    ids = phonemes.encode(MIXED)
    assert [phonemes.marks[0], *(phonemes.ids[s] for s in ("sil", "ɑː", "AH0", "AH1")), phonemes.marks[1]] == ids[:6]
    assert phonemes.decode(ids) == MIXED
    twice = f"so: {MIXED} and {MIXED}"
    assert phonemes.decode(phonemes.encode(twice)) == twice
    close = "<PH_START> sil <PH_END> <PH_START> AH0 <PH_END>"
    assert phonemes.decode(phonemes.encode(close)) == close
    words = phonemes.encode("sil AH0")  # outside of the marks they are words
    assert not set(words) & set(phonemes.ids.values()) and phonemes.decode(words) == "sil AH0"
    end = phonemes.tokenizer.eos_token_id
    assert phonemes.decode([*ids, end]) == MIXED
    with pytest.raises(UserError, match="sh zz: not among the model's 4 phonemes"):
        phonemes.encode("<PH_START> zz sil sh <PH_END>")
    with pytest.raises(UserError, match="do not come in pairs"):
        phonemes.encode(f"{MIXED} <PH_START>")


def test_both_kinds_of_tokenizer_and_the_counter_agree(base, tmp_path):
    build(base, tmp_path / "tok", conversations(tmp_path / "x.jsonl", MIXED))
    one, other = Phonemes(auto(tmp_path / "tok")), Phonemes(fast(tmp_path / "tok"))
    assert (one.ids, one.marks) == (other.ids, other.marks)
    assert one.encode(MIXED) == other.encode(MIXED) and other.decode(other.encode(MIXED)) == MIXED
    counts = counter(str(tmp_path / "tok"))([MIXED, "<PH_START> x <PH_END>", "total 8"])
    assert counts[0] == len(one.encode(MIXED)) and counts[2] == len(one.encode("total 8"))
    assert isinstance(counts[1], UserError)


# The vocabulary.

SYMBOLS = st.text(
    st.one_of(
        st.sampled_from("aeiouɑæəɪʊʃʒθðŋɡɹɾøœçñĩãʔʰʷʲːˈˌ˥˩̩̃͡012345pbtdkszIEAOU@{}&|<>_:#-"),
        st.characters(exclude_categories=["Z", "C"]),
    ),
    min_size=1,
    max_size=6,
).filter(lambda symbol: not vocabulary.HAN.search(symbol) and symbol.split() == [symbol])


@settings(max_examples=40, deadline=None)
@given(data=st.data(), marks=st.booleans())
def test_any_inventory_goes_there_and_back(base, data, marks):
    symbols = data.draw(st.lists(SYMBOLS, min_size=1, max_size=30, unique=True))
    answers = data.draw(st.lists(st.lists(st.sampled_from(symbols), min_size=1), min_size=1, max_size=4))
    answers = [" ".join(answer) for answer in [symbols, *answers]]
    with tempfile.TemporaryDirectory() as home:
        said = [f"<PH_START> {answer} <PH_END> total 8" for answer in answers] if marks else answers
        path = text_phone(Path(home) / "text-phone", *said)
        phonemes, counts = build(base, Path(home) / "tok", path)
        assert counts == {symbol: " ".join(answers).split().count(symbol) for symbol in symbols}
        before, plain = auto(base), phonemes.tokenizer
        for codec in (phonemes, Phonemes(fast(Path(home) / "tok"))):
            for answer, text in zip(answers, said, strict=True):
                ids = codec.encode(text)
                inside = ids[1 : 1 + len(answer.split())] if marks else ids
                assert inside == [codec.ids[symbol] for symbol in answer.split()]
                assert codec.decode(ids) == text
        for text in [*TEXTS, *symbols]:  # what is no phoneme is cut as before, the bare symbols too
            assert plain.encode(text, add_special_tokens=False) == before.encode(text, add_special_tokens=False)


def test_ids_follow_those_of_the_base_and_stay_when_it_is_extended_again(base, tmp_path):
    size = len(auto(base))
    first, counts = build(base, tmp_path / "a", text_phone(tmp_path / "1", "sil iy AH1", "sil AH0"))
    assert first.ids == {"AH0": size, "AH1": size + 1, "iy": size + 2, "sil": size + 3}
    assert counts == {"AH0": 1, "AH1": 1, "iy": 1, "sil": 2}
    assert (tmp_path / "a" / "phonemes.txt").read_text() == "AH0\t1\nAH1\t1\niy\t1\nsil\t2\n"
    second, counts = build(tmp_path / "a", tmp_path / "b", text_phone(tmp_path / "2", "zh iy AA0"))
    assert second.ids == {**first.ids, "AA0": size + 4, "zh": size + 5}
    assert counts == {"AH0": 0, "AH1": 0, "iy": 1, "sil": 0, "AA0": 1, "zh": 1}
    again, _ = build(tmp_path / "b", tmp_path / "b", tmp_path / "1", tmp_path / "2")  # in place
    assert again.ids == second.ids and len(auto(tmp_path / "b")) == size + 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "a", "b"]


def test_phonemes_are_no_special_tokens(base, tmp_path):
    phonemes, _ = build(base, tmp_path / "tok", conversations(tmp_path / "x.jsonl", MIXED))
    kept = phonemes.tokenizer.decode(phonemes.encode(MIXED), skip_special_tokens=True)
    assert "<|ph_sil|>" in kept and "<PH_START>" in kept


def test_every_kind_of_data_has_the_same_inventory(base, tmp_path):
    answers = ["sil sh iy", "iy sil"]
    chatml = tmp_path / "c.jsonl"
    samples = [Sample(f"u{i}", Clip("a.wav"), Prompt(), answer, 98, 3, "") for i, answer in enumerate(answers)]
    chatml.write_text("".join(json.dumps(to_row(sample)) + "\n" for sample in samples))
    rows = conversations(tmp_path / "r.jsonl", *answers)
    listed = tmp_path / "r.json"
    listed.write_text(json.dumps([json.loads(line) for line in rows.read_text().splitlines()]))
    for path in (text_phone(tmp_path / "text-phone", *answers), chatml, rows, listed):
        assert vocabulary.collect([str(path)]) == ({"sil": 2, "sh": 1, "iy": 2}, 2, 0)
    assert vocabulary.collect([str(chatml), str(rows)]).counts == {"sil": 4, "sh": 2, "iy": 4}


def test_the_tool(tool, base, tmp_path):
    nfc, nfd = "ã", unicodedata.normalize("NFD", "ã")
    data = [text_phone(tmp_path / "1", "sil sh iy sh", f"sil {nfc} IY"), text_phone(tmp_path / "2", f"sil {nfd}")]
    words = ["--data", f"{data[0]},{data[1]}", "--base_tokenizer", base, "--save_dir", tmp_path / "tok"]
    done = tool("build_phoneme_vocab", *words, "--rare", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"sil 3  sh 2  IY 1  {nfd} 1  iy 1  {nfc} 1\n")
    assert "tok: 6 phonemes, 9 in 3 answers; each is one token" in done.stdout
    assert f"rare, fewer than 3 in the data, so badly learnt: sh IY {nfd} iy {nfc}\n" in done.stderr
    assert "IY, iy differ only in case" in done.stderr
    assert f"{nfd} (U+0061 U+0303), {nfc} (U+00E3) differ only in how Unicode composes them" in done.stderr
    assert not Phonemes(auto(tmp_path / "tok")).marks

    done = tool("build_phoneme_vocab", *words, "--marks", "true")
    assert done.returncode == 0 and "no row has them yet" in done.stderr
    assert len(Phonemes(auto(tmp_path / "tok")).marks) == 2

    mixed = conversations(tmp_path / "x.jsonl", MIXED, "total 9")
    done = tool("build_phoneme_vocab", "--data", mixed, *words[2:])
    assert done.returncode == 0 and "4 in 2 answers, 1 of them with marks" in done.stdout
    assert not set(Phonemes(auto(tmp_path / "tok")).ids) & {"total", "9", "8"}


def test_rows_without_marks_become_text_when_a_vocabulary_gets_them(base, tmp_path, caplog):
    build(base, tmp_path / "a", text_phone(tmp_path / "1", "sil iy"))
    build(tmp_path / "a", tmp_path / "b", conversations(tmp_path / "x.jsonl", MIXED))
    assert "was phonemes, and is text from now on" in caplog.text


@pytest.mark.parametrize(
    "answers, reason",
    [
        (["sil sh", "she had understanding"], "2: 'understanding' looks like text, not like a phoneme"),
        (["请 你 做 语音"], "1: '请' looks like text"),
        (["<|ph_sil|> <|ph_sh|>"], "1: <|ph_sil|>: data has the bare symbol, sil"),
        ([f"w{i} w{i + 1}" for i in range(500)], "501 different symbols, over 500: .*such as .*w500"),
        (["<PH_START> sil", "iy"], "1: <PH_START> and <PH_END> do not come in pairs"),
        (["<PH_START> <PH_END> total 8"], "no phonemes in the data"),
        ([MIXED, "total 8", "sil AH0"], "3: phonemes without <PH_START> and <PH_END>, which other rows have"),
        ([MIXED, "total <|im_end|> 8"], r"2: 'total <\|im_end\|> 8' comes back as 'total +8'"),
    ],
)
def test_what_looks_like_text_or_does_not_come_back_is_refused(base, tmp_path, answers, reason):
    path = conversations(tmp_path / "x.jsonl", *answers)
    with pytest.raises(UserError, match=reason):
        build(base, tmp_path / "tok", path)
    assert [one.name for one in tmp_path.iterdir()] == ["x.jsonl"]


def test_rows_of_other_forms_are_named(base, tmp_path):
    path = conversations(tmp_path / "x.jsonl", "sil")
    path.write_text(path.read_text() + '\n{"conversations": []}\n{"messages": []}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:2: turns of user and assistant"):
        vocabulary.collect([str(path)])
    with pytest.raises(UserError, match="nowhere: no such file"):
        vocabulary.collect([str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no tokenizer that transformers reads"):
        build(tmp_path / "empty", tmp_path / "tok", conversations(tmp_path / "x.jsonl", "sil"))


def test_a_folder_with_other_files_is_left_alone(base, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_text("weights")
    with pytest.raises(UserError, match=r"holds model\.safetensors, which is no part of a tokenizer"):
        build(base, model, text_phone(tmp_path / "1", "sil"))
    assert [path.name for path in model.iterdir()] == ["model.safetensors"]


def test_what_a_killed_run_left_does_not_matter(base, tmp_path):
    (tmp_path / "tok.part").mkdir()
    (tmp_path / "tok.part" / "tokenizer.json").write_text("{")
    phonemes, _ = build(base, tmp_path / "tok", text_phone(tmp_path / "1", "sil"))
    assert list(phonemes.ids) == ["sil"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "tok"]


def test_text_length_counts_phonemes_and_an_unknown_one_names_its_utterance(tool, base, tmp_path, shared_data):
    wav = shared_data / "timit_sample" / "dr1-fvmh0" / "sa1.wav"
    if not wav.is_file():
        pytest.skip(f"no {wav}")
    build(base, tmp_path / "tok", text_phone(tmp_path / "1", "sil ɑː sh iy"))
    write_table(tmp_path / "wav.scp", {key: str(wav) for key in ("a", "b", "c")})
    write_table(tmp_path / "text-phone", {"a": "sil sh sh iy sil", "b": "sil zz", "c": "ɑː"})
    words = [f"++scp_file={tmp_path}/wav.scp", f"++transcript_file={tmp_path}/text-phone", "++max_bad=1"]
    done = tool("scp2jsonl", *words, f"++tokenizer={tmp_path}/tok", f"++jsonl_file={tmp_path}/x.jsonl")
    assert done.returncode == 0, done.stderr
    assert f"left out: b ({tmp_path}/wav.scp:2): zz: not among the model's 4 phonemes" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["key"], row["text_length"]) for row in rows] == [("a", 5), ("c", 1)]
