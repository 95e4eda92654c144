"""Batch inference: tokens a second of `rlflow infer`, and of the same prompts given straight to vLLM with the same settings.

usage: python tests/benchmarks/infer.py --model DIR [--rows 256] [--tokens 64] [--ways vllm vllm-process rlflow] [--out FILE]

Each way starts fresh and answers every row once, greedily; the time runs from the first prompt to the last answer, without the
start of the engine. The rows of rlflow are read, rendered, decoded and written meanwhile.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import report, run_part

MAX_PROMPT_TOKENS = 128


def main() -> None:
    """Each way in a process of its own, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", default="Write a short story about the number {i}.")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--ways", nargs="+", default=["vllm", "vllm-process", "rlflow"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", help="internal: run one part here")
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(run_rlflow(arguments) if arguments.part == "rlflow" else run_vllm(arguments)))
        return
    names = ("model", "rows", "tokens", "prompt", "dtype", "max_num_seqs")
    shared = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(arguments, name)))]
    results = []
    for way in arguments.ways * arguments.repeats:
        results.append({"way": way, **run_part(__file__, [*shared, "--part", way])})
        print(results[-1], flush=True)
    report(f"batch inference, {arguments.rows} rows of at most {arguments.tokens} tokens", results, arguments.out)


def rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Single-turn conversations."""
    return [{"messages": [{"role": "user", "content": arguments.prompt.format(i=i)}]} for i in range(arguments.rows)]


def run_vllm(arguments: argparse.Namespace) -> dict[str, float]:
    """`LLM.generate` on rendered prompts."""
    in_process = arguments.part == "vllm"
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0" if in_process else "1", VLLM_LOGGING_LEVEL="WARNING")
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_CI_ENV": "1"}
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    engine = LLM(
        arguments.model,
        dtype=arguments.dtype,
        max_model_len=MAX_PROMPT_TOKENS + arguments.tokens,
        max_num_seqs=arguments.max_num_seqs,
        enforce_eager=not on_gpu,
        enable_prefix_caching=True,
        generation_config="vllm",
        disable_log_stats=True,
        **({} if on_gpu else {"enable_chunked_prefill": False}),
    )
    if not on_gpu:
        torch.set_num_threads(os.cpu_count() or 1)
    texts = [tokenizer.apply_chat_template(r["messages"], tokenize=False, add_generation_prompt=True) for r in rows(arguments)]
    prompts = [{"prompt_token_ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in texts]
    begin = time.perf_counter()
    outputs = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=arguments.tokens), use_tqdm=False)
    return _figures(sum(len(output.outputs[0].token_ids) for output in outputs), time.perf_counter() - begin)


def run_rlflow(arguments: argparse.Namespace) -> dict[str, float]:
    """`rlflow infer` with flags, as a user does; its own figures."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "rows.jsonl")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(arguments)))
        command = [sys.executable, "-m", "rlflow.cli", "infer", arguments.model, "--data", str(data), "--temperature", "0"]
        command += ["--output", f"{folder}/out.jsonl", "--runs", f"{folder}/runs", "--max-tokens", str(arguments.tokens)]
        command += ["--max-prompt-tokens", str(MAX_PROMPT_TOKENS), "--dtype", arguments.dtype]
        command += [f"rollout.max_num_seqs={arguments.max_num_seqs}", "rollout.top_p=1", "rollout.top_k=0"]
        subprocess.run(command, stdout=sys.stderr, check=True)
        result = json.loads(Path(folder, "runs", "infer_out", "result.json").read_text())
    return _figures(result["completion_tokens"], result["seconds"])


def _figures(tokens: float, seconds: float) -> dict[str, float]:
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}


if __name__ == "__main__":
    main()
