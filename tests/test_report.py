"""Stage 4 as a recipe runs it, tools/report.py, and what it writes."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from speechllm import report

TOOLS = Path(__file__).parents[1] / "tools"
REFERENCES = "u1 打開WiFi到5G模式\nu2 Turn on the lights in room twenty five.\nu3 一百二十三\nu4 你好\n"
HYPOTHESES = "u1\t打开 wifi 到五g的模式\nu2\tturn on the light in room 25\nu3\t123\n"


def run(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, encoding="utf-8")


def make_report(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return run(folder, TOOLS / "report.py", "++ref=text", "++decode_dir=exp/tiny/decode_test", *words)


@pytest.fixture
def decoded(tmp_path):
    folder = tmp_path / "exp/tiny/decode_test"
    folder.mkdir(parents=True)
    (tmp_path / "text").write_text(REFERENCES, encoding="utf-8")
    (folder / "hyp.txt").write_text(HYPOTHESES, encoding="utf-8")
    return folder


def test_stage_4(decoded, tmp_path):
    normalize, where = TOOLS / "whisper_mix_normalize.py", "exp/tiny/decode_test"
    assert run(tmp_path, normalize, "text", f"{where}/ref.norm").returncode == 0
    assert run(tmp_path, normalize, f"{where}/hyp.txt", f"{where}/hyp.norm", "++like=text").returncode == 0
    files = [f"{where}/{name}" for name in ("ref.norm", "hyp.norm", "cer.txt")]
    assert run(tmp_path, "-m", "compute_wer.cli", *files).returncode == 0
    decoder = {"seconds": 2.0, "audio_seconds": 20.0, "rtf": 0.1, "model_dir": "exp/tiny", "command": "decode ++a=b|c"}
    (decoded / "decode.json").write_text(json.dumps(decoder), encoding="utf-8")
    (decoded / "hyp.jsonl").write_text('{"key": "u1", "text": "x"}\n', encoding="utf-8")

    done = make_report(tmp_path)
    assert done.returncode == 0, done.stderr
    score = json.loads((decoded / "score.json").read_text(encoding="utf-8"))
    # 打 开 WIFI 到 五 G 模 式 (1 insertion), 7 English words (1 substitution), 一 百 二 十 三, 你 好 (2 deletions)
    counts = {"ref_tokens": 22, "cor": 19, "sub": 1, "del": 2, "ins": 1, "utterances": 4, "missing": 1, "unreadable": 0}
    assert score["counts"] == counts and score["value"] == round(400 / 22, 4) and score["ser"] == 75.0
    low, high = score["ci95"]
    assert low < score["value"] < high
    assert (score["metric"], score["checkpoint"], score["rtf"], score["seconds"]) == ("cer", "exp/tiny", 0.1, 2.0)
    assert score["command"] == "decode ++a=b|c" and score["normalizer"]["version"].startswith("1 (")
    assert "u4: 2 error(s), 2 reference token(s), no hypothesis" in done.stdout
    assert "1 utterance(s) missing" in done.stderr and "CER 18.18 %" in done.stderr
    *_, row = (tmp_path / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    assert row.startswith("| tiny | test | CER | 18.18 % |") and row.endswith(" `decode ++a=b\\|c` |")


def test_without_the_decoders_notes_its_facts_are_null(decoded, tmp_path):
    assert make_report(tmp_path, "++results=table.md", "++name=other").returncode == 0
    score = json.loads((decoded / "score.json").read_text(encoding="utf-8"))
    assert score["checkpoint"] is score["rtf"] is score["seconds"] is score["audio_seconds"] is None
    assert "report.py" in score["command"]
    assert "| other | test |" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_files_out_of_step_are_refused(decoded, tmp_path):
    (decoded / "cer.txt").write_text("Overall -> 4.55 % N=22 Cor=21 Sub=1 Del=0 Ins=0\n", encoding="utf-8")
    done = make_report(tmp_path)
    assert done.returncode == 1 and "22 21 1 0 0" in done.stderr and "22 19 1 2 1" in done.stderr
    assert not (decoded / "score.json").exists() and not (tmp_path / "RESULTS.md").exists()
    (decoded / "cer.txt").write_text("cut off", encoding="utf-8")
    assert "not there" in make_report(tmp_path).stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("hyp.txt", "u1 x\nu9 x\n", "no reference, first u9"),
        ("hyp.jsonl", '{"key": "u1"}\n{"key": \n', "hyp.jsonl:2: not a row"),
        ("decode.json", "{", "decode.json: not JSON"),
    ],
)
def test_bad_input_is_named(decoded, tmp_path, name, content, message):
    (decoded / name).write_text(content, encoding="utf-8")
    done = make_report(tmp_path)
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]


class Tags(HTMLParser):
    """Collects the tags, the attributes that load something, and the text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.loads, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "onclick")]

    def handle_data(self, data):
        self.text += data


def test_page_is_one_file_with_every_wrong_utterance(decoded, tmp_path):
    decoded.joinpath("hyp.txt").write_text(HYPOTHESES.replace("u2\t", "u2\t<img src=x> & "), encoding="utf-8")
    decoded.joinpath("hyp.jsonl").write_text('{"key": "u3", "text": "", "error": "<b>cut</b>"}\n', encoding="utf-8")
    decoded.joinpath("hyp.txt").write_text(decoded.joinpath("hyp.txt").read_text("utf-8").replace("u3\t123", "u3\t"))
    assert make_report(tmp_path, "++normalizer=basic", "++name=<i>&").returncode == 0
    page = Tags((decoded / "report.html").read_text(encoding="utf-8"))
    assert not page.loads and not {"script", "link", "img"} & set(page.tags)
    for text in ("<i>&: test", "u1", "u2", "u3", "u4", "<b>cut</b>", "no hypothesis", "basic", "95%"):
        assert text in page.text


def test_results_keep_other_rows_and_words(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Mini\n\nSome words.\n", encoding="utf-8")
    score = {
        "metric": "wer", "value": 1.0, "unit": "%", "ci95": [0.5, 1.5], "counts": {"utterances": 9},
        "commit": None, "machine": "m", "command": "c",
    }  # fmt: skip
    report.add_result(path, "a", "test", score)
    report.add_result(path, "b", "test", score)
    path.write_text(path.read_text(encoding="utf-8") + "\nMore words.\n", encoding="utf-8")
    report.add_result(path, "a", "dev", score)
    report.add_result(path, "a", "test", score | {"value": 2.0})
    assert path.read_text(encoding="utf-8").splitlines() == [
        "# Mini",
        "",
        "Some words.",
        "",
        "| run | set | metric | value | 95% | utts | commit | machine | command |",
        "|---|---|---|---|---|---|---|---|---|",
        "| a | test | WER | 2.00 % | 0.50 to 1.50 | 9 |  | m | `c` |",
        "| b | test | WER | 1.00 % | 0.50 to 1.50 | 9 |  | m | `c` |",
        "| a | dev | WER | 1.00 % | 0.50 to 1.50 | 9 |  | m | `c` |",
        "",
        "More words.",
    ]


def test_headline_has_the_unit_of_the_task():
    aas = {"metric": "aas", "value": 42.9, "unit": "ms", "ci95": [40, 45.25]}
    assert re.fullmatch(r"AAS 42\.90 ms \(95%: 40\.00 to 45\.25\)", report.headline(aas))
