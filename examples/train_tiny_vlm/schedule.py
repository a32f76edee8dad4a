"""What every training stage does in the same way: updates, learning rates, a record of the losses."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch


class Stage:
    """Counts a stage's steps, sets its learning rate and keeps its record.

    The rate rises linearly for `warmup` steps and falls along a cosine to `floor` of its peak. Lengths are in
    steps, never in seconds, so that the speed of the machine changes nothing.

    Args:
        name: for the record.
        parameters: what is trained.
        steps: how many steps there will be.
        rate: the peak learning rate.
        warmup: steps until the peak.
        floor: share of the peak at the end.
        decay: weight decay.
        betas: AdamW's.
    """

    def __init__(
        self,
        name: str,
        parameters: Iterable[torch.nn.Parameter],
        steps: int,
        rate: float,
        *,
        warmup: int = 50,
        floor: float = 0.05,
        decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        self.parameters = list(parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=betas, weight_decay=decay)
        self.name, self.steps, self.rate, self.warmup, self.floor = name, steps, rate, warmup, floor
        self.done = 0
        self.started = time.monotonic()
        self.recent: list[dict[str, float]] = []
        self.history: list[dict[str, float]] = []

    def step(self, loss: torch.Tensor, **measured: float) -> None:
        """Backward, clipped update, and a line of the record every tenth of the stage."""
        fall = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * self.done / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * fall * min(1.0, (self.done + 1) / self.warmup)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.done += 1
        self.recent.append({"loss": loss.item(), **measured})
        if self.done % max(1, self.steps // 10) == 0 or self.done == self.steps:
            mean = {key: round(float(np.mean([r[key] for r in self.recent])), 4) for key in self.recent[0]}
            self.history.append({"step": self.done, **mean})
            self.recent.clear()
            print(f"{self.name} {self.done}/{self.steps} {self.seconds:.0f}s {mean}", flush=True)

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return time.monotonic() - self.started

    def record(self) -> dict[str, Any]:
        """For `run.json`."""
        return {
            "stage": self.name,
            "steps": self.done,
            "seconds": round(self.seconds),
            "history": self.history,
        }
