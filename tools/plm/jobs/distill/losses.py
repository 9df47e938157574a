"""What a student is asked to match: each term a scalar of tensors, in float32 whatever they come in.

Teacher tensors carry no gradient. Every term is a mean, so its size does not depend on how much a row holds.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def masked_logit_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the logits at masked residues, over the whole vocabulary.

    Args:
        student: ``(M, V)`` logits of the M masked residues.
        teacher: ``(M, V)`` logits.
    """
    return functional.mse_loss(_wide(student), _wide(teacher))


def kl_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Kullback-Leibler divergence of student from teacher at masked residues in nats, times the temperature squared.

    The factor keeps gradients of like size at all temperatures (Hinton et al. 2015).

    Args:
        student: ``(M, V)`` logits.
        teacher: ``(M, V)`` logits.
        temperature: Both are divided by it.
    """
    target = functional.log_softmax(_wide(teacher) / temperature, dim=-1)
    predicted = functional.log_softmax(_wide(student) / temperature, dim=-1)
    return temperature**2 * _divergence(predicted, target)


def kl_divergence_of_top(
    student: torch.Tensor, values: torch.Tensor, ids: torch.Tensor, rest: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """As :func:`kl_divergence` where only the teacher's highest logits are known; all others count as one class.

    The logit of that class is the log-sum-exp of its members, before the temperature; with all V logits kept it is
    the divergence itself.

    Args:
        student: ``(M, V)`` logits.
        values: ``(M, k)`` logits of the teacher.
        ids: ``(M, k)`` int64 vocabulary entries that they belong to.
        rest: ``(M,)`` log-sum-exp of the teacher's other logits; minus infinity if there are none.
        temperature: Classes' logits are divided by it.
    """
    kept = _wide(student).gather(-1, ids)
    if ids.shape[-1] == student.shape[-1]:
        return kl_divergence(kept, values, temperature)
    others = _wide(student).scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    target = torch.cat([_wide(values), _wide(rest)[:, None]], -1)
    return kl_divergence(torch.cat([kept, others], -1), target, temperature)


def _divergence(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over rows; a class that the teacher rules out (log-probability minus infinity) adds nothing."""
    each = target.exp() * (target - predicted)
    return each.masked_fill(target == -torch.inf, 0.0).sum(-1).mean()


def kernel_alignment(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor | None:
    """Mean squared difference of the cosine similarities between the sequences of a row; widths may differ.

    The diagonal is always one and left out, so the term is undefined for a single sequence.

    Args:
        student: ``(B, D_s)`` mean over the residues of each sequence.
        teacher: ``(B, D_t)`` representations.

    Returns:
        The term, or None if B is 1.
    """
    count = len(student)
    if count < 2:
        return None
    difference = (_cosines(student) - _cosines(teacher)).square()
    # All but the diagonal, in the order of the rows; a mask would have a GPU waited for.
    return difference.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(-1).mean()


def _wide(values: torch.Tensor) -> torch.Tensor:
    """float32, or float64 where the caller wants it finer."""
    return values if values.dtype == torch.float64 else values.float()


def _cosines(rows: torch.Tensor) -> torch.Tensor:
    unit = functional.normalize(_wide(rows), dim=-1)
    return unit @ unit.T


def hidden_cosine(projected: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """One minus the mean cosine between projected states of the student and states of the teacher, over residues.

    Args:
        projected: ``(R, D_t)`` states of the R residues after the learned projection.
        teacher: ``(R, D_t)``.
    """
    return 1 - functional.cosine_similarity(_wide(projected), _wide(teacher), dim=-1).mean()


def masked_language_model(student: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean negative log likelihood of the true residues in nats.

    Args:
        student: ``(M, V)`` logits of the M masked residues.
        targets: ``(M,)`` int64 true entries.
    """
    return functional.cross_entropy(_wide(student), targets)
