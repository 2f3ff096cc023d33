"""What all tests share: the devices other than the CPU, for the tests of what has to stay there."""

import pytest
import torch
from torch.utils import backend_registration


@pytest.fixture(params=["stand-in"] + ["cuda"] * torch.cuda.is_available())
def device(request):
    """A device that is not the CPU: a GPU where there is one, and everywhere one that stands in for it."""
    if request.param == "cuda":
        yield torch.device("cuda", torch.cuda.current_device())
        return
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this PyTorch lets no device be written in Python")
    from .stand_in import DEVICE, StandIn

    with StandIn():
        yield DEVICE
