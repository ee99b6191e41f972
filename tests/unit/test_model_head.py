import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from llm_mde.model.head import Fp32BatchNorm, Head, UpsampleBN


def test_batch_norm_equals_pytorchs_in_fp32() -> None:
    ours, theirs = Fp32BatchNorm(4), nn.BatchNorm2d(4)
    x = torch.randn(3, 4, 5, 6, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        assert_close(ours(x), theirs(y), rtol=0, atol=0)
    ours(x).square().sum().backward()
    theirs(y).square().sum().backward()
    assert_close(x.grad, y.grad)
    assert_close(ours.weight.grad, theirs.weight.grad)
    assert torch.equal(ours.running_mean, theirs.running_mean)
    assert torch.equal(ours.running_var, theirs.running_var)


def test_batch_norm_keeps_fp32_statistics_under_bf16_weights() -> None:
    norm = Fp32BatchNorm(4)
    x = torch.randn(8, 4, 5, 6)
    norm(x)
    exact = norm.running_mean.clone()
    norm.bfloat16()
    assert norm.weight.dtype == torch.bfloat16
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
    assert torch.equal(norm.running_mean, exact)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    want = 0.9 * exact + 0.1 * x.bfloat16().float().mean((0, 2, 3))
    assert_close(norm.running_mean, want)


def test_upsample_block_is_the_formula() -> None:
    block = UpsampleBN(6, 4).eval()
    x = torch.randn(2, 6, 3, 5)
    u = F.interpolate(x, size=(6, 10), mode="bilinear", align_corners=False)
    y = block.first_norm(F.conv2d(u, block.first.weight, padding=1))
    y = block.second_norm(F.conv2d(torch.where(y > 0, y, y / 100), block.second.weight, padding=1))
    y = y + F.conv2d(u, block.skip.weight)
    assert_close(block(x), torch.where(y > 0, y, y / 100))


def test_head_is_eight_times_the_grid() -> None:
    head = Head(12, grid=(3, 5), widths=(16, 8, 8, 4))
    assert head(torch.randn(2, 15, 12)).shape == (2, 1, 24, 40)


def test_tokens_lie_on_the_grid_row_by_row() -> None:
    head = Head(12, grid=(3, 5), widths=(16, 8, 8, 4))
    seen: list[torch.Tensor] = []
    head.blocks.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    tokens = torch.randn(1, 15, 12)
    head(tokens)
    for token in range(15):
        row, column = divmod(token, 5)
        assert_close(seen[0][0, :, row, column], head.linear(tokens[0, token]))


def test_parameters_at_base_are_821_665() -> None:
    with torch.device("meta"):
        head = Head(768, grid=(14, 14), widths=(256, 128, 64, 32))
    assert sum(weight.numel() for weight in head.parameters()) == 821_665
