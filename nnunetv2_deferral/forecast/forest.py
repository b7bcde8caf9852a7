"""A random forest that predicts the Dice of a class from the features of a case, stored as plain numbers.

scikit-learn keeps forests as pickles, which run code when they are read and depend on its version. Here each tree is
five lists: the feature and the threshold of each node, its children on the left (feature <= threshold) and on the
right, and its value; a leaf has no children (-1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.forecast.features import FEATURES, case_features, predicted_classes
from nnunetv2_deferral.schema import Integer, Number, Share, Text, validate
from nnunetv2_deferral.uncertainty import entropy

LEAF = -1
_Numbers = Annotated[list[Number], Field(min_length=len(FEATURES), max_length=len(FEATURES))]


class _Tree(TypedDict):
    feature: list[Integer]
    threshold: list[Number]
    left: list[Integer]
    right: list[Integer]
    value: list[Share]


class _Forest(TypedDict):
    mean: _Numbers
    scale: _Numbers
    trees: Annotated[list[_Tree], Field(min_length=1)]


class _Forecast(TypedDict):
    classes: Annotated[dict[Text, _Forest], Field(min_length=1)]


@dataclass(frozen=True, eq=False)
class Tree:
    """A regression tree of N nodes, the first being its root.

    Attributes:
        feature: int64 (N,), the feature that a node compares; any in leaves.
        threshold: float64 (N,), in units of standardised features.
        left: int64 (N,), the node for features up to the threshold; -1 in leaves.
        right: int64 (N,), the node for features above it; -1 in leaves.
        value: float64 (N,), the prediction of a leaf.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray

    def predict(self, features: np.ndarray) -> float:
        """The value of the leaf that standardised features, float32 (5,), lead to."""
        node = 0
        while self.left[node] != LEAF:
            below = features[self.feature[node]] <= self.threshold[node]
            node = int(self.left[node] if below else self.right[node])
        return float(self.value[node])

    def to_dict(self) -> dict[str, Any]:
        """The tree as JSON-ready data."""
        return {name: getattr(self, name).tolist() for name in ("feature", "threshold", "left", "right", "value")}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str) -> Tree:
        """Restore the data of :meth:`to_dict`.

        Raises:
            InputError: Naming `where`, if the lists differ in length, or a node compares a feature that does not exist
                or has children that do not come after it, so that a prediction might not end.
        """
        number = len(content["feature"])
        if not number or any(len(values) != number for values in content.values()):
            raise InputError(f"{where}: the lists of a tree must be equally long and not empty")
        left, right, feature = (np.array(content[name], dtype=np.int64) for name in ("left", "right", "feature"))
        places = np.arange(number)
        inner = left != LEAF
        for children in (left, right):
            later = (children > places) & (children < number)
            if not np.array_equal(later, inner) or (children[~inner] != LEAF).any():
                raise InputError(f"{where}: the children of a node must be later nodes of the tree")
        if ((feature[inner] < 0) | (feature[inner] >= len(FEATURES))).any():
            raise InputError(f"{where}: feature must be below {len(FEATURES)}")
        return cls(feature, np.array(content["threshold"]), left, right, np.array(content["value"]))


@dataclass(frozen=True, eq=False)
class Forest:
    """A random forest on standardised features.

    Attributes:
        mean: float64 (5,), subtracted from the features.
        scale: float64 (5,), positive; by which they are then divided.
        trees: The trees, at least one.
    """

    mean: np.ndarray
    scale: np.ndarray
    trees: tuple[Tree, ...]

    def predict(self, features: np.ndarray) -> float:
        """The mean over the trees, in [0, 1], for the features (5,) of :func:`.case_features`."""
        # As scikit-learn, which compares single-precision features.
        standardised = ((np.asarray(features, dtype=np.float64) - self.mean) / self.scale).astype(np.float32)
        return float(np.mean([tree.predict(standardised) for tree in self.trees]))

    def to_dict(self) -> dict[str, Any]:
        """The forest as JSON-ready data."""
        return {
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "trees": [tree.to_dict() for tree in self.trees],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str) -> Forest:
        """Restore the data of :meth:`to_dict`.

        Raises:
            InputError: Naming `where`, if a scale is not positive or a tree is none.
        """
        scale = np.array(content["scale"], dtype=np.float64)
        if (scale <= 0).any():
            raise InputError(f"{where}: scale must be positive, got {scale.tolist()}")
        trees = tuple(Tree.from_dict(tree, f"{where}: trees[{place}]") for place, tree in enumerate(content["trees"]))
        return cls(np.array(content["mean"], dtype=np.float64), scale, trees)


@dataclass(frozen=True, eq=False)
class DiceForecast:
    """The forests of a model, one for each foreground class or region.

    Attributes:
        classes: The forest of each class, by name, in the order of the model's channels.
    """

    classes: Mapping[str, Forest]

    def predict(self, probabilities: np.ndarray, *, has_regions: bool) -> dict[str, float]:
        """The Dice to expect of each class in a case.

        Args:
            probabilities: float32 (K, *S): of classes, the background first, or of regions.
            has_regions: Whether the probabilities are those of regions.

        Raises:
            InputError: If the number of classes is another.
        """
        features = features_of_classes(probabilities, has_regions=has_regions)
        if len(features) != len(self.classes):
            raise InputError(f"the Dice is predicted for {len(self.classes)} classes, but there are {len(features)}")
        return {name: forest.predict(each) for (name, forest), each in zip(self.classes.items(), features, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """The forests as JSON-ready data."""
        return {"classes": {name: forest.to_dict() for name, forest in self.classes.items()}}

    @classmethod
    def from_dict(cls, content: Any, where: str) -> DiceForecast:
        """Restore the data of :meth:`to_dict`.

        Raises:
            InputError: Naming `where` and the fault.
        """
        validate(content, _Forecast, where)
        return cls(
            {name: Forest.from_dict(forest, f"{where}.classes.{name}") for name, forest in content["classes"].items()}
        )


def features_of_classes(probabilities: np.ndarray, *, has_regions: bool) -> Sequence[np.ndarray]:
    """The features of each foreground class or region, with the entropy as the score; see :func:`.case_features`."""
    scores = entropy(probabilities, has_regions=has_regions)
    return [case_features(scores, mask) for mask in predicted_classes(probabilities, has_regions=has_regions)]
