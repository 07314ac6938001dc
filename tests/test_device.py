"""What differs by device, as far as it can be tested without the device."""

import pytest
import torch

from octavo.device import tf32_matmuls


@pytest.mark.parametrize(("device", "precision"), [("cuda", "high"), ("cpu", "highest"), ("mps", "highest")])
def test_only_an_nvidia_gpu_computes_with_tf32_and_only_within_the_block(device: str, precision: str) -> None:
    with tf32_matmuls(torch.device(device)):
        assert torch.get_float32_matmul_precision() == precision
    assert torch.get_float32_matmul_precision() == "highest"
