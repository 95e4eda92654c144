"""Reward of a generative judge behind an OpenAI-compatible endpoint."""

import asyncio
import json
import os
import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlflow.errors import RewardError
from rlflow.rewards.api import RewardSample
from rlflow.spec.rewards import JudgeSpec

_RETRIED_STATUSES = (408, 409, 429, 500, 502, 503, 504)
_SHOWN_CHARACTERS = 120


class JudgeReward:
    """Asks the judge about each completion, a few at a time, and reads a number from its answer."""

    def __init__(self, spec: JudgeSpec) -> None:
        """Raises RewardError if the variable that holds the key is not set."""
        self._spec = spec
        self._pattern = re.compile(spec.pattern)
        self._headers = {"Content-Type": "application/json"}
        if spec.api_key_variable is not None:
            if spec.api_key_variable not in os.environ:
                raise RewardError(f"api_key_variable: the environment has no {spec.api_key_variable}")
            self._headers["Authorization"] = f"Bearer {os.environ[spec.api_key_variable]}"
        self._threads = ThreadPoolExecutor(max_workers=spec.max_concurrent, thread_name_prefix="judge")

    async def __call__(self, sample: RewardSample) -> float:
        """The judge's number. Raises RewardError if it cannot be reached, or its answer holds none."""
        body = self._request(sample)
        for attempt in range(self._spec.max_retries + 1):
            if attempt:
                await asyncio.sleep(self._spec.backoff_s * 2 ** (attempt - 1))
            try:
                answer = await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, body)
                return self._read(answer)
            except urllib.error.HTTPError as error:
                failure = f"status {error.code} {error.reason}"
                if error.code not in _RETRIED_STATUSES:
                    break
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                failure = str(error)
        raise RewardError(f"the judge at {self._spec.endpoint} did not answer ({attempt + 1} tries): {failure}")

    def _request(self, sample: RewardSample) -> bytes:
        names = {**sample.columns, "prompt": _last_user_text(sample), "completion": sample.completion}
        try:
            text = self._spec.prompt.format(**names)
        except (KeyError, IndexError) as error:
            raise RewardError(f"prompt: there is no {error} among {', '.join(sorted(names))}") from None
        body = {
            "model": self._spec.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": self._spec.temperature,
            "max_tokens": self._spec.max_tokens,
        }
        return json.dumps(body).encode()

    def _ask(self, body: bytes) -> Any:
        assert self._spec.endpoint is not None, "the job knows where its engine is"
        url = self._spec.endpoint.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(url, data=body, headers=self._headers)
        with urllib.request.urlopen(request, timeout=self._spec.request_timeout_s) as response:
            return json.loads(response.read())

    def _read(self, answer: Any) -> float:
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise RewardError(f"the judge's answer is no chat completion: {str(answer)[:_SHOWN_CHARACTERS]}") from None
        matches = self._pattern.findall(text or "")
        if not matches:
            raise RewardError(f"the judge's answer does not match the pattern: {str(text)[-_SHOWN_CHARACTERS:]!r}")
        try:
            return float(matches[-1])
        except ValueError:
            raise RewardError(f"the judge's answer holds {matches[-1]!r}, which is no number") from None


def _last_user_text(sample: RewardSample) -> str:
    return next((m["content"] for m in reversed(sample.messages) if m["role"] == "user"), sample.prompt)
