"""A plain PyTorch training loop of Visage's network, timed.

Usage: python training.py [--size PX] [--batch-size N] [--steps N]

torchvision's ResNet34 body, concatenated pooling, the 512-16 head, one regression; AdamW and one-cycle; pictures are drawn
and held in memory before the clock starts. Prints one JSON object: images a second in PyTorch's default memory layout
and with channels-last tensors.
"""

import argparse
import json
import statistics
import sys
import time
from typing import List

import torch
import torchvision
from torch import nn

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


class Network(nn.Module):
    """The body and the head that Visage trains."""

    def __init__(self) -> None:
        super().__init__()
        body = torchvision.models.resnet34(weights=None)
        self.body = nn.Sequential(*list(body.children())[:-2])
        self.head = nn.Sequential(
            nn.BatchNorm1d(1024), nn.Dropout(0.5), nn.Linear(1024, 512), nn.ReLU(),
            nn.BatchNorm1d(512), nn.Dropout(0.5), nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images)
        pooled = torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1)
        return self.head(pooled).squeeze(1)


def pace(size: int, batch_size: int, n_steps: int, layout: torch.memory_format) -> float:
    """Images a second, the median over the steps after the first five."""
    torch.manual_seed(1)
    network = Network().to(memory_format=layout)
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-3, total_steps=n_steps + 1)
    loss_of = nn.SmoothL1Loss()
    pictures = torch.randint(0, 256, (4 * batch_size, 3, size, size), dtype=torch.uint8)
    ages = torch.randint(1, 90, (4 * batch_size,)).float()
    took: List[float] = []
    for _ in range(n_steps):
        started = time.perf_counter()
        picked = torch.randint(0, len(pictures), (batch_size,))
        images = ((pictures[picked].float() / 255 - MEAN) / STD).contiguous(memory_format=layout)
        if torch.rand(()) < 0.5:
            images = images.flip(3)
        loss = loss_of(network(images), ages[picked])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        loss.item()
        took.append(time.perf_counter() - started)
    return batch_size / statistics.median(took[5:])


def main() -> int:
    parser = argparse.ArgumentParser(description="Time a plain PyTorch loop.")
    parser.add_argument("--size", type=int, default=64, help="side of the input in pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25, help="steps in all, the first five are not counted")
    args = parser.parse_args()
    figures = {
        "images_per_second": pace(args.size, args.batch_size, args.steps, torch.contiguous_format),
        "images_per_second_channels_last": pace(args.size, args.batch_size, args.steps, torch.channels_last),
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
