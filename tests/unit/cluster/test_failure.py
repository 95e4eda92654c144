"""What is told of actors that fail."""

from ray.exceptions import ActorDiedError, RayTaskError

from rlflow.algorithms.pair_losses import PluginLossError
from rlflow.cluster.failure import in_one_line, user_error
from rlflow.errors import DataError, EngineDied, RolloutError, SpecError


def raised(cause: Exception) -> Exception:
    """As Ray raises what an actor's method has raised."""
    trace = f"Traceback (most recent call last):\n  File ...\n{type(cause).__name__}: {cause}\n"
    return RayTaskError("method", trace, cause).as_instanceof_cause()


def test_a_mistake_of_the_user_comes_without_the_traceback():
    error = user_error(raised(DataError("row 3: is empty")))
    assert type(error) is DataError and str(error) == "row 3: is empty"


def test_a_loss_of_the_wrong_shape_names_field_and_function():
    error = user_error(raised(PluginLossError("mine:loss must return one loss a pair, a tensor of shape (2,)")))
    assert type(error) is SpecError
    assert str(error) == "dpo.losses: mine:loss must return one loss a pair, a tensor of shape (2,)"


def test_other_errors_are_none_of_the_users():
    assert user_error(raised(TypeError("unsupported operand"))) is None


def test_a_death_is_told_in_one_line():
    assert in_one_line(raised(EngineDied("the engine died: out of memory"))) == "EngineDied: the engine died: out of memory"
    assert in_one_line(ActorDiedError()).startswith("The actor died unexpectedly")
    assert in_one_line(RolloutError("a line\nand another")) == "a line and another"
