"""The cone contract on every cone."""

from __future__ import annotations

import numpy as np

from convexlayer.cones import Exponential, Nonnegative, PositiveSemidefinite, Power, SecondOrder, Zero

from .membership import (
    ExponentialContract,
    NonnegativeContract,
    PowerContract,
    SecondOrderContract,
    SemidefiniteContract,
    ZeroContract,
)


class TestZero(ZeroContract):
    cone = Zero()


class TestNonnegative(NonnegativeContract):
    cone = Nonnegative()


class TestSecondOrderOfSize1(SecondOrderContract):
    cone = SecondOrder(1)


class TestSecondOrderOfSize2(SecondOrderContract):
    cone = SecondOrder(2)


class TestSecondOrderOfSize3(SecondOrderContract):
    cone = SecondOrder(3)


class TestSecondOrderOfSize7(SecondOrderContract):
    cone = SecondOrder(7)


class TestSemidefiniteOfOrder1(SemidefiniteContract):
    cone = PositiveSemidefinite(1)


class TestSemidefiniteOfOrder2(SemidefiniteContract):
    cone = PositiveSemidefinite(2)


class TestSemidefiniteOfOrder4(SemidefiniteContract):
    cone = PositiveSemidefinite(4)


class TestExponential(ExponentialContract):
    cone = Exponential()


class TestPower(PowerContract):
    alpha = np.random.default_rng(5).uniform(0.05, 0.95, PowerContract.points)
    cone = Power(alpha)
