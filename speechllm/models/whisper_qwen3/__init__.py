"""Whisper's encoder, a linear projector and Qwen3."""

from speechllm.models.whisper_qwen3.family import WhisperQwen3

__all__ = ["WhisperQwen3"]
