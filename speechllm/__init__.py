"""Fine-tune and evaluate speech models that are an audio encoder, an adaptor and an LLM."""

__version__ = "0.1.0"
