"""Relational knowledge distillation: the images of a batch lie to each other as they do for the teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from basicsr.distill.base import StepContext
from basicsr.distill.features import FeatureTerm
from basicsr.utils.dist_util import gather_with_gradient
from basicsr.utils.errors import OptionsError
from basicsr.utils.ranges import Few, Weight
from basicsr.utils.registry import METHOD_REGISTRY

_NO_DIRECTION = 1e-4
"""Two embeddings nearer than this part of the mean distance are, in float32, apart by little more than rounding."""


@METHOD_REGISTRY.register()
class RKD(FeatureTerm):
    """25 L_distance + 50 L_angle on pooled features t_i = mean over places of F^k, of the images i of the batch.

    Park et al., "Relational Knowledge Distillation", CVPR 2019. With h the Huber loss (eq. 5: x^2 / 2 up to |x| = 1,
    |x| - 1/2 beyond):

    - L_distance = mean over pairs i != j of h(psi(s_i, s_j) - psi(t_i, t_j)), with psi (eqs. 3 and 4) the Euclidean
      distance, divided by its mean over those pairs;
    - L_angle = mean over i, j, k that all differ of h(cos(s_i s_j s_k) - cos(t_i t_j t_k)), the angle at j (eq. 7).

    Means leave out entries that are zero because two indices agree, so the batch size does not matter: at B = 16 the
    authors' distance part, a mean over all B^2, is 15/16 of ours, their angle part 0.82. Pairs nearer than a
    ten-thousandth of the mean distance (equal patches) have no direction: their angles count as right angles, without
    gradient.

    B counts the images of all ranks; fewer than three are refused. Memory for the angles grows with B^3 + B^2 C.
    Nothing is trained beside the student.

    Args:
        distance_weight: weight of L_distance, a mean over the positions.
        angle_weight: weight of L_angle, likewise.
    """

    batch_scope = "all ranks"

    def __init__(
        self,
        *,
        student_taps: Sequence[str] | None = None,
        teacher_taps: Sequence[str] | None = None,
        positions: Few = 1,
        distance_weight: Weight = 25.0,
        angle_weight: Weight = 50.0,
    ) -> None:
        super().__init__(student_taps, teacher_taps, positions)
        self.weights = {"l_rkd_distance": distance_weight, "l_rkd_angle": angle_weight}

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns `l_rkd_distance` and `l_rkd_angle`; raises OptionsError for fewer than three images on all ranks."""
        distances, angles = [], []
        for student, teacher in self.pairs(context):
            own, other = (gather_with_gradient(features.mean((2, 3)))[0] for features in (student, teacher))
            if len(own) < 3:
                raise OptionsError(
                    f"RKD: it compares the images of a batch with each other, three or more, and there are {len(own)}"
                    " over all processes; raise batch_size_per_gpu"
                )
            distances.append(mean_huber(relative_distances(own), relative_distances(other)))
            angles.append(mean_huber(cosines(own), cosines(other)))
        return {"l_rkd_distance": torch.stack(distances).mean(), "l_rkd_angle": torch.stack(angles).mean()}


def mean_huber(values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean Huber loss, 0 of no values; the graph holds `values` either way."""
    return F.smooth_l1_loss(values, targets, reduction="sum") / max(1, values.numel())


def relative_distances(embeddings: torch.Tensor) -> torch.Tensor:
    """psi of all pairs i != j, (B (B - 1),), for embeddings (B, C); all 0 where all embeddings are equal."""
    count = len(embeddings)
    # From differences, not from products: equal embeddings have a distance of exactly 0, and a gradient of 0 there.
    distances = torch.linalg.vector_norm(embeddings[:, None] - embeddings, dim=2)[_distinct(count, 2, embeddings)]
    return distances / _mean_or_one(distances)


def cosines(embeddings: torch.Tensor) -> torch.Tensor:
    """cos of the angle at j of all i, j, k that differ, (B (B - 1) (B - 2),), for embeddings (B, C)."""
    count = len(embeddings)
    differences = embeddings[None] - embeddings[:, None]  # [j, i] points from j to i
    lengths = torch.linalg.vector_norm(differences, dim=2, keepdim=True)
    pairs = _distinct(count, 2, embeddings)
    nearest = _NO_DIRECTION * _mean_or_one(lengths[pairs].detach())
    directions = differences / lengths.masked_fill(lengths <= nearest, torch.inf)
    return (directions @ directions.mT)[_distinct(count, 3, embeddings)]


def _mean_or_one(distances: torch.Tensor) -> torch.Tensor:
    total = distances.sum()
    return torch.where(total > 0, total / max(1, distances.numel()), 1.0)


def _distinct(count: int, order: int, like: torch.Tensor) -> torch.Tensor:
    """Which of all pairs (`order` 2) or triples (3) of `count` indices have no index twice: bool, `order` axes."""
    differ = ~torch.eye(count, dtype=torch.bool, device=like.device)
    return differ if order == 2 else differ[:, :, None] & differ[:, None, :] & differ[None]
