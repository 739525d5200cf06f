"""Qwen3-ForcedAligner."""

from speechllm.models.qwen3_forced_aligner.family import Qwen3ForcedAligner

__all__ = ["Qwen3ForcedAligner"]
