"""What the loop asks of that which it trains."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from worker.lora.dropout import DropoutPlace


class Trained(Protocol):
    """The weights that a training moves: an adapter's (worker.lora.inject.LoRA), or all of the U-Net's
    (worker.fine_tuning.weights.FullWeights).
    """

    @property
    def checkpoint_file(self) -> str:
        """Name of the file that has them in a checkpoint."""
        ...

    @property
    def dropout(self) -> DropoutPlace:
        """Told where the training is."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """All that have a gradient, in a fixed order."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The same as an optimizer takes them; `lr_scale` of a group, if it has one, is that of its learning rate."""
        ...

    def parameter_count(self) -> int:
        """How many numbers are trained."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """By name, sharing their memory."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy weights in, in place, and let the model compute with them."""
        ...

    def write_back(self) -> None:
        """Let the model compute with the weights as they are now: called whenever an optimizer has moved them."""
        ...
