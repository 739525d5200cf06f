"""The prompts, against those of the installed funasr (its model's ``get_prompt``)."""

import itertools

import pytest

from speechllm.formats.prompts import LANGUAGES, asr_prompt, with_hotwords, without_hotwords
from speechllm.sample import Prompt


@pytest.fixture(scope="module")
def get_prompt():
    """Fun-ASR-Nano's own; it uses nothing of the model."""
    model = pytest.importorskip("funasr.models.fun_asr_nano.model")
    return lambda *words: model.FunASRNano.get_prompt(None, *words)


HOTWORDS = [[], ["开放时间"], ["Fun ASR", "通义 实验室", "a]b"]]


def test_prompts_are_those_of_the_native_runtime(get_prompt):
    for language, itn, words in itertools.product([None, *LANGUAGES, "韩文"], [True, False], HOTWORDS):
        prompt = with_hotwords(asr_prompt(language, itn), words)
        assert prompt.before == get_prompt(words, LANGUAGES.get(language, language), itn)
        assert (prompt.system, prompt.after) == ("You are a helpful assistant.", "")


@pytest.mark.parametrize("words", HOTWORDS)
def test_the_words_of_an_utterance_can_be_taken_off_again(words):
    for prompt in (asr_prompt("en", itn=False), Prompt("be brief", "write it down: [a]\n", "thanks")):
        full = with_hotwords(prompt, words)
        assert without_hotwords(full) == prompt
        assert with_hotwords(full, ["other"]) == with_hotwords(prompt, ["other"])
