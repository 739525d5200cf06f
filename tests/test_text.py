"""The normalisers of speechllm/text and tools/whisper_mix_normalize.py."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechllm.errors import UserError
from speechllm.text import open_normalizer

TOOL = Path(__file__).parents[1] / "tools" / "whisper_mix_normalize.py"


def mixed(text: str, like: str | None = None, name: str = "mixed") -> str:
    return open_normalizer(name).rows({"u": text}, like=None if like is None else {"u": like})["u"]


# Asserted by OpenAI's own tests of the normaliser (openai/whisper, tests/test_normalizer.py), and its paper's list.
WHISPER = {
    "Let's": "let us",
    "he's like": "he is like",
    "she's been like": "she has been like",
    "10km": "10 km",
    "RC232": "rc 232",
    "Mr. Park visited Assoc. Prof. Kim Jr.": "mister park visited associate professor kim junior",
    "two point five": "2.5",
    "one oh one": "101",
    "ten thousand dollars": "$10000",
    "one hundred and twenty three": "123",
    "mmm [noise] the colour, um, isn't grey": "the color is not gray",
}


@pytest.mark.parametrize(("text", "expected"), WHISPER.items())
def test_english_is_as_whisper_publishes_it(text, expected):
    assert mixed(text) == expected


# Read aloud by hand.
CHINESE = {
    "今天是2024年5月1日，温度是25.5℃。": "今天是二零二四年五月一日温度是二十五点五摄氏度",
    "涨了5%": "涨了百分之五",
    "一共1,234,567元": "一共一百二十三万四千五百六十七元",
    "下午3:20开会": "下午三点二十分开会",
    "第2名": "第二名",
    "打110报警": "打一一零报警",
    "二〇二四年": "二零二四年",
    "軟體裡的頭髮": "软体里的头发",
    "吃了2/3": "吃了三分之二",
    "下了10 mm的雨": "下了十毫米的雨",
}


@pytest.mark.parametrize(("text", "expected"), CHINESE.items())
def test_chinese_is_as_it_is_spoken_and_simplified(text, expected):
    assert mixed(text) == expected


# By hand.
MIXED = {
    "打开WiFi到5G模式": "打开 wifi 到五 g 模式",
    "我坐First Class去": "我坐 1st class 去",
    "COVID-19病毒": "covid 十九病毒",
    "我有five个apple": "我有五个 apple",
    "<noise>don’t担心，um，OK？": "do not 担心 ok",
    "ＡＢＣ公司有５０％的份额": "abc 公司有百分之五十的份额",
    "AI（人工智能）": "ai 人工智能",
    "café won't open": "café will not open",
    "Привет, мир! It's ten": "привет мир it is 10",
    "안녕하세요, 123": "안녕하세요 123",
    "今日は5時です。": "今日は5時です",
    "": "",
}


@pytest.mark.parametrize(("text", "expected"), MIXED.items())
def test_each_language_goes_to_its_normaliser(text, expected):
    assert mixed(text) == expected


@pytest.mark.parametrize(
    "forms",
    [
        ("打开WiFi到5G模式", "打開 wifi 到 5 g 模式。", "打开 WIFI 到５Ｇ模式", "打开wifi到五G模式"),
        ("是2024年5月1日，25.5℃。", "是 2024 年 5 月 1 日 25.5 °C", "是二零二四年五月一日，二十五点五摄氏度"),
        ("我的号码是13812345678", "我的号码是幺三八幺二三四五六七八", "我的号码是一三八一二三四五六七八"),
        ("涨了百分之五", "涨了5%", "涨了 5 %"),
        ("有一百二十三个", "有123个"),
        ("二月二日去了两次，得了第二名", "2月2日去了2次，得了第2名"),
        ("well", "Well...", "well …"),
        ("I can't pay twenty dollars.", "i can’t pay $20", "I can not pay 20 dollars"),
    ],
)  # fmt: skip
def test_texts_that_differ_only_in_form_come_out_the_same(forms):
    assert len({mixed(text) for text in forms}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("turn on the light", "turn off the light"), ("五个人", "六个人"), ("15个", "50个"), ("软件", "软体")],
)
def test_texts_that_differ_in_words_stay_different(one, other):
    assert mixed(one) != mixed(other)


def test_numbers_alone_follow_the_language_of_their_reference():
    for reference, hypothesis in [("一百二十三", "123"), ("123", "一百二十三"), ("百分之五", "5%")]:
        references = {"a": reference, "b": "你好"}
        expected = mixed(reference, like="你好")
        assert open_normalizer("mixed").rows(references)["a"] == expected
        assert open_normalizer("mixed").rows({"a": hypothesis}, like=references)["a"] == expected
    assert mixed("123", like="one hundred twenty three") == mixed("one hundred twenty three") == "123"


SAMPLES = [*WHISPER, *CHINESE, *MIXED]


@pytest.mark.parametrize("name", ["mixed", "basic"])
def test_normalising_again_changes_nothing(name):
    once = [mixed(text, name=name) for text in SAMPLES]
    assert [mixed(text, name=name) for text in once] == once


def test_where_whispers_english_is_not_idempotent():
    """Its own habit: a sign or leading zeros that it writes itself are lost when it reads them."""
    assert (mixed("minus five"), mixed("-5")) == ("-5", "5")
    assert (mixed("double oh seven"), mixed("007")) == ("007", "7")


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters() | st.sampled_from("0159年月点%.-/: 一百万你好あaB'\"\\{}[]"), max_size=20))
def test_any_text_gives_one_stripped_line(text):
    out = mixed(text)
    assert out == out.strip() and len(out.splitlines()) <= 1


def test_kana_reads_japanese_aloud():
    pytest.importorskip("pyopenjtalk")
    expected = "キョーワゴジニカイギガアリマス"  # as broadcasters pronounce it: long vowels, particle wa
    for text in ("今日は5時に会議があります。", "きょうは五時にかいぎがあります", expected):
        assert mixed(text, name="kana") == expected
    assert mixed("It's five", name="kana") == "it is 5"


def test_kana_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyopenjtalk", None)
    open_normalizer.cache_clear()
    with pytest.raises(UserError, match="pip install pyopenjtalk-plus"):
        open_normalizer("kana")


def test_basic_leaves_numbers_as_they_are_written():
    assert mixed("One, TWO three! 五个5%", name="basic") == "one two three 五个5"


def test_a_normaliser_names_itself_and_its_libraries():
    assert open_normalizer("mixed") is open_normalizer("mixed")
    assert "whisper-normalizer 0." in open_normalizer("mixed").version and "wetext " in open_normalizer("mixed").version
    with pytest.raises(UserError, match="mixed, kana, basic"):
        open_normalizer("whisper")


def run(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, TOOL, *words], cwd=folder, capture_output=True, text=True, encoding="utf-8")


def test_tool_takes_plain_words_and_keeps_every_row_in_order(tmp_path):
    (tmp_path / "in").write_text("b\tTwenty-Five\na 你 好 5 个\n\nc\nd\t5%\n", encoding="utf-8")
    done = run(tmp_path, "in", "out")
    assert done.returncode == 0 and "mixed 1 (whisper-normalizer" in done.stderr
    assert (tmp_path / "out").read_text(encoding="utf-8") == "b\t25\na\t你好五个\nc\t\nd\t百分之五\n"
    assert run(tmp_path, "in", "out", "basic").returncode == 0
    assert (tmp_path / "out").read_text(encoding="utf-8").startswith("b\ttwenty five\n")


def test_tool_writes_hypotheses_as_their_references(tmp_path):
    (tmp_path / "ref").write_text("a 一百二十三\nb one two\n", encoding="utf-8")
    (tmp_path / "hyp").write_text("a 123\nb 12\n", encoding="utf-8")
    assert run(tmp_path, "hyp", "out", "++like=ref").returncode == 0
    assert (tmp_path / "out").read_text(encoding="utf-8") == "a\t一百二十三\nb\t12\n"


@pytest.mark.parametrize(
    ("content", "words", "code", "message"),
    [
        ("a x\nb\na y\n", (), 1, "in:3: utterance a stands on line 1"),
        ("\n", (), 1, "in: no row in the file"),
        (None, (), 1, "in: no such file"),
        (b"a \xff\n", (), 1, "in: not UTF-8"),
        ("a x\n", ("kanna",), 2, "kanna"),
        ("a x\n", ("kana", "more"), 2, "more"),
    ],
)
def test_tool_refuses_bad_input_in_one_line_and_writes_nothing(tmp_path, content, words, code, message):
    if content is not None:
        (tmp_path / "in").write_bytes(content if isinstance(content, bytes) else content.encode())
    done = run(tmp_path, "in", "out", *words)
    assert done.returncode == code and message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
