"""What a process is asked to keep to while it trains: only what was asked, and as before afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from finetwo.train.rng import strictly


def test_operations_without_a_deterministic_form_are_refused_for_a_while() -> None:
    with pytest.raises(RuntimeError, match="inside"), strictly(True):
        assert torch.are_deterministic_algorithms_enabled()
        raise RuntimeError("inside")
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("wanted", [True, False])
def test_who_refused_them_before_still_does(wanted: bool) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with strictly(wanted):
            assert torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_what_is_not_asked_for_is_not_imported() -> None:
    """torch's setter alone imports its compiler, a second before a fault of the data could be told."""
    inside = "with strictly(False):\n    import sys\nprint('torch._inductor' in sys.modules)"
    code = f"from finetwo.train.rng import strictly\n{inside}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
