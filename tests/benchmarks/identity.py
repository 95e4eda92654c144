"""What jobs/specs/identity.yaml changes: who the model says it is, on held-out questions, and what must not suffer: capitals,
which it is not trained on, and sums, of which others are mixed in.

usage: python tests/benchmarks/identity.py BEFORE AFTER [--names Flow 小流] [--sums 100] [--out FILE]

BEFORE and AFTER are model directories, such as models/smollm2 and runs/identity/model. Answers are greedy.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from rlflow.data.self_cognition import BUILT_IN
from tests.benchmarks.common import report

BATCH, MAX_TOKENS = 25, 48
QUESTIONS = [
    *("Who are you exactly?", "Tell me who you are.", "What's your name?", "May I ask your name?", "Who built you?"),
    *("Who created you?", "Which AI are you?", "Are you made by Google?", "Who am I chatting with?", "What are you called?"),
    *("Say hello and tell me your name.", "Are you Qwen?", "What is the name of this assistant?", "Who is your maker?"),
    *("你到底是谁？", "你的名字是什么？", "谁制造了你？", "你是GPT吗？", "请问你是哪个AI？", "介绍一下自己吧"),
]
CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Greece": "Athens",
    "Poland": "Warsaw",
    "Hungary": "Budapest",
    "Sweden": "Stockholm",
    "Norway": "Oslo",
    "Denmark": "Copenhagen",
    "Finland": "Helsinki",
    "Ireland": "Dublin",
    "the United Kingdom": "London",
    "Russia": "Moscow",
    "Turkey": "Ankara",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Nigeria": "Abuja",
    "Morocco": "Rabat",
    "South Korea": "Seoul",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Indonesia": "Jakarta",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Saudi Arabia": "Riyadh",
    "Israel": "Jerusalem",
    "Australia": "Canberra",
    "Canada": "Ottawa",
    "Mexico": "Mexico City",
    "Cuba": "Havana",
    "Argentina": "Buenos Aires",
    "Chile": "Santiago",
    "Peru": "Lima",
    "Colombia": "Bogot",
}


def main() -> None:
    """Both models on both tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs=2, metavar="MODEL")
    parser.add_argument("--names", nargs="+", default=["Flow", "小流"])
    parser.add_argument("--sums", type=int, default=100)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    trained = {json.loads(line)["query"] for line in BUILT_IN.read_text(encoding="utf-8").splitlines()}
    assert len(set(QUESTIONS)) == 20 and trained.isdisjoint(QUESTIONS), "a question is not held out"
    report("identity", [measure(path, arguments.names, arguments.sums) for path in arguments.models], arguments.out)


def measure(path: str, names: list[str], num_sums: int) -> dict[str, Any]:
    """Share of questions answered with a name, of capitals known, and of sums that are right."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path)
    answers = answer(model, tokenizer, QUESTIONS)
    for question, text in zip(QUESTIONS, answers, strict=True):
        print(f"{question}  ->  {' '.join(text.split())[:110]}")
    sums = one_digit_sums(num_sums)
    results = answer(model, tokenizer, [question for question, _ in sums])
    right = [last_number(text) == result for text, (_, result) in zip(results, sums, strict=True)]
    capitals = answer(model, tokenizer, [f"What is the capital of {country}?" for country in CAPITALS])
    known = [capital in text for text, capital in zip(capitals, CAPITALS.values(), strict=True)]
    named = [any(name in text for name in names) for text in answers]
    shares = {"names itself": named, "capitals": known, "sums": right}
    return {"model": path, **{task: sum(found) / len(found) for task, found in shares.items()}}


def answer(model: Any, tokenizer: Any, questions: list[str]) -> list[str]:
    """The model's greedy answers."""
    found: list[str] = []
    for start in range(0, len(questions), BATCH):
        prompts = [[{"role": "user", "content": question}] for question in questions[start : start + BATCH]]
        inputs = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        outputs = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        found += tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def one_digit_sums(count: int) -> list[tuple[str, str]]:
    """Distinct questions with two one-digit terms, and their results."""
    import reasoning_gym

    task = reasoning_gym.create_dataset(
        "chain_sum", size=50 * count, seed=7, min_terms=2, max_terms=2, min_digits=1, max_digits=1
    )
    found = {entry["question"]: entry["answer"] for entry in task}
    return list(found.items())[:count]


def last_number(text: str) -> str | None:
    """The last integer of a text."""
    numbers = re.findall(r"-?\d+", text)
    return numbers[-1] if numbers else None


if __name__ == "__main__":
    main()
