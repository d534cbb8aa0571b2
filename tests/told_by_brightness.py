"""A network that tells dark from bright, as nobody has to train it: for tests of what is done around a network."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from tada.models.weights import ModelCard
from tada.recognition.recognizer import Recognizer
from tada.video.sampling import ClipSpec


class Brightness(nn.Module):
    """Knows bright clips from dark ones: logits [-m, m] of the mean m."""

    def forward(self, clips: Tensor) -> Tensor:
        mean = clips.mean((1, 2, 3, 4))
        return torch.stack([-mean, mean], dim=1)


def recognizer(**clip: object) -> Recognizer:
    spec = replace(ClipSpec(num_frames=4, interval=5, fps=10.0, short_side=16, crop=16), **clip)
    card = ModelCard(model="tada2d_tiny", labels=("dark", "bright"), clip=spec, trained_from="thought")
    return Recognizer(Brightness(), card, device="cpu")


def segments() -> Recognizer:
    return recognizer(sampling="segment")
