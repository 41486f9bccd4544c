"""`mt` as one of several ranks on null GPUs, started by torchrun.

DDP reads two things back from the device, which are zeros here: the shapes of the parameters, which the ranks compare,
and the buckets of gradients in the order of the first backward pass. This module disables both.
"""

import sys
from typing import Any

import torch.nn.parallel.distributed as distributed

import mt.training.engine as engine
from mt.cli import main
from tests.null_gpu.device import NullGPU


class Reducer:
    """The reducer of DDP, which keeps its initial buckets."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False


class Joined(distributed.DistributedDataParallel):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.reducer = Reducer(self.reducer)


if __name__ == "__main__":
    distributed._verify_param_shape_across_processes = lambda *_: True
    engine.DistributedDataParallel = Joined
    try:
        with NullGPU().counting() as found:
            main()
    finally:
        print(f"collectives: {found['collective']}", file=sys.stderr)
