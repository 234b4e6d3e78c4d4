"""The words of contracts that the command line needs before anything is read: layers and modes of compatibility."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Literal, get_args

Layer = Literal["extraction", "raw", "gold", "activation"]
LAYERS: tuple[Layer, ...] = get_args(Layer)


class Mode(enum.StrEnum):
    """What a new version must be to those before it; the transitive ones speak of all of them, not of the last.

    `compatibility` decides what each means.
    """

    NONE = "none"
    BACKWARD = "backward"
    FORWARD = "forward"
    FULL = "full"
    BACKWARD_TRANSITIVE = "backward_transitive"
    FORWARD_TRANSITIVE = "forward_transitive"
    FULL_TRANSITIVE = "full_transitive"

    @property
    def transitive(self) -> bool:
        return self.value.endswith("_transitive")

    @property
    def backward(self) -> bool:
        return self.value.startswith(("backward", "full"))

    @property
    def forward(self) -> bool:
        return self.value.startswith(("forward", "full"))


DEFAULT_MODES: Mapping[Layer, Mode] = {
    # The platform reads what landed under older versions: raw data is never written again.
    "extraction": Mode.BACKWARD,
    "raw": Mode.BACKWARD,
    # Tables are written anew under the new version: what counts is who reads them by the old one.
    "gold": Mode.FORWARD,
    "activation": Mode.FORWARD,
}
"""Of contracts that declare no mode of their own (custom property `compatibility`)."""
