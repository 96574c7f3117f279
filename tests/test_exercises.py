"""What an exercise prints for answers right, wrong, missing, and of the wrong kind."""

import math
import warnings

import numpy as np
import pytest
import torch

from genlib.exercises import compare


def answer(capsys, *args, **options):
    """The verdict and the line printed; always one line, and a plain bool."""
    verdict = compare(*args, **options)
    line = capsys.readouterr().out
    assert type(verdict) is bool
    assert line.endswith("\n") and line.count("\n") == 1
    return verdict, line.strip()


@pytest.mark.parametrize(
    "yours", [0.5, 0.5004, torch.tensor(0.5), torch.tensor([0.5]), np.float32(0.5)]
)
def test_right_numbers(capsys, yours):
    verdict, line = answer(capsys, "KL", yours, 0.5)
    assert verdict and line.startswith("KL: your value 0.5")
    assert line.endswith("expected 0.5 -> right")


def test_a_tensor_with_a_gradient_is_a_number(capsys):
    yours = torch.tensor(2.0, requires_grad=True) * 2
    with warnings.catch_warnings(action="error"):
        assert answer(capsys, "a", yours, torch.tensor(4.0))[0]


@pytest.mark.parametrize("yours", [0.51, -0.5, 0, math.nan, math.inf])
def test_wrong_numbers(capsys, yours):
    verdict, line = answer(capsys, "KL", yours, 0.5)
    assert not verdict and line.endswith("expected 0.5 -> not yet")
    assert f"your value {yours:.4g}," in line


def test_tolerance_is_absolute_or_relative(capsys):
    assert answer(capsys, "a", 1000.9, 1000)[0]  # relative, 1e-3
    assert not answer(capsys, "a", 1001.1, 1000)[0]
    assert answer(capsys, "a", 0.0009, 0)[0]  # absolute
    assert not answer(capsys, "a", 0.0011, 0)[0]
    assert answer(capsys, "a", 0.4, 0.5, tol=0.2)[0]
    assert not answer(capsys, "a", 0.5004, 0.5, tol=1e-6)[0]


@pytest.mark.parametrize("expected", [1.0, True, "left"])
def test_an_open_exercise(capsys, expected):
    verdict, line = answer(capsys, "KL", None, expected)
    assert not verdict and line == "KL: replace None by your answer"


@pytest.mark.parametrize(
    ("yours", "expected", "right"),
    [
        (True, True, True),
        (False, True, False),
        (torch.tensor(True), True, True),
        (torch.tensor(False), True, False),
        (np.True_, False, False),
        ("left", "left", True),
        ("right", "left", False),
        (3, "left", False),
    ],
)
def test_answers_that_are_words_or_truths(capsys, yours, expected, right):
    verdict, line = answer(capsys, "a", yours, expected)
    assert verdict is right
    assert f"expected {expected} -> {'right' if right else 'not yet'}" in line


@pytest.mark.parametrize(
    ("yours", "kind"),
    [
        (torch.zeros(2), "Tensor"),
        (np.zeros(2), "ndarray"),
        ([1.0], "list"),
        ("half", "str"),
        (lambda: 1.0, "function"),
    ],
)
def test_an_answer_of_the_wrong_kind(capsys, yours, kind):
    verdict, line = answer(capsys, "KL", yours, 1.0)
    assert not verdict
    assert line == f"KL: your value is a {kind}; a single number is expected"


@pytest.mark.parametrize("yours", [torch.ones(2), np.ones(2)])
def test_many_values_for_one_truth(capsys, yours):
    verdict, line = answer(capsys, "a", yours, True)
    assert not verdict and line.endswith("a single bool value is expected")
