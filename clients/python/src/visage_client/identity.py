"""What the score of two faces says about whether they are one person's, and how that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from visage.v1 import identity_pb2


@dataclass(frozen=True)
class FalseMatchRate:
    """How often faces of different people score this much or more, as far as the sample behind it can tell."""

    # The best estimate, 0 to 1. None where no pair of the sample scored as much, and where more did than were
    # counted: then the bounds say what is known.
    rate: float | None
    # The ends of its 95 % confidence interval.
    lower: float
    upper: float
    # False when the sample is too small to put a figure on a rate this low: then only `upper` says something.
    supported: bool

    @staticmethod
    def from_proto(m: identity_pb2.FalseMatchRate) -> FalseMatchRate:
        return FalseMatchRate(m.rate if m.HasField("rate") else None, m.lower, m.upper, m.supported)


@dataclass(frozen=True)
class IdentityEvidence:
    """What a score says about identity, in a space that is calibrated on photos of known people."""

    # That both are one person, 0 to 1, when before looking both answers were equally likely. In a search among many
    # faces most pairs are of different people, and it says less.
    same_person_probability: float
    false_match_rate: FalseMatchRate

    @staticmethod
    def from_proto(m: identity_pb2.IdentityEvidence) -> IdentityEvidence:
        return IdentityEvidence(m.same_person_probability, FalseMatchRate.from_proto(m.false_match_rate))


@dataclass(frozen=True)
class FalseMatchPoint:
    """The share of pairs of different people that score at least `score`, with its 95 % confidence interval."""

    score: float
    rate: float
    lower: float
    upper: float

    @staticmethod
    def from_proto(m: identity_pb2.FalseMatchPoint) -> FalseMatchPoint:
        return FalseMatchPoint(m.score, m.rate, m.lower, m.upper)


@dataclass(frozen=True)
class IdentityCalibration:
    """How a space's scores were calibrated: the probability is 1 / (1 + exp(-(intercept + slope * score)))."""

    intercept: float
    slope: float
    # 95 % confidence bounds of the two, resampling people.
    intercept_lower: float
    intercept_upper: float
    slope_lower: float
    slope_upper: float
    # What the probability was fitted on.
    n_people: int
    n_genuine_pairs: int
    n_impostor_pairs: int
    # The false-match rate by score, the scores rising.
    false_matches: Sequence[FalseMatchPoint]
    # What the rates were counted on: pairs of photos of different people.
    n_false_match_photos: int
    n_false_match_pairs: int
    # Where the photos come from, for people.
    sample: str

    @staticmethod
    def from_proto(m: identity_pb2.IdentityCalibration) -> IdentityCalibration:
        return IdentityCalibration(
            intercept=m.intercept,
            slope=m.slope,
            intercept_lower=m.intercept_lower,
            intercept_upper=m.intercept_upper,
            slope_lower=m.slope_lower,
            slope_upper=m.slope_upper,
            n_people=m.n_people,
            n_genuine_pairs=m.n_genuine_pairs,
            n_impostor_pairs=m.n_impostor_pairs,
            false_matches=[FalseMatchPoint.from_proto(x) for x in m.false_matches],
            n_false_match_photos=m.n_false_match_photos,
            n_false_match_pairs=m.n_false_match_pairs,
            sample=m.sample,
        )
