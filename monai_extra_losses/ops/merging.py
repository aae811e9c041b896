"""Classes that nobody has annotated in a sample: their probability belongs to the background there.

q_0 = p_0 + sum p_c over these classes, q_c = p_c of the others. As scores: x'_0 is the logsumexp of the merged ones,
and an unknown class has so low a score that its probability is 0.
"""

import torch
from torch import Tensor

ANNOTATED = "annotated"
"""Where a label's meta data have the 0/1 vector of annotated classes."""

_FAR_BELOW = 1e4  # exp(-1e4) is 0 in float64, and 0 times it is 0


def merge(scores: Tensor, unknown: Tensor) -> Tensor:
    """Scores (b, C, m) whose softmax is q; `unknown` (b, C) bool, False for the background."""
    top = torch.logsumexp(_of_merged(scores, unknown), 1, keepdim=True)
    return torch.cat([top, torch.where(unknown[:, 1:].unsqueeze(2), top - _FAR_BELOW, scores[:, 1:])], 1)


def unmerge_(d: Tensor, scores: Tensor, unknown: Tensor) -> Tensor:
    """The gradient of `scores` (b, C, m), in place of d, that of the merged ones.

    What the background gets is shared out by p among the classes that it stands for.
    """
    shares = torch.softmax(_of_merged(scores, unknown), 1)
    # Where all of them are -inf there is nothing to share.
    shares = shares.masked_fill_(scores == -torch.inf, 0)
    of_background = d[:, :1].clone()
    d[:, :1] = 0
    d.masked_fill_(unknown.unsqueeze(2), 0)
    return d.addcmul_(shares, of_background)


def _of_merged(scores: Tensor, unknown: Tensor) -> Tensor:
    """Scores of the background and the unknown classes, -inf elsewhere."""
    others = ~unknown
    others = torch.cat([torch.zeros_like(others[:, :1]), others[:, 1:]], 1)
    return scores.masked_fill(others.unsqueeze(2), -torch.inf)
