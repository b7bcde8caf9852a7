"""The system's answer: each voxel answered by whom it was routed to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def fuse(answers: Tensor, route: Tensor) -> Tensor:
    """The answer of the model where `route` is 0, of expert j where it is j.

    Args:
        answers: Shape (J + 1, *S), any dtype: the model's answer first, then the experts' in routing order.
        route: Shape S (or broadcastable to it), integers in [0, J].

    Returns:
        Shape S, the dtype of `answers`.

    Raises:
        ValueError: If a route names an expert without an answer.
    """
    _check_routes(int(route.max()) if route.numel() else 0, answers.shape[0] - 1)
    index = route.long().expand(answers.shape[1:])[None]
    return answers.gather(0, index)[0]


def fuse_masks(model: np.ndarray, experts: np.ndarray, route: np.ndarray) -> np.ndarray:
    """:func:`fuse` for label maps on disk: model S, experts (J, *S), route S; returns S in the model's dtype.

    Raises:
        ValueError: If the shapes differ or a route names an expert without a mask.
    """
    if not (model.shape == route.shape == experts.shape[1:]):
        raise ValueError(f"shapes differ: model {model.shape}, experts {experts.shape[1:]}, route {route.shape}")
    answers = torch.from_numpy(np.concatenate([model[None].astype(np.int64), experts.astype(np.int64)]))
    return fuse(answers, torch.from_numpy(route.astype(np.int64))).numpy().astype(model.dtype)


def _check_routes(highest: int, num_experts: int) -> None:
    if highest > num_experts:
        raise ValueError(f"a voxel is routed to expert {highest}, but there are {num_experts} experts")
