"""The base of all specs."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A typed, frozen piece of a job spec. Unknown fields, infinity and NaN are errors.

    A docstring under a field is its description.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )
