"""What MiPKD trains beside the student: encoders into a latent space, the decoder out of it, 1x1 convolutions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

EncoderKind = Literal["conv", "mlp", "shared", "none"]


class LatentSpace(nn.Module):
    """One space for the features of student and teacher at one position: E_S, E_T and D of eq. 3.

    The paper says "convolutional" and "MLP" and no more. Here each of the three is two layers with a ReLU between:
    convolutions of 3x3, or of 1x1, which is an MLP at each position. An encoder widens in its first layer, the decoder
    narrows in its last.

    Args:
        student_channels: C_S.
        teacher_channels: C_T.
        latent_channels: C, channels of the latent space.
        encoder: 'conv' or 'mlp': E_S and E_T apart; 'shared': one convolutional encoder for both, which takes the
            student's features lifted to C_T by a 1x1 convolution where C_S is another; 'none': the teacher's features
            are the latent space, there is no decoder, and a 1x1 convolution lifts the student's to C_T where C_S is
            another. Then C must be C_T.
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, latent_channels: int, encoder: EncoderKind
    ) -> None:
        super().__init__()
        if encoder == "none":
            assert latent_channels == teacher_channels, "without encoders the teacher's features are the latent space"
            self.encode_teacher: nn.Module = nn.Identity()
            self.decode: nn.Module = nn.Identity()
        else:
            size = 1 if encoder == "mlp" else 3
            self.encode_teacher = _two_layers(teacher_channels, latent_channels, latent_channels, size)
            self.decode = _two_layers(latent_channels, latent_channels, teacher_channels, size)
        # None: the teacher's serves both. Held under one name only, it is once in the training state.
        self.encode_student: nn.Module | None = None
        self.lift: nn.Module = nn.Identity()
        if encoder in ("conv", "mlp"):
            self.encode_student = _two_layers(student_channels, latent_channels, latent_channels, size)
        else:
            self.lift = bridge(student_channels, teacher_channels)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Z_S and Z_T, both (B, C, H, W), of F_S (B, C_S, H, W) and F_T (B, C_T, H, W)."""
        encode_student = self.encode_student if self.encode_student is not None else self.encode_teacher
        return encode_student(self.lift(student)), self.encode_teacher(teacher)


def bridge(channels: int, wanted: int) -> nn.Module:
    """A 1x1 convolution from one width to another, or nothing where they are equal."""
    return nn.Identity() if channels == wanted else nn.Conv2d(channels, wanted, 1)


def _two_layers(inputs: int, hidden: int, outputs: int, size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, size, padding=size // 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, outputs, size, padding=size // 2),
    )
