"""What a task offers. A task knows one objective, and never a model's name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from speechllm.augment import Augment
    from speechllm.config import DecodeOptions, RunConfig
    from speechllm.sample import Sample


class Task:
    """One objective.

    Args:
        config: the run, for what weighs the terms of the loss; what only predicts needs none.

    Attributes:
        name: its key in TASKS.
        needs: the capability of a family that it works on.
        higher_is_better: whether more of the score's ``value``, which chooses the best checkpoint, is better.
        in_pieces: whether long audio can be predicted piece by piece; then there is ``join``.
    """

    name: ClassVar[str]
    needs: ClassVar[type]
    higher_is_better: ClassVar[bool]
    in_pieces: ClassVar[bool] = False

    def __init__(self, config: RunConfig):
        self.config = config

    def example(self, family: Any, sample: Sample, wave: np.ndarray, augment: Augment | None) -> dict:
        """The tensors of one row to train on; ``wave`` is (N,) float32 at the family's rate."""
        raise NotImplementedError

    def query(self, family: Any, sample: Sample, wave: np.ndarray) -> dict:
        """The tensors of one row to predict from."""
        raise NotImplementedError

    def silence(self, batch: dict) -> None:
        """Take the loss from a batch that only fills an empty share."""
        raise NotImplementedError

    def counts(self, batch: dict) -> dict[str, torch.Tensor]:
        """The denominators of the loss in this batch, one per term, known before the forward."""
        raise NotImplementedError

    def loss(self, family: Any, model: nn.Module, batch: dict, totals: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum over this batch's rows, each term divided by its count over the whole step and all ranks."""
        raise NotImplementedError

    def predict(self, family: Any, model: nn.Module, batch: dict, options: DecodeOptions) -> list[dict]:
        """One row per utterance of the batch."""
        raise NotImplementedError

    def join(self, rows: list[dict]) -> dict:
        """One row from those of the pieces of a long utterance, in order; there may be none."""
        raise NotImplementedError

    def reference(self, sample: Sample) -> Any:
        """What the prediction of a row is compared with. Raises UserError where the row does not tell."""
        raise NotImplementedError

    def score(self, references: dict[str, Any], rows: list[dict], config: RunConfig) -> dict:
        """The numbers of score.json that are the task's own: ``metric``, ``value``, counts.

        Args:
            references: by utterance, what :meth:`reference` gave.
        """
        raise NotImplementedError
