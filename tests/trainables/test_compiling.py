from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor

from trainables.compiling import compiled


def curve(x: Tensor) -> Tensor:
    return (x.sin() * 3 + 1).exp().mean()


@pytest.mark.slow
def test_the_result_and_its_gradient_stay_the_same_at_every_size() -> None:
    fast = compiled(curve)
    for size in (5, 12, 5):
        x = torch.linspace(-1, 1, size, dtype=torch.float64).requires_grad_()
        values = [function(x) for function in (fast, curve)]
        torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)
        gradients = [torch.autograd.grad(value, x)[0] for value in values]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_without_a_compiler_the_function_itself_is_called_and_said_so_once(recwarn: pytest.WarningsRecorder) -> None:
    without: dict[str, Any] = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with torch._inductor.config.patch(without):
        fast = compiled(lambda x: curve(x) + 1)
        for _ in range(2):
            assert torch.equal(fast(torch.ones(4)), curve(torch.ones(4)) + 1)
    (warning,) = recwarn.list
    assert "without torch.compile" in str(warning.message)


def test_the_functions_own_error_is_raised() -> None:
    def fails(x: Tensor) -> Tensor:
        return x.reshape(7)

    with pytest.warns(UserWarning, match="without torch.compile"), pytest.raises(RuntimeError, match="shape"):
        compiled(fails)(torch.ones(4))
