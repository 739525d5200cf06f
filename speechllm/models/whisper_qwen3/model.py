"""The composite model: transformers' Whisper encoder, a linear projector, transformers' Qwen3.

B rows, L mel frames of 10 ms, T encoder frames of 20 ms, E width of the encoder, D width of the LLM.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, WhisperConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder


class WhisperQwen3Config(PreTrainedConfig):
    """
    Args:
        audio_config: of Whisper; a WhisperConfig, or what differs from its defaults.
        text_config: of the LLM; a Qwen3Config, or what differs from its defaults.
        encoder_projector_ds_rate: encoder frames that the projector stacks into one vector.
        max_audio_seconds: longest audio that the encoder is given; at most its own 30 s.
        pad_audio: run the encoder on 30 s, silence behind the audio, as Whisper was trained, not on the real length.
        audio_token_id: id of the token in whose place the audio is heard.
        ctc_classes: phonemes of the CTC head on the projector, and the blank; 0: there is no such head.
    """

    model_type = "whisper_qwen3"
    sub_configs_defaults = {  # noqa: RUF012
        "audio_config": SubConfigSpec(config_class=WhisperConfig),
        "text_config": SubConfigSpec(config_class=Qwen3Config),
    }

    audio_config: dict | WhisperConfig | None = None
    text_config: dict | Qwen3Config | None = None
    encoder_projector_ds_rate: int = 1
    max_audio_seconds: float = 30.0
    pad_audio: bool = False
    audio_token_id: int = 0
    ctc_classes: int = 0


class Encoder(WhisperEncoder):
    """Whisper's encoder on audio as long as it is: the first positions of its table, padding masked."""

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """
        Args:
            features: (B, L, mel), zero behind each row's end.
            mask: (B, L), 1 where there is audio.

        Returns:
            (B, T, E), T = ceil(L / 2).
        """
        longest = mask.shape[1]
        # A frame of zeros behind the longest row, as behind the others: each row's last frames hear the same silence.
        mel = F.pad(features, (0, 0, 0, 1)).transpose(1, 2)
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)[:, : (longest + 1) // 2]
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        hidden = F.dropout(hidden, p=self.dropout, training=self.training)
        attention = create_bidirectional_mask(self.config, hidden, mask[:, ::2])
        for layer in self.layers:
            if not (self.training and self.layerdrop and torch.rand([]) < self.layerdrop):
                hidden = layer(hidden, attention)
        return self.layer_norm(hidden)

    def padded(self, features: torch.Tensor) -> torch.Tensor:
        """Whisper's own pass over 30 s, without masks: (B, 3000, mel) -> (B, 1500, E)."""
        return super().forward(features.transpose(1, 2)).last_hidden_state


class Projector(nn.Module):
    """Stacks ``rate`` frames, the last stack filled by zeros, and maps them to the LLM's width by one linear layer."""

    def __init__(self, width: int, rate: int, out: int):
        super().__init__()
        self.rate, self.linear = rate, nn.Linear(width * rate, out)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, E) -> (B, ceil(T / rate), D)."""
        frames = F.pad(frames, (0, 0, 0, -frames.shape[1] % self.rate))
        return self.linear(frames.unflatten(1, (-1, self.rate)).flatten(2))


class WhisperQwen3Model(PreTrainedModel):
    """The parts; how they work together is the family's."""

    config: WhisperQwen3Config
    config_class = WhisperQwen3Config
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: WhisperQwen3Config):
        super().__init__(config)
        width, encoder = config.text_config.hidden_size, config.audio_config
        self.audio_tower = Encoder(encoder)
        self.projector = Projector(encoder.d_model, config.encoder_projector_ds_rate, width)
        self.language_model = Qwen3ForCausalLM(config.text_config)
        self.ctc_head = nn.Linear(width, config.ctc_classes) if config.ctc_classes else None
        self.post_init()

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Audio as the LLM hears it.

        Args:
            features: (B, L, mel), or (B, 3000, mel) where the config pads.
            mask: (B, L), 1 where there is audio.

        Returns:
            (B, T', D) and each row's length (B,), T' = ceil(T / encoder_projector_ds_rate).
        """
        frames = (mask.sum(1) + 1) // 2
        if self.config.pad_audio:
            encoded = self.audio_tower.padded(features)[:, : int(frames.max())]
        else:
            encoded = self.audio_tower(features, mask)
        known = torch.arange(encoded.shape[1], device=encoded.device) < frames[:, None]
        rate = self.config.encoder_projector_ds_rate
        return self.projector(encoded * known[..., None]), (frames + rate - 1) // rate
