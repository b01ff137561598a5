"""A training step as one CUDA graph: nets this small spend nearly all their time on launching kernels otherwise."""

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[], Tensor]

_WARM_UPS = 5  # before the capture, as https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs asks for


def captured(step: Step, device: torch.device) -> Step:
    """Return a step that replays `step`, which must take no input and wait for nothing. On a CPU it is `step` itself.

    The warm-up trains too: five steps.
    """
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
