"""Files of times: what is read is what stands there, what is damaged is refused, and what we write comes back."""

import pytest

from speechllm.errors import UserError
from speechllm.formats.times import ctm, srt, textgrid, timit
from speechllm.formats.times.word import Word
from speechllm.text.words import split

# As Praat 6 writes them, but for blanks at the ends of lines: quotes in a label, a label like a heading, points.
LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "TextTier"
        name = "events"
        xmin = 0
        xmax = 1.5
        points: size = 1
        points [1]:
            number = 0.7
            mark = "click"
    item [2]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.5
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.5
            text = "say ""hi"" 7"
        intervals [3]:
            xmin = 0.5
            xmax = 0.9
            text = "intervals [4]"
        intervals [4]:
            xmin = 0.9
            xmax = 1.5
            text = "你好"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1.5
<exists>
2
"TextTier"
"events"
0
1.5
1
0.7
"click"
"IntervalTier"
"Word"
0
1.5
4
0
2.5e-01
""
0.25
0.5
"say ""hi"" 7"
0.5
0.9
"intervals [4]"
0.9
1.5
"你好\""""
WORDS = [Word('say "hi" 7', 0.25, 0.5), Word("intervals [4]", 0.5, 0.9), Word("你好", 0.9, 1.5)]
SPOKEN = [Word("one", 0.1, 0.35, 0.5), Word("二", 0.35, 0.4, 1.0), Word("it's", 0.625, 1.0, 0.25)]


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "a.TextGrid")


def put(path, text, encoding="utf-8"):
    with open(path, "w", encoding=encoding, newline="") as file:
        file.write(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("text", [LONG, SHORT, LONG.replace("\n", " \r\n")], ids=["long", "short", "crlf"])
def test_textgrids_in_every_form(path, text, encoding):
    put(path, text, encoding)
    assert textgrid.read(path) == WORDS


def test_a_textgrid_that_breaks_off_loses_nothing_silently(path):
    for text in (LONG, SHORT):
        for at in range(text.index("0.25") if text is LONG else text.index('"Word"'), text.rindex("你好"), 7):
            put(path, text[:at])
            with pytest.raises(UserError, match="breaks off"):
                textgrid.read(path)


@pytest.mark.parametrize("text", ["", "hello", 'File type = "ooTextFile"\nObject class = "PitchTier"\n0 1'])
def test_what_is_no_textgrid(path, text):
    put(path, text)
    with pytest.raises(UserError, match="not a TextGrid"):
        textgrid.read(path)


def test_a_tier_is_chosen_by_its_name(path):
    put(path, LONG.replace('name = "words"', 'name = "Anna - words"'))
    with pytest.raises(UserError, match=r"0 interval tiers named 'words', there are 'events' .*'Anna - words'"):
        textgrid.read(path)
    assert textgrid.read(path, "anna - words") == WORDS
    put(path, LONG.replace("TextTier", "IntervalTier").replace("events", "word").replace("number = 0.7", "0 1.5"))
    with pytest.raises(UserError, match="2 interval tiers"):
        textgrid.read(path)


def test_a_written_textgrid_comes_back_without_gaps(path):
    textgrid.write(path, SPOKEN, 1.25)
    assert textgrid.read(path) == [word._replace(confidence=None) for word in SPOKEN]
    assert [word.text for word in textgrid.read(path, "confidence")] == ["0.5", "1", "0.25"]
    _, _, words = next(textgrid._tiers(path))
    bounds = [(word.start, word.end) for word in words]
    assert bounds == [(0, 0.1), (0.1, 0.35), (0.35, 0.4), (0.4, 0.625), (0.625, 1.0), (1.0, 1.25)]


def test_ctm_of_many_utterances(tmp_path):
    path = str(tmp_path / "words.ctm")
    put(path, ";; made by hand\na 1 0.10 0.20 one 0.9\na 1 0.30 0.1 SIL\n\na 1 0.41 0.5 two\nb A 0 0.5 三\n")
    places = ctm.places(path)
    assert list(places) == ["a", "b"]
    assert ctm.read(path, places["a"]) == [Word("one", 0.1, 0.3), Word("two", 0.41, 0.91)]
    assert ctm.read(path, places["b"]) == [Word("三", 0.0, 0.5)]
    with pytest.raises(UserError, match="2 utterances, one expected"):
        ctm.read(path)


@pytest.mark.parametrize(
    "line", ["a 1 0.1 one", "a 1 0.1 -0.2 one", "a 1 x 0.2 one", "a 1 0.1 nan one", "a 1 0.1 0.2 two words 0.5 lex x"]
)
def test_a_bad_line_of_a_ctm_is_named(tmp_path, line):
    path = str(tmp_path / "words.ctm")
    put(path, f"a 1 0.0 0.1 zero\n{line}\n")
    with pytest.raises(UserError, match=r"words\.ctm:2: `utterance channel start duration word"):
        ctm.read(path)


def test_utterances_of_a_ctm_stand_together_and_have_one_channel(tmp_path):
    path, faults = str(tmp_path / "words.ctm"), []
    put(path, "a 1 0 0.1 x\nb 1 0 0.1 y\na 1 0.1 0.1 z\nc 1 0 0.1 x\nc 2 0 0.1 y\n")
    places = ctm.places(path, lambda *fault: faults.append(fault))
    assert list(places) == ["b", "c"] and [fault[:2] for fault in faults] == [("a", f"{path}:3")]
    with pytest.raises(UserError, match=r":4: 2 channels"):
        ctm.read(path, places["c"])


def test_a_written_ctm_comes_back(tmp_path):
    path = str(tmp_path / "words.ctm")
    put(path, "".join(ctm.line("a", word) for word in SPOKEN))
    assert ctm.read(path) == [word._replace(confidence=None) for word in SPOKEN]
    assert ctm.line("a", SPOKEN[0]) == "a 1 0.100000 0.250000 one 0.5000\n"


def test_srt(tmp_path):
    path = str(tmp_path / "a.srt")
    put(path, "1\n00:00:00,100 --> 00:00:00,350\n<i>one</i>\n\n2\r\n01:00:00,350 --> 01:00:02,000\ntwo\nthree\n")
    assert srt.read(path) == [Word("one", 0.1, 0.35), Word("two three", 3600.35, 3602.0)]
    srt.write(path, SPOKEN)
    assert srt.read(path) == [word._replace(confidence=None) for word in SPOKEN]
    put(path, "1\n00:00:00 nonsense\n")
    with pytest.raises(UserError, match="not SRT"):
        srt.read(path)


def test_timit(tmp_path):
    path = str(tmp_path / "sa1.phn")
    put(path, "0 8000 h#\n8000 16000 sh\n16000 24000 ax-h\n24000 32000 pau\n")
    assert timit.read(path) == [Word("sh", 0.5, 1.0), Word("ax-h", 1.0, 1.5)]
    put(path, "0 8000 she\n8000 had\n")
    with pytest.raises(UserError, match=r"sa1\.phn:2: `start end label`"):
        timit.read(path)
    assert timit.sentence("0 54682 She had 2 suits.") == "She had 2 suits."


# By hand, from the processor's rule: Chinese characters one by one, else what stands between blanks.
SPLITS = {
    "English": ("Don't stop: twenty-two, 3.5!", ["Don't", "stop", "twentytwo", "35"]),
    "Chinese": ("今天，天气好。", ["今", "天", "天", "气", "好"]),
    "": ("打开 WiFi 和USB3吧", ["打", "开", "WiFi", "和", "USB3", "吧"]),
    "French": ("C'est l'été !", ["C'est", "l'été"]),
}


@pytest.mark.parametrize("language", SPLITS)
def test_words_are_split_as_the_processor_does(language):
    text, words = SPLITS[language]
    assert split(text, language) == words


@pytest.mark.parametrize(
    ("language", "code", "package", "text", "words"),
    [
        ("Japanese", "ja", "nagisa", "今日は良い天気です。", ["今日", "は", "良い", "天気", "です"]),
        ("Korean", "ko", "soynlp", "오늘은 날씨가 좋다.", ["오늘은", "날씨가", "좋다"]),
    ],
)
def test_japanese_and_korean_have_their_packages(language, code, package, text, words):
    try:
        __import__(package)
    except ImportError:
        for name in (language, code):
            with pytest.raises(UserError, match=rf"{package}.*\[align\]"):
                split(text, name)
    else:
        assert split(text, language) == split(text, code) == words


def test_the_recipes_ctm_is_written_as_before(tmp_path):
    from speechllm.formats.corpus import write_ctm

    write_ctm(tmp_path / "words.ctm", {"b": [("x", 0.1234567, 0.2)], "a": [("y", 0.0, 1.0)]})
    lines = (tmp_path / "words.ctm").read_text().splitlines()
    assert lines == ["a 1 0.000000 1.000000 y", "b 1 0.123457 0.076543 x"]
