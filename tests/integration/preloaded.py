"""What every engine and every learner rank of the tests imports: done once, in the server from which they are forked."""

import os

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", DS_ACCELERATOR="cpu")

import deepspeed  # noqa: E402, F401
import transformers.models.qwen3.modeling_qwen3  # noqa: E402
import transformers.models.qwen3_moe.modeling_qwen3_moe  # noqa: E402, F401
import vllm.v1.engine.llm_engine  # noqa: E402

import rlflow.learner.learner  # noqa: E402
import rlflow.rollout.engine  # noqa: E402, F401
