"""Communication between processes: differentiable gather, sums, broadcasts, work on the main process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from kdschemes.errors import ErrorOnMain, UserError

T = TypeVar("T")


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, 0 for the main process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def share(total: int, parts: int, part: int) -> tuple[int, int]:
    """Return the start and end of part `part` of `total` items: contiguous parts whose sizes differ by at most one."""
    size, extra = divmod(total, parts)
    start = part * size + min(part, extra)
    return start, start + size + (part < extra)


class _Gather(torch.autograd.Function):
    """Concatenate the rows of all ranks; in backward, each rank gets the gradient of its rows, summed over ranks."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor, total: int) -> Tensor:
        world, me = world_size(), rank()
        sizes = [end - start for start, end in (share(total, world, r) for r in range(world))]
        assert len(local) == sizes[me], f"rank {me} holds {len(local)} rows of {total}, not {sizes[me]}"
        padded = local.new_zeros(max(sizes), *local.shape[1:])
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        ctx.bounds = share(total, world, me)  # type: ignore[attr-defined]
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        start, end = ctx.bounds  # type: ignore[attr-defined]
        return gradient[start:end], None


def gather(local: Tensor, total: int | None) -> Tensor:
    """Return the `total` rows of all processes, in rank order, given this process's `[n, ...]`.

    Every process must compute the same loss on the result. The backward pass sums the gradients of all processes, so
    that DDP's mean over processes yields the gradient of that loss, as on a single process.
    """
    if world_size() == 1:
        return local
    assert total is not None, "a batch of several processes needs its global size"
    gathered = _Gather.apply(local.contiguous(), total)
    assert isinstance(gathered, Tensor)
    return gathered


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of a tensor over processes, in place and without gradient."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def gather_rows(value: Tensor) -> Tensor:
    """Return the values of a tensor on all processes, stacked, without gradient."""
    if world_size() == 1:
        return value[None].clone()
    rows = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(rows, value)
    return torch.stack(rows)


def rows_of_all(own: Tensor) -> Tensor:
    """Return the concatenated rows of all processes, whose number may differ, without gradient."""
    if world_size() == 1:
        return own
    counts = gather_rows(torch.tensor([len(own)], device=own.device)).flatten().tolist()
    padded = torch.nn.functional.pad(own, (0, 0) * (own.dim() - 1) + (0, max(counts) - len(own)))
    return torch.cat([part[:count] for part, count in zip(gather_rows(padded), counts, strict=True)])


def any_process(flag: bool, device: torch.device, group: dist.ProcessGroup | None = None) -> bool:
    """Return whether `flag` is set on any process; the result is the same on all."""
    if world_size() == 1:
        return flag
    value = torch.tensor([float(flag)], device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX, group=group)
    return bool(value.item())


def broadcast_from_main(value: T) -> T:
    """Return rank 0's `value` on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main_process(work: Callable[[], T]) -> T:
    """Run `work` on the main process only and return its value on all; if it fails or exits there, all do."""
    answer: tuple[T | None, str | None, Any] = (None, None, None)
    if rank() == 0:
        try:
            answer = (work(), None, None)
        except UserError as error:
            answer = (None, str(error), None)
        except SystemExit as exit:
            answer = (None, None, exit.code)
    value, failure, exit_code = broadcast_from_main(answer)
    if failure is not None:
        raise UserError(failure) if rank() == 0 else ErrorOnMain(failure)
    if exit_code is not None:
        raise SystemExit(exit_code)
    return value  # type: ignore[return-value]


def main_process_first(work: Callable[[], T]) -> T:
    """Run `work` on the main process, then on the others; if it fails on the main process, all fail.

    Thus a download happens once, and an error is reported once.
    """
    mine: list[T] = []
    on_main_process(lambda: mine.append(work()))
    return mine[0] if rank() == 0 else work()


@contextlib.contextmanager
def enter_on_main(manager: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """Enter a context on the main process only; if entering fails there, all fail."""
    with contextlib.ExitStack() as stack:
        on_main_process(lambda: stack.enter_context(manager) and None)
        yield
