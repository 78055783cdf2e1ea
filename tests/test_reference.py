"""When two policies' returns tell them apart."""

from __future__ import annotations

import math

import pytest
import torch

from o2o_lightning.objectives.diagnostics import ONE_SIDED, standardized_gap


@pytest.mark.parametrize(
    ("challenger", "incumbent", "expected"),
    [
        ([3.0, 5.0], [0.0, 2.0], 3.0 / math.sqrt(2.0)),  # s² = 2, s²(½ + ½) = 2
        ([1.0, 2.0, 3.0], [2.0], 0.0),
        ([4.0], [1.0, 3.0], 2.0 / math.sqrt(2.0 * 1.5)),  # one degree of freedom: s² = 2
        ([2.0, 2.0], [2.0], 0.0),
        ([2.0, 2.0], [1.0], math.inf),
        ([1.0], [2.0], -math.inf),
    ],
)
def test_the_gap_of_two_samples_is_in_standard_errors_of_their_difference(
    challenger: list[float], incumbent: list[float], expected: float
) -> None:
    assert standardized_gap(challenger, incumbent) == pytest.approx(expected)


def test_t141_and_t142_equal_policies_pass_in_a_tenth_of_comparisons_and_a_deviation_apart_almost_always() -> None:
    draws = torch.randn(4000, 40, generator=torch.Generator().manual_seed(0)).tolist()
    equal = sum(standardized_gap(row[:20], row[20:]) > ONE_SIDED for row in draws) / len(draws)
    assert abs(equal - 0.10) < 0.02
    apart = sum(standardized_gap([x + 1.0 for x in row[:20]], row[20:]) > ONE_SIDED for row in draws) / len(draws)
    assert apart > 0.95  # Φ(√10 − 1.28) = 0.970 for a known deviation
