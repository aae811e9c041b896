"""Classes that nobody has annotated in a sample: their probability belongs to the background there.

q_0 = p_0 + sum p_c over these classes, q_c = p_c of the others. As scores: x'_0 is the logsumexp of the merged ones,
and an unknown class has so low a score that its probability is 0.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

ANNOTATED = "annotated"
"""Where a label's meta data have the 0/1 vector of annotated classes."""

_SMALL = 1e-30  # as of a float32 softmax
_FAR_BELOW = 1e4  # exp(-1e4) is 0 in float64, and 0 times it is 0


def merge(scores: Tensor, unknown: Tensor) -> Tensor:
    """Scores (b, C, m) whose softmax is q; `unknown` (b, C) bool, False for the background."""
    top = torch.logsumexp(_of_merged(scores, unknown), 1, keepdim=True)
    return torch.cat([top, torch.where(unknown[:, 1:].unsqueeze(2), top - _FAR_BELOW, scores[:, 1:])], 1)


def fold(p: Tensor, unknown: Tensor) -> Tensor:
    """q (b, C, m) of the probabilities of all classes."""
    q = p.clone()
    for sample, runs in _runs(unknown):
        for run in runs:
            q[sample, :1] += p[sample, run].sum(0, keepdim=True)
            q[sample, run] = 0
    return q


def share_out_(d: Tensor, p: Tensor, q: Tensor, unknown: Tensor) -> bool:
    """The gradient of the scores in place of d, that of the merged ones, from p of all classes and q.

    Returns:
        Whether it could: where q_0 has underflowed there are no shares, and nothing is done.
    """
    if d.device.type == "cpu" and not q[:, 0].min() > _SMALL:
        return False
    share = d[:, 0] / q[:, 0]
    d[:, 0] = p[:, 0] * share
    for sample, runs in _runs(unknown):
        for run in runs:
            torch.mul(p[sample, run], share[sample], out=d[sample, run])
    return True


def _runs(unknown: Tensor) -> Iterator[tuple[int, list[slice]]]:
    """The unknown classes of each sample, as ranges of channels: copies of single channels would cost more."""
    for sample, row in enumerate(unknown.tolist()):
        edges = [c for c in range(1, len(row) + 1) if (c < len(row) and row[c]) != row[c - 1]]
        yield sample, [slice(first, last) for first, last in zip(edges[::2], edges[1::2], strict=True)]


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
