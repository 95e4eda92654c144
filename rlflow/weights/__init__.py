"""Moving weights from the learner to the rollout engines: buckets, buffers and the handles that cross processes."""
