"""One learner rank as the tests use it: a process that builds learners one after the other, and reads their weights."""

from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from rlflow.actors.learner import LearnerActor, LearnerSetup
from rlflow.learner.learner import Learner
from rlflow.learner.process_group import RankInfo
from rlflow.spec.learner import LearnerSpec
from rlflow.spec.model import ModelSpec
from rlflow.weights.buffers import open_buffer, read_bucket


class Rank:
    """What functions sent to a `RankGroup` get."""

    def __init__(self, rank: int, world_size: int, port: int) -> None:
        torch.set_num_threads(1)
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        self.info = RankInfo(rank, world_size, "127.0.0.1", port)
        self._learner: Learner | None = None

    @property
    def learner(self) -> Learner:
        """The learner built last."""
        assert self._learner is not None
        return self._learner

    def build(self, model: ModelSpec, spec: LearnerSpec, **options: Any) -> Learner:
        """A learner in place of the last one; the process group is kept."""
        assert model.path is not None
        self._forget()
        self._learner = Learner(model.path, model, spec, self.info, **options)
        return self._learner

    def act(self, setup: LearnerSetup) -> LearnerActor:
        """What Ray would run as this rank's actor, in place of the last learner; the process group is kept."""
        self._forget()
        actor, info = LearnerActor("learner"), self.info
        actor.build(setup, info.rank, info.world_size, (info.master_address, info.master_port))
        self._learner = actor._learner
        return actor

    def _forget(self) -> None:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        self._learner = None
        unset_hf_deepspeed_config()  # an older learner's stage must not partition the model while it is loaded

    def weights(self) -> dict[str, np.ndarray]:
        """The exported weights, as a rollout engine would read them (collective)."""
        weights: dict[str, np.ndarray] = {}
        exporter = self.learner.exporter
        for index, bucket in enumerate(exporter.buckets):
            handle = exporter.write_bucket(index)
            # A process cannot open its own CUDA memory through IPC.
            memory = open_buffer(handle) if handle.device == "cpu" else exporter._buffer.bytes_B
            weights |= {name: tensor.float().cpu().numpy().copy() for name, tensor in read_bucket(memory, bucket)}
        exporter.release()
        return weights

    def close(self) -> None:
        """Leave the process group."""
        if self._learner is not None:
            self._learner.close()
