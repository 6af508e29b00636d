"""Synchronized batch norm, including on CPU with gloo."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdschemes.errors import UserError


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


class GlooSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the samples of all processes, for CPU, where `torch.nn.SyncBatchNorm` does not run.

    Mean and biased variance are over all processes' samples (two differentiable all-reduces per call), the running
    variance is unbiased: the same as `nn.BatchNorm2d` on the whole batch in one process.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.dim() in (2, 3, 4, 5), input.shape

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = torch.full((1,), x.numel() / x.shape[1], dtype=x.dtype)
        total = _AllReduceSum.apply(torch.cat([x.sum(dims), count]))
        assert isinstance(total, Tensor)
        n = total[-1].detach()
        mean = total[:-1] / n
        centered = x - mean.view(shape)
        squares = _AllReduceSum.apply(centered.square().sum(dims))
        assert isinstance(squares, Tensor)
        variance = squares / n
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
                self.running_var.lerp_((variance * n / (n - 1).clamp(min=1)).to(self.running_var.dtype), rate)
        out = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch norm in `module` with a synchronized one (`nn.SyncBatchNorm` on CUDA).

    Parameters and buffers remain the same objects.

    Raises:
        UserError: on CPU, a batch norm is not one of torch's own (e.g. timm's fused ones).
    """
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        converted: nn.Module = convert_sync_batchnorm(module)
        return converted
    for name, child in module.named_children():
        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            assert isinstance(child, nn.modules.batchnorm._BatchNorm)
            new = GlooSyncBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            new.weight, new.bias = child.weight, child.bias
            for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(new, buffer, getattr(child, buffer))
            setattr(module, name, new.train(child.training))
        elif isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, GlooSyncBatchNorm):
            raise UserError(
                f"a {type(child).__name__} cannot be synchronized on CPU: choose another model, one process, "
                "or train.sync_bn=false (each process then normalizes over its own samples)"
            )
        else:
            synchronize_batch_norm(child, device)
    return module
