"""Parts of assistant turns that count more or less in the loss, found by regular expressions."""

import re
from functools import cache

from rlflow.spec.data import DataSpec, LossWeightSpec

WeightedPattern = tuple[re.Pattern[str], float]
"""A regular expression, and the factor on the weight of what it finds."""

_EMPTY_THINK = (r"^<think>\s*</think>\s*", 0.0)


def weighted_patterns(spec: DataSpec) -> list[WeightedPattern]:
    """The patterns of `data.loss_weights`, packaged ones by their name, and that of `data.ignore_empty_think`."""
    pairs = [_EMPTY_THINK] if spec.ignore_empty_think else []
    for item in spec.loss_weights:
        pairs += [(item.pattern, item.weight)] if isinstance(item, LossWeightSpec) else _PACKAGED[item]
    return [(_compile(pattern), weight) for pattern, weight in pairs]


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.DOTALL)


def _sections(weights: dict[str, tuple[float, float]]) -> list[tuple[str, float]]:
    """Patterns of a text in sections: the weight of each heading, and of what follows it up to the next heading."""
    longest_first = sorted(weights, key=len, reverse=True)  # a heading may begin with another one
    next_heading = "|".join(re.escape(heading) for heading in longest_first)
    patterns = []
    for heading, (own, following) in weights.items():
        escaped = re.escape(heading)
        patterns += [(escaped, own), (rf"(?<={escaped})(?!{next_heading}).+?(?={next_heading}|\Z)", following)]
    return [(pattern, weight) for pattern, weight in patterns if weight != 1.0]


_REACT = {
    "Action:": (2.0, 2.0),
    "Action Input:": (2.0, 2.0),
    "Thought:": (1.0, 1.0),
    "Final Answer:": (1.0, 1.0),
    "Observation:": (2.0, 0.0),
}
_QWEN = {
    "✿FUNCTION✿:": (2.0, 2.0),
    "✿ARGS✿:": (2.0, 2.0),
    "✿RESULT✿:": (2.0, 0.0),
    "✿RETURN✿:": (1.0, 1.0),
}
_FLAN = ("Name:", "Action:", "Tool:", "Command", "Arguments:", "action input", "ACTION_INPUT:")
_PACKAGED: dict[str, list[tuple[str, float]]] = {
    "hermes": [(r"<tool_call>.+?</tool_call>", 2.0)],
    "ignore_think_prefix": [(r"^<think>\n?", 0.0)],
    "qwen": _sections(_QWEN),
    "react": _sections(_REACT),
    "agentflan": _sections(_REACT | dict.fromkeys(_FLAN, (1.0, 3.0))),
    "alpha_umi": _sections(_REACT | {"Next:": (2.0, 2.0)}),
}
"""By name, with the weights of ms-swift's loss scales of these names. (Its agentflan also weighs answers by their question.)"""
