"""Fusion: combining the labels of the model and the experts according to the route.

Where the selected expert has no label (:data:`MISSING`), the model's label is kept.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.labels import MISSING

_PIECE = 2**22


def fuse(answers: Tensor, route: Tensor) -> Tensor:
    """Take the model's answer where `route` is 0 and expert j's where it is j.

    Args:
        answers: Shape (J + 1, *S), any dtype: the model's answer first, then the experts' in routing order.
        route: Shape S (or broadcastable to it), integers in [0, J].

    Returns:
        Shape S, in the dtype of `answers`.

    Raises:
        InputError: If a route exceeds J.

    Example:
        >>> import torch
        >>> from nnunetv2_deferral import fuse
        >>> answers = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0], [2, 2, 2, 2]])  # of the model and two experts
        >>> fuse(answers, route=torch.tensor([0, 1, 0, 2]))
        tensor([0, 1, 1, 2])
    """
    _check_routes(int(route.max()) if route.numel() else 0, answers.shape[0] - 1)
    index = route.long().expand(answers.shape[1:])[None]
    return answers.gather(0, index)[0]


def fuse_masks(model: np.ndarray, experts: np.ndarray, route: np.ndarray) -> np.ndarray:
    """Fuse label maps in which experts may have left voxels out.

    Args:
        model: The model's label map, integer of shape S.
        experts: The experts' label maps, integer (J, *S), :data:`MISSING` where an expert has no label.
        route: Shape S, integers in [0, J].

    Returns:
        Shape S in the model's dtype. Voxels routed to an expert without a label keep the model's.

    Raises:
        InputError: If the shapes differ or a route exceeds J.

    Example:
        The second expert has no label for the last voxel, which keeps the model's:

        >>> import numpy as np
        >>> from nnunetv2_deferral import fuse_masks
        >>> model, experts = np.array([0, 0, 1, 1]), np.array([[0, 1, 1, 0], [2, 2, 2, -2]])
        >>> fuse_masks(model, experts, route=np.array([0, 1, 2, 2]))
        array([0, 1, 2, 1])
    """
    if not (model.shape == route.shape == experts.shape[1:]):
        raise InputError(f"shapes differ: model {model.shape}, experts {experts.shape[1:]}, route {route.shape}")
    fused = np.empty(model.size, model.dtype)
    labels, answers, sources = model.reshape(-1), experts.reshape(len(experts), -1), route.reshape(-1)
    for start in range(0, model.size, _PIECE):  # PyTorch needs 8 bytes per label
        piece = slice(start, start + _PIECE)
        sources_here = torch.from_numpy(sources[piece].astype(np.int64))
        stacked = np.concatenate([labels[None, piece].astype(np.int64), answers[:, piece].astype(np.int64)])
        asked = fuse(torch.from_numpy(stacked), sources_here).numpy()
        fused[piece] = np.where(asked == MISSING, labels[piece], asked)
    return fused.reshape(model.shape)


def asked_experts(route: np.ndarray, num_experts: int) -> np.ndarray:
    """Whom a route asks: bool (J, *S) from integers in [0, J] of shape S."""
    return route == np.arange(1, num_experts + 1).reshape(-1, *[1] * route.ndim)


def unanswered(experts: np.ndarray, route: np.ndarray) -> np.ndarray:
    """Voxels routed to an expert who has no label there: bool of shape S.

    Args:
        experts: The experts' label maps, integer (J, *S), :data:`MISSING` where an expert has no label.
        route: Shape S, integers in [0, J].
    """
    asked = np.zeros(route.shape, dtype=bool)
    for number, labels in enumerate(experts, start=1):
        asked |= (route == number) & (labels == MISSING)
    return asked


def _check_routes(highest: int, num_experts: int) -> None:
    if highest > num_experts:
        raise InputError(f"a voxel is routed to expert {highest}, but there are {num_experts} experts")
