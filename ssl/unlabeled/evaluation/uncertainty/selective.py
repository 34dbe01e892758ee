"""Selective prediction: risk against coverage, and detection of errors by an uncertainty score.

``wrong`` is bool [N], True where an image is misclassified; ``uncertainty`` is a score [N], larger where less sure.
"""

import math

import torch
from torch import Tensor


def selective_metrics(wrong: Tensor, scores: dict[str, Tensor]) -> dict[str, float]:
    """Returns ``aurc_NAME`` and ``auroc_NAME`` of each score, and ``aurc_best_possible`` for the same errors.

    AUROC is left out if all images are right or all are wrong: it is not defined then.
    """
    found = {"aurc_best_possible": aurc(wrong, wrong.double())}
    found |= {f"aurc_{name}": aurc(wrong, score) for name, score in scores.items()}
    found |= {f"auroc_{name}": misclassification_metrics(wrong, score)["auroc"] for name, score in scores.items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def risk_coverage(wrong: Tensor, uncertainty: Tensor) -> tuple[Tensor, Tensor]:
    """Returns coverage [N] = 1/N, …, 1 and the error rate [N] among that many most certain images, float64.

    El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017, arXiv 1705.08500. Among equally uncertain images the errors
    count as evenly spread, which is the mean over all orders.
    """
    values, group, counts = torch.unique(uncertainty.double(), return_inverse=True, return_counts=True)
    errors = wrong.double().new_zeros(len(values)).index_add_(0, group, wrong.double())
    spread = (errors / counts).repeat_interleave(counts)
    n = torch.arange(1, len(wrong) + 1, dtype=torch.float64, device=wrong.device)
    return n / len(wrong), spread.cumsum(0) / n


def aurc(wrong: Tensor, uncertainty: Tensor) -> float:
    """Returns the area under the risk–coverage curve, 0 to 1: mean risk over all N coverages (Geifman et al. 2019)."""
    return float(risk_coverage(wrong, uncertainty)[1].mean())


def misclassification_metrics(wrong: Tensor, uncertainty: Tensor) -> dict[str, float]:
    """Measures how well a score finds errors: ``auroc``, ``aupr`` and ``fpr95``, each from 0 to 1.

    AUROC and AUPR (average precision) have the wrong images as positives (Hendrycks and Gimpel 2017, arXiv 1610.02136,
    their AUPR-Err); a score without information has AUROC 0.5 and AUPR the share of errors. FPR95 is the share of right
    images that are flagged together with 95 % of the wrong ones. NaN where all are right or all are wrong.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    target, score = wrong.cpu().numpy(), uncertainty.double().cpu().numpy()
    if not 0 < int(target.sum()) < len(target):
        return {"auroc": math.nan, "aupr": math.nan, "fpr95": math.nan}
    fpr, tpr, _ = roc_curve(target, score, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(target, score)),
        "aupr": float(average_precision_score(target, score)),
        "fpr95": float(fpr[(tpr >= 0.95).argmax()]),
    }
