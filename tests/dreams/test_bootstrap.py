"""Intervals over episodes, worked out by hand."""

import numpy as np
import pytest

from dreamer.dreams.bootstrap import Resample, rank_correlation


def test_intervals_are_over_episodes():
    # Six episodes of many moments each, ones in three of them: a resample has 1 to 5 of these in 97 % of cases.
    numbers = np.repeat(np.arange(6), 200)
    resample = Resample(numbers, 6, np.random.default_rng(0))
    ones = (numbers >= 3).astype(float)
    line = resample.line(ones[:, None])
    assert (line.mean[0], line.low[0], line.high[0]) == (0.5, pytest.approx(1 / 6), pytest.approx(5 / 6))
    values = np.stack([ones - 2.0, ones - 0.5, np.full(1200, np.nan)], 1)
    assert resample.is_less(values, np.zeros_like(values)).tolist() == [True, False, False]
    assert np.isnan(resample.line(values).mean[2])


def test_a_few_episodes_tell_nothing_about_a_step():
    # Of ten episodes only four reach the second step.
    numbers = np.repeat(np.arange(10), 20)
    values = np.stack([np.full(200, -1.0), np.where(numbers < 4, -1.0, np.nan)], 1) + 1e-3 * numbers[:, None]
    resample = Resample(numbers, 10, np.random.default_rng(0))
    assert resample.is_less(values, np.zeros_like(values)).tolist() == [True, False]
    line = resample.line(values)
    assert np.isfinite(line.low[0]) and np.isnan(line.low[1]) and line.mean[1] == pytest.approx(-1, abs=0.01)


def test_rank_correlation_by_hand():
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5).
    x, y = np.array([1.0, 2, 2, 3]), np.array([10.0, 30, 20, 400])
    numbers = np.array([0, 0, 1, 1])
    assert rank_correlation(x, y, numbers, 2, np.random.default_rng(0))[0] == pytest.approx(4.5 / np.sqrt(22.5))
    order = np.arange(100.0)
    halves = np.repeat([0, 1], 50)
    assert rank_correlation(order, -(order**3), halves, 2, np.random.default_rng(0))[0] == pytest.approx(-1)
    assert np.isnan(rank_correlation(order, np.ones(100), halves, 2, np.random.default_rng(0))[0])
