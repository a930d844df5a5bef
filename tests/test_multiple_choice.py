import math

import torch

from sea_lens.evaluation.multiple_choice import mc1, mc2


def test_hand_computed_cases():
    log_probs = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.1, 0.1, 0.3]], dtype=torch.float64).log()
    correct = torch.tensor([[True, False, False], [True, False, True], [True, False, False]])
    assert mc1(log_probs, correct).tolist() == [1, 0, 0]
    assert torch.allclose(mc2(log_probs, correct), torch.tensor([0.5, 0.5, 0.2], dtype=torch.float64))


def test_a_tie_is_no_success():
    log_probs = torch.tensor([[-1.0, -1.0]])
    assert mc1(log_probs, torch.tensor([[True, False]])).tolist() == [0]


def test_masses_far_below_zero_do_not_underflow():
    log_probs = torch.tensor([[-2000.0, -2000.0 + math.log(3)]], dtype=torch.float64)
    assert torch.allclose(mc2(log_probs, torch.tensor([[True, False]])), torch.tensor([0.25], dtype=torch.float64))
