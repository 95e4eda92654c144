"""What every engine and every learner rank of the tests imports: done once, in the server from which they are forked."""

import os
from importlib import import_module

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", DS_ACCELERATOR="cpu")

for name in (
    "deepspeed",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
    "vllm.v1.engine.llm_engine",
    "rlflow.learner.learner",
    "rlflow.rollout.engine",
):
    import_module(name)
