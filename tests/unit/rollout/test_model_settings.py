import json

from rlflow.rollout.model_settings import with_model_settings
from rlflow.spec.rollout import GenerationSpec


def test_what_is_not_set_is_the_models_own_or_neutral(tmp_path):
    own = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    chosen = with_model_settings(GenerationSpec(temperature=0, top_p=1), str(tmp_path))
    assert (chosen.temperature, chosen.top_p, chosen.top_k, chosen.repetition_penalty) == (0, 1, 20, 1)
    assert with_model_settings(GenerationSpec(), str(tmp_path)).temperature == 0.6


def test_a_model_without_settings_samples_its_distribution(tmp_path):
    chosen = with_model_settings(GenerationSpec(max_num_seqs=3), str(tmp_path))
    assert (chosen.temperature, chosen.top_p, chosen.top_k, chosen.repetition_penalty) == (1, 1, 0, 1)
    assert chosen.max_num_seqs == 3
