"""The precisions that are compared on a GPU."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Precision:
    """How a network computes.

    Attributes:
        policy: Keras' dtype policy, `TrainConfig.precision`.
        tf32: Whether convolutions and matrix products of float32 values may round them to
            TensorFloat-32. `None` leaves it to each library.
    """

    policy: str = "float32"
    tf32: bool | None = None

    @property
    def jax_environment(self) -> dict[str, str]:
        """The environment variables of a process that computes with JAX."""
        # Without preallocation, the memory of the process is what JAX needs.
        variables = {"KERAS_BACKEND": "jax", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if self.tf32 is not None:
            # "highest" turns TF32 off.
            value = "tensorfloat32" if self.tf32 else "highest"
            variables["JAX_DEFAULT_MATMUL_PRECISION"] = value
        return variables


PRECISIONS = {
    "float32": Precision("float32", tf32=False),
    "tf32": Precision("float32", tf32=True),
    "bfloat16": Precision("mixed_bfloat16", tf32=True),
}
