"""The vLLM engine as a plain object. vllm is imported only here, and only when an engine starts."""
