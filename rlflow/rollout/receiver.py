"""The worker extension that loads weights into a running vLLM model, bucket by bucket.

vLLM mixes this class into its worker; every method is prefixed `rlflow_` because a name that the worker has too stops the engine.
"""

import pickle
from typing import Any

import torch
from torch import Tensor, nn

from rlflow.rollout.shared_memory import forget_shared_memory
from rlflow.weights.buffers import device_key, open_buffer, read_bucket


class WeightReceiver:
    """vLLM's layerwise reload, fed from memory shared with the learner."""

    model_runner: Any
    _rlflow_buffers: dict[bytes, Tensor]

    def rlflow_forget_shared_memory(self) -> None:
        """What the engine's processes share is to end with them."""
        forget_shared_memory()

    def rlflow_begin_update(self) -> None:
        """Wrap the model's weight loaders: layers are processed as their weights arrive."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self._rlflow_buffers = {}
        initialize_layerwise_reload(self._rlflow_model())

    def rlflow_load_bucket(self, blob: bytes) -> None:
        """Load a bucket; when this returns, nothing refers to the sender's memory any more."""
        handles, bucket = pickle.loads(blob)
        handle = handles[device_key()]
        if handle.payload not in self._rlflow_buffers:
            self._rlflow_buffers[handle.payload] = open_buffer(handle)
        memory = self._rlflow_buffers[handle.payload]
        model = self._rlflow_model()
        with torch.no_grad(), torch.device(self._rlflow_device()):
            model.load_weights(iter(read_bucket(memory, bucket)))
            _detach_pending(model, memory)
        if memory.is_cuda:
            torch.cuda.synchronize()

    def rlflow_finish_update(self) -> None:
        """Process what is left, and drop the sender's memory."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        model = self._rlflow_model()
        with torch.no_grad(), torch.device(self._rlflow_device()):
            finalize_layerwise_reload(model, self.model_runner.model_config)
            _repack_tied_head(model)
            if not torch.cuda.is_available():
                _repack_experts(model)
        self._rlflow_buffers = {}
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _rlflow_model(self) -> Any:
        return self.model_runner.model

    def _rlflow_device(self) -> torch.device:
        return torch.device(self.model_runner.device)


def _detach_pending(model: nn.Module, memory: Tensor) -> None:
    """Copy weights that wait for the rest of their layer out of the sender's memory, which the next bucket overwrites.

    The layerwise reload keeps the tensors it was given until a vLLM layer (q, k and v together, say) is complete.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    storage = memory.untyped_storage().data_ptr()
    for layer in model.modules():
        for _, bound in get_layerwise_info(layer).loaded_weights:
            for name, value in bound.arguments.items():
                if isinstance(value, Tensor) and value.untyped_storage().data_ptr() == storage:
                    bound.arguments[name] = value.clone()


def _repack_tied_head(model: nn.Module) -> None:
    """Give a tied output head the new embeddings: on CPU it holds a repacked copy that a reload leaves as it was."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    if not getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        return
    modules = list(model.modules())
    embeddings = [m for m in modules if isinstance(m, VocabParallelEmbedding) and not isinstance(m, ParallelLMHead)]
    for head in (m for m in modules if isinstance(m, ParallelLMHead)):
        head.weight = embeddings[0].weight
        head.quant_method.process_weights_after_loading(head)


def _repack_experts(model: nn.Module) -> None:
    """On CPU, vLLM packs the weights of a mixture of experts when it first loads them, and not when it loads them again."""
    for layer in model.modules():
        kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
        if kernel is not None:
            kernel.fused_experts.process_weights_after_loading(layer)
