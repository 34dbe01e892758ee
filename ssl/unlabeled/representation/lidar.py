"""LiDAR: counts the directions that separate images, compared with the spread that augmentation causes."""

import torch
from torch import Tensor


def lidar(embeddings: Tensor, delta: float = 1e-4, epsilon: float = 1e-8) -> float:
    """Returns LiDAR, the effective rank of an LDA with each image a class: Thilak et al. 2024, arXiv:2312.04000.

    S_b is the scatter of the images' means, S_w that of views around them + δI. LiDAR is the exponential of the entropy
    of the eigenvalues λ of S_w^(−1/2) S_b S_w^(−1/2), with p = λ / Σλ + ε. It is at most n − 1 for any D; values with
    other n, q or transforms cannot be compared. The paper has n about 1,000 and q about 50.

    Args:
        embeddings: [n, q, D], q views of each of n images.
        delta: δ, added to the diagonal of S_w.
        epsilon: ε.

    Returns:
        0 if the means of all images are equal.

    Raises:
        ValueError: n or q below 2.
    """
    n, q, dim = embeddings.shape
    if n < 2 or q < 2:
        raise ValueError(f"LiDAR needs at least two views of at least two images, not {q} of {n}")
    e = embeddings.double()
    means = e.mean(1)
    between, within = means - means.mean(0), (e - means[:, None]).flatten(0, 1)
    s_w = within.T @ within / (n * (q - 1)) + delta * torch.eye(dim, dtype=e.dtype, device=e.device)
    values, vectors = torch.linalg.eigh(s_w)
    whitened = between @ (vectors / values.clamp(min=delta).sqrt())  # S_w^(−1/2) up to a rotation
    eigenvalues = torch.linalg.eigvalsh(whitened.T @ whitened / (n - 1)).clamp(min=0)
    total = float(eigenvalues.sum())
    if total == 0:
        return 0.0
    return float(torch.special.entr(eigenvalues / total + epsilon).sum().exp())
