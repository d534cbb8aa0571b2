"""Base of both tasks' Lightning modules: batches on the device, fused optimizers, gradient clipping, finite losses."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from tada.system.accelerator import copy_to_device, fuses_optimizer
from tada.training.loss_check import LossCheck, LossOfBatch


class TrainedModule(L.LightningModule):
    """A Lightning module whose training steps do not make the host wait for a GPU."""

    def __init__(self, *, is_sharded: bool = False) -> None:
        """Set up.

        Args:
            is_sharded: whether the weights are divided among the devices (FSDP). PyTorch has no fused SGD for these.
        """
        super().__init__()
        self.is_sharded = is_sharded
        self._losses = LossCheck(at_once=is_sharded)

    @property
    def fuses(self) -> bool:
        """Whether the optimizer should be fused. Call it when the weights are on their device."""
        return not self.is_sharded and fuses_optimizer(self.device)

    def check_loss(self, loss: Tensor, batch_idx: int, paths: list[str]) -> None:
        """Note the loss of a batch; raise NonFiniteLossError as ``LossCheck.note``."""
        self._losses.note(loss, LossOfBatch(self.current_epoch, batch_idx, paths), self)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return copy_to_device(batch, device)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._losses.skip_bad_step(optimizer)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # As Lightning does, which however refuses to clip for fused optimizers in bf16: they might scale gradients,
        # but only if there is a scaler, and bf16 has none.
        if gradient_clip_val:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._losses.settle(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A saved state would bring the choice of the device that it was saved on.
        fuses = not self.is_sharded and fuses_optimizer(self.trainer.strategy.root_device)
        for state in checkpoint.get("optimizer_states", []):
            for group in state["param_groups"]:
                group["fused"] = fuses or None

    def on_train_epoch_end(self) -> None:
        self._losses.settle(self)
