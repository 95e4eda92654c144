"""The auxiliary loss of a mixture of experts."""

import torch
from torch import Tensor


def load_balancing_loss(router_logits_LTE: Tensor, sequence_of_T: Tensor, num_sequences: int, top_k: int) -> Tensor:
    """E x sum over experts e of f_e P_e (Fedus et al. 2021, eq. 4), for each of S sequences, mean over L layers: float32 [S].

    f_e: tokens that expert e gets, as a fraction of the sequence (their sum is top_k, as transformers has it); P_e: mean router
    probability. Over a sequence rather than a batch, so that it does not depend on how the batch is cut up. `sequence_of_T`:
    int64 [T], the sequence of each position, -1 for padding.
    """
    layers, _, experts = router_logits_LTE.shape
    inside_T = sequence_of_T >= 0
    logits_LTE = router_logits_LTE[:, inside_T]
    probabilities_LTE = logits_LTE.to(torch.promote_types(logits_LTE.dtype, torch.float32)).softmax(-1)
    assigned_LTE = torch.zeros_like(probabilities_LTE).scatter_(-1, probabilities_LTE.topk(top_k, dim=-1).indices, 1.0)
    index_T = sequence_of_T[inside_T]
    sums = probabilities_LTE.new_zeros(2, layers, num_sequences, experts)
    fractions_LSE, means_LSE = (
        total.index_add(1, index_T, values) for total, values in zip(sums, (assigned_LTE, probabilities_LTE), strict=True)
    )
    tokens_S1 = torch.bincount(index_T, minlength=num_sequences)[:, None]
    return experts * ((fractions_LSE / tokens_S1) * (means_LSE / tokens_S1)).sum(-1).mean(0)
