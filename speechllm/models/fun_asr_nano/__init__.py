"""Fun-ASR-Nano, in FunASR's layout and in transformers'."""

from speechllm.models.fun_asr_nano.family import FunAsrNano
from speechllm.models.fun_asr_nano.features import fbank, stack_frames

__all__ = ["FunAsrNano", "fbank", "stack_frames"]
