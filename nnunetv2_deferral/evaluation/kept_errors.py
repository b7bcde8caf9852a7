"""The errors that nobody is asked about, per group of cases, and whether a certificate holds for other cases."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.decision.certificate import Certificate
from nnunetv2_deferral.decision.limits import Limits

_LARGE = 0.1  # share of the largest gain from which a gain counts in the score: integer maps are coarse below
_LEVEL = 0.05  # of the two tests


class KeptErrors:
    """Accumulates kept errors of groups of cases, at one or several routes each.

    The kept error of a group is the number of wrong voxels of the model that are not deferred, divided by the number of
    foreground voxels of the reference, both summed over the group's cases and without ignored voxels.
    """

    def __init__(self) -> None:
        """Start without cases."""
        self._kept: dict[Hashable, list[np.ndarray]] = {}
        self._foreground: dict[Hashable, int] = {}
        self._scores: dict[Hashable, list[float]] = {}

    def update(self, group: Hashable, case: EvaluatedCase, gain: np.ndarray, deferred: np.ndarray) -> None:
        """Add a case.

        Args:
            group: Its group, such as its patient.
            case: The case.
            gain: float32 of shape S, the largest expected gain of asking about a voxel.
            deferred: Bool (B, *S), the voxels that are asked about on each of B routes.
        """
        wrong = case.valid & (case.model != case.reference)
        kept = wrong.sum() - np.array([np.count_nonzero(wrong & each) for each in deferred])
        self._kept.setdefault(group, []).append(kept)
        foreground = int(np.count_nonzero(case.valid & (case.reference > 0)))
        self._foreground[group] = self._foreground.get(group, 0) + foreground
        self._scores.setdefault(group, []).append(case_score(gain))

    @classmethod
    def merged(cls, parts: Iterable[KeptErrors]) -> KeptErrors:
        """The errors of the cases of all parts; a group may have cases in several."""
        merged = cls()
        for part in parts:
            for group, kept in part._kept.items():
                merged._kept.setdefault(group, []).extend(kept)
                merged._foreground[group] = merged._foreground.get(group, 0) + part._foreground[group]
                merged._scores.setdefault(group, []).extend(part._scores[group])
        return merged

    @property
    def median_foreground(self) -> float:
        """The median number of foreground voxels of a group with any; 1 if no group has any."""
        found = [count for count in self._foreground.values() if count]
        return float(np.median(found)) if found else 1.0

    @property
    def scores(self) -> tuple[float, ...]:
        """For each group the mean of :func:`case_score`."""
        return tuple(float(np.mean(found)) for found in self._scores.values())

    def values(self, median_foreground: float) -> np.ndarray:
        """The kept errors, float64 (B, G).

        Args:
            median_foreground: Divides the wrong voxels of a group without foreground.
        """
        kept = np.stack([np.sum(found, axis=0) for found in self._kept.values()], axis=1)
        return kept / np.array([count or median_foreground for count in self._foreground.values()])


def case_score(gain: np.ndarray) -> float:
    """How much is expected to be gained in a case by asking: the sum of its gains from a tenth of the largest on.

    Args:
        gain: Of shape S, not negative.

    Returns:
        The sum, in the unit of the gains; known without a reference.
    """
    gain = np.asarray(gain, dtype=np.float64)
    return float(gain[gain >= _LARGE * gain.max(initial=0)].sum())


class CertificateCheck:
    """Compares a certificate with cases that have a reference."""

    def __init__(
        self,
        certificate: Certificate,
        groups: Mapping[str, Hashable] | None,
        prediction: Mapping[str, Any] | None = None,
        seen: Collection[str] = (),
    ) -> None:
        """Start without cases.

        Args:
            certificate: The certificate.
            groups: For each case its group, or None if no groups are known. A certificate that was tested on single
                cases is compared with single cases nevertheless.
            prediction: How the cases were predicted, as far as it is known, see :attr:`.PredictedBy.prediction`.
            seen: The cases that the calibration was fitted on or the certificate tested on.
        """
        self._certificate = certificate
        self._groups = groups if certificate.grouped else None
        self._seen = seen
        self._errors = KeptErrors()
        self._reason = ""
        if certificate.grouped and groups is None:
            self._reason = "it was tested on groups of cases, and none are given here (-groups)"
        if unlike := certificate.predicted_by.unlike(prediction or {}):
            self._reason = f"it was tested on {certificate.predicted_by.networks}, not on {unlike}"

    def update(self, case: EvaluatedCase, limits: Limits) -> None:
        """Add a case that was decided with these limits."""
        if not self._certificate.covers(limits):
            self._reason = f"it does not hold for the limits of these predictions ({limits.to_dict() or 'none'})"
        if case.prediction.answered is not None:
            self._reason = "it holds for one round of questions only"
        if case.name in self._seen:
            self._reason = "it was tested, or the calibration was fitted, on some of these cases"
        if not self._reason:
            group = case.name if self._groups is None else self._groups[case.name]
            self._errors.update(group, case, case.prediction.gain, case.route[None] > 0)

    @classmethod
    def merged(cls, parts: Sequence[CertificateCheck]) -> CertificateCheck:
        """The comparison with the cases of all parts."""
        merged = cls(parts[0]._certificate, parts[0]._groups)
        merged._reason = next((part._reason for part in parts if part._reason), "")
        merged._errors = KeptErrors.merged(part._errors for part in parts)
        return merged

    def summary(self) -> dict[str, Any]:
        """What was promised and found.

        Returns:
            `statement`, its `unit` and `alpha`, the share that it promises, and `unchecked`, the reason why it was not
            compared, or None. If it was: `groups`, `violations`, `rate`; `p_violations`, the probability of as many or
            more if the promise holds; `p_scores`, of as different scores if the cases are exchangeable with those
            tested (two-sample Kolmogorov-Smirnov); and `verdict`: `"void"` if that is below 0.05, else `"broken"` if
            `p_violations` is, else `"kept"`, which few groups can hardly fail to be.
        """
        from scipy.stats import binomtest, ks_2samp  # imported here because it is slow to import

        certificate = self._certificate
        found: dict[str, Any] = {
            "statement": certificate.statement,
            "unit": certificate.unit,
            "alpha": certificate.alpha,
        }
        if self._reason:
            return found | {"unchecked": self._reason}
        (errors,) = self._errors.values(certificate.median_foreground)
        violations = int(np.count_nonzero(errors > certificate.kept_error))
        p_violations = float(binomtest(violations, errors.size, certificate.alpha, alternative="greater").pvalue)
        p_scores = float(ks_2samp(certificate.scores, self._errors.scores).pvalue)
        return found | {
            "unchecked": None,
            "groups": errors.size,
            "violations": violations,
            "rate": violations / errors.size,
            "p_violations": p_violations,
            "p_scores": p_scores,
            "verdict": "void" if p_scores < _LEVEL else "broken" if p_violations < _LEVEL else "kept",
        }


def outcome(found: Mapping[str, Any]) -> str:
    """What came of a certificate, in words.

    Args:
        found: From :meth:`CertificateCheck.summary`.
    """
    if found["unchecked"]:
        return f"not compared with these cases: {found['unchecked']}"
    more = found["rate"] > found["alpha"]
    alike = "expected gains are not shown to differ from those of the cases it was tested on"
    verdict = {
        "kept": f"more than promised, but not more than chance explains (p = {found['p_violations']:.2g}); {alike}"
        if more
        else f"the promise is kept; {alike}",
        "broken": f"more than promised (p = {found['p_violations']:.2g})",
        "void": "the certificate is void here: expected gains differ from those of the cases it was tested on",
    }[found["verdict"]]
    return (
        f"here {found['violations']} of {found['groups']} {found['unit']} ({found['rate']:.1%}) do; {verdict} "
        f"(p = {found['p_scores']:.2g})"
    )
