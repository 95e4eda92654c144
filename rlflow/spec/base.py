"""The base of all specs."""

from collections.abc import Iterator
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator


class Spec(BaseModel):
    """A typed, frozen piece of a job spec. Unknown fields, infinity and NaN are errors.

    A docstring under a field is its description.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    def contradictions(self) -> Iterator[str]:
        """Fields that do not go together, one line each; all are reported at once."""
        return iter(())

    @model_validator(mode="after")
    def _without_contradictions(self) -> Self:
        if problems := list(self.contradictions()):
            raise ValueError("\n".join(problems))
        return self
