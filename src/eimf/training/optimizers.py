"""Optimisers: one that torch lacks, and the choice by name."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer


class RowWiseAdagrad(Optimizer):
    """Adagrad with one state number for each row of a table, for sparse gradients of large embeddings.

    Only rows that a batch touches are read or written, and the state takes 1/D of the table's memory (as in
    DLRM and TorchRec; the row state accumulates the mean of the row's squared gradients). Dense gradients are updated
    by Adam.

    Args:
        params: parameters, or groups of them with learning rates of their own.
        lr: learning rate.
        eps: added to the root of the state.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 0.05, eps: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    self._step_rows(param, group)
                else:
                    self._step_dense(param, group)
        return loss

    def _step_rows(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if not state:
            state["sum"] = torch.zeros(len(param), device=param.device)
        assert param.grad is not None
        grad = param.grad.coalesce()
        rows, values = grad.indices()[0], grad.values()
        state["sum"].index_add_(0, rows, values.square().mean(dim=1).float())
        scale = group["lr"] / (state["sum"][rows].sqrt() + group["eps"])
        param.index_add_(0, rows, (-scale[:, None] * values).to(param.dtype))

    def _step_dense(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(param), torch.zeros_like(param)
        state["step"] += 1
        step, grad = state["step"].item(), param.grad
        assert grad is not None
        state["mean"].lerp_(grad, 0.1)
        state["square"].lerp_(grad.square(), 0.001)
        size = group["lr"] / (1 - 0.9**step)
        param.addcdiv_(state["mean"], (state["square"] / (1 - 0.999**step)).sqrt_().add_(group["eps"]), value=-size)


def build_optimizer(
    model: nn.Module,
    name: Literal["adam", "adamw", "rowwise"],
    *,
    lr: float,
    item_lr: float,
    weight_decay: float,
    fused: bool,
) -> Optimizer:
    """The optimiser of a name over a model's trainable parameters.

    Args:
        item_lr: under `rowwise`, learning rate of the embeddings with sparse gradients.
        fused: one kernel for the whole step.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    if name == "rowwise":
        tables = [part.weight for part in model.modules() if isinstance(part, nn.Embedding) and part.sparse]
        rest = [param for param in params if not any(param is table for table in tables)]
        return RowWiseAdagrad([{"params": tables, "lr": item_lr}, {"params": rest, "lr": lr}])
    kind = {"adam": Adam, "adamw": AdamW}[name]
    return kind(params, lr=lr, weight_decay=weight_decay, fused=fused)
