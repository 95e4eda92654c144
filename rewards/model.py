"""Reward of a trained reward model: a transformers sequence classifier with one score."""

from collections.abc import Sequence
from typing import Any

from rlflow.errors import RewardError
from rlflow.rewards.api import RewardSample
from rlflow.spec.rewards import ModelRewardSpec


class ModelReward:
    """Scores conversations in batches, rendered with the reward model's own chat template."""

    def __init__(self, spec: ModelRewardSpec) -> None:
        """Raises RewardError if `spec.path` holds no model with one score, or no chat template."""
        import torch
        from huggingface_hub.utils import logging as hub_logging
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        hub_logging.set_verbosity_error()  # retries of a download are not news; its failure is raised
        torch.set_num_threads(spec.num_threads)
        self._device = "cuda" if spec.device == "auto" and torch.cuda.is_available() else "cpu"
        assert spec.path is not None, "the job finds the model of an earlier run"
        config = AutoConfig.from_pretrained(spec.path)
        if config.num_labels != 1:
            raise RewardError(f"{spec.path} is no reward model: it has {config.num_labels} labels, not one score")
        self._tokenizer = AutoTokenizer.from_pretrained(spec.path)
        if not self._tokenizer.chat_template:
            raise RewardError(f"the tokenizer of {spec.path} has no chat template")
        self._tokenizer.padding_side = "right"
        self._model, info = AutoModelForSequenceClassification.from_pretrained(
            spec.path, dtype=_dtype(spec, self._device), output_loading_info=True
        )
        if info["missing_keys"]:
            raise RewardError(f"{spec.path} is no reward model: it has no weights {', '.join(sorted(info['missing_keys']))}")
        self._model.eval().to(self._device)
        if self._model.config.pad_token_id is None:
            self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._batch_size, self._max_tokens = spec.batch_size, spec.max_tokens

    def __call__(self, samples: Sequence[RewardSample]) -> list[float]:
        """One score per sample. Raises RewardError for a conversation beyond `max_tokens`."""
        import torch

        texts = [self._render(sample) for sample in samples]
        scores: list[float] = []
        for start in range(0, len(texts), self._batch_size):
            batch = self._tokenizer(
                texts[start : start + self._batch_size], add_special_tokens=False, padding=True, return_tensors="pt"
            )
            longest = batch["input_ids"].shape[1]
            if longest > self._max_tokens:
                raise RewardError(f"a conversation of {longest} tokens is longer than max_tokens ({self._max_tokens})")
            with torch.inference_mode():
                scores += self._model(**batch.to(self._device)).logits[:, 0].float().tolist()
        return scores

    def _render(self, sample: RewardSample) -> str:
        messages = [*sample.messages, {"role": "assistant", "content": sample.completion}]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        assert isinstance(text, str)
        return text


def _dtype(spec: ModelRewardSpec, device: str) -> Any:
    import torch

    default = torch.float32 if device == "cpu" else torch.bfloat16
    return default if spec.dtype == "auto" else getattr(torch, spec.dtype)
