"""What a family of models offers. A family knows one architecture, and never what is being optimised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from speechllm.augment import Augment
    from speechllm.config import DecodeOptions
    from speechllm.phonemes import Phonemes
    from speechllm.sample import Prompt


class Family:
    """One architecture, opened on one checkpoint folder.

    Args:
        folder: where the checkpoint's config and tokenizer are.

    Attributes:
        name: its key in FAMILIES.
        formats: names of the layouts that it writes, the usual one first.
        rate: samples per second that it hears.
        special_tokens: those that a tiny model's tokenizer must have.
        added_tokens: ids of the tokens that the LLM was given for its data, such as phonemes: their rows are trained
            even where the LLM is not. There is then :func:`llm`.
    """

    name: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]
    rate: ClassVar[int] = 16000
    # of Qwen's tokenizer; <|object_ref_start|> is the place of audio in Fun-ASR-Nano
    special_tokens: ClassVar[tuple[str, ...]] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>")
    added_tokens: Sequence[int] = ()

    def __init__(self, folder: str):
        self.folder = folder

    @classmethod
    def recognises(cls, config: dict) -> bool:
        """Whether a checkpoint's config.json is of this family."""
        return config.get("model_type") == cls.name

    @classmethod
    def create(cls, sizes: dict, tokenizer: Any, folder: str, format: str) -> None:
        """Write a random model of the real architecture, for tests and the mini recipes.

        Args:
            sizes: what differs from the architecture's default config.
            format: one of ``formats``.
        """
        raise NotImplementedError

    def load(self) -> nn.Module:
        """The model with the folder's weights, in evaluation mode."""
        raise NotImplementedError

    def stamp(self) -> int:
        """When the checkpoint was made, in ns: a decoding is gone on from with the same model only."""
        raise NotImplementedError

    def parts(self, model: nn.Module) -> dict[str, tuple[nn.Module, ...]]:
        """The modules that freezing, LoRA and the table at start-up speak of, by name; together the whole model."""
        raise NotImplementedError

    def llm(self, model: nn.Module) -> nn.Module:
        """The causal LLM, with ``model``, ``lm_head`` and ``generate`` as transformers has them."""
        raise NotImplementedError

    def save(self, model: nn.Module, folder: str, format: str = "") -> None:
        """Write weights, config and tokenizer, so that ``type(self)(folder)`` opens them again.

        Args:
            format: one of ``formats``; empty: the layout that was opened.
        """
        raise NotImplementedError

    def fields(self, generating: bool) -> dict[str, Any]:
        """How each tensor of a row joins a batch; text is padded on the left when the model generates."""
        raise NotImplementedError


class Hidden(NamedTuple):
    """What a pass through the model leaves: B rows, L positions, T vectors of audio, D width of the LLM."""

    text: torch.Tensor
    """(B, L, D) last hidden states of the LLM over the whole sequence."""
    audio: torch.Tensor
    """(B, T, D) what the adaptor gives the LLM to hear."""
    lengths: torch.Tensor
    """(B,) how many of the T each row has."""


class Generates:
    """Capability: text from audio and a prompt.

    Attributes:
        tokenizer: transformers' tokenizer of the LLM.
        phonemes: those that the tokenizer was extended with.
        end: id of the mark that ends an answer.
    """

    tokenizer: Any
    phonemes: Phonemes
    end: int

    def encode(self, wave: np.ndarray, prompt: Prompt, answer: str | None, augment: Augment | None) -> dict:
        """One row; ``input_ids`` (L,) has its tokens, of text and of places for audio.

        With an answer, ``labels`` (L,) holds its tokens and the end mark, where they stand in ``input_ids``, and -100
        elsewhere.

        Args:
            wave: (N,) float32 at ``rate``.
            answer: the reference; None when the model is to generate.
            augment: what may change the features; None outside training.
        """
        raise NotImplementedError

    def audio_counts(self, model: nn.Module, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each row, (B,): the places for audio in its tokens, and the vectors of audio there are for them."""
        raise NotImplementedError

    def hidden(self, model: nn.Module, batch: dict) -> Hidden:
        """One pass over whole rows."""
        raise NotImplementedError

    def head(self, model: nn.Module) -> nn.Module:
        """The layer that turns (..., D) into (..., vocabulary), so that it runs at label positions only."""
        raise NotImplementedError

    def ctc_head(self, model: nn.Module) -> nn.Module:
        """The layer that turns ``Hidden.audio`` into (B, T, classes), class 0 the blank.

        A family that has one gives rows ``ctc_labels``, padded by -100.
        """
        raise NotImplementedError

    def generate(self, model: nn.Module, batch: dict, options: DecodeOptions) -> list[dict]:
        """One row per utterance.

        Returns:
            ``text``; ``truncated``, no end mark came within the limit; where generation is held to phonemes,
            ``confidences``, the posterior of each; with ``options.nbest``, the answers in ``nbest``, best first, each
            with its ``score``, the mean log posterior of its tokens; with a CTC head, what that reads in ``ctc_text``.
        """
        raise NotImplementedError


class Aligns:
    """Capability: when each word of a text is spoken. A word that is asked for has two slots, its start and its end.

    B rows, S slots of all rows, K classes.

    Attributes:
        classes: K.
        step: seconds of one class.
    """

    classes: int
    step: float

    def split(self, text: str, language: str) -> list[str]:
        """The words of a text, without punctuation. Raises UserError where that takes a package that is not there."""
        raise NotImplementedError

    def encode(
        self,
        wave: np.ndarray,
        words: list[str],
        spans: np.ndarray | None = None,
        marked: list[bool] | None = None,
        augment: Augment | None = None,
    ) -> dict:
        """One row; ``input_ids`` (L,) has its tokens, and ``places``, with spans, the times of its slots in classes.

        Args:
            wave: (N,) float32 at ``rate``.
            words: as :meth:`split` makes them.
            spans: (W, 2) start and end of every word, in seconds.
            marked: of each word, whether it gets slots; None: all do.
            augment: what may change the features; None outside training.

        Raises:
            UserError: the audio lasts longer than the classes reach.
        """
        raise NotImplementedError

    def slots(self, batch: dict) -> list[int]:
        """How many slots each row has."""
        raise NotImplementedError

    def words(self, batch: dict) -> list[list[str]]:
        """The words of each row, all of which have slots."""
        raise NotImplementedError

    def seconds(self, batch: dict) -> list[float]:
        """How long each row's audio is."""
        raise NotImplementedError

    def slot_logits(self, model: nn.Module, batch: dict) -> torch.Tensor:
        """(S, K) of the slots of all rows, in order."""
        raise NotImplementedError
