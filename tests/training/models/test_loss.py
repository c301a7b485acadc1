import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from cegain.training.models import loss


def _inputs(rows: int, vocab: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + vocab)
    hidden = torch.randn(2, rows, 16, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab, 16, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(vocab, (2, rows), generator=generator)


@pytest.mark.parametrize("at_once", [1, 64, 100, 10**6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_chunks_give_the_plain_loss_and_its_gradients(
    at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once)
    hidden, weight, targets = _inputs(33, 11, dtype)
    (3 * loss.cross_entropy(hidden, weight, targets)).backward()
    found = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    plain = functional.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
    (3 * plain).backward()
    torch.testing.assert_close(loss.cross_entropy(hidden, weight, targets), plain)
    torch.testing.assert_close(found, (hidden.grad, weight.grad))


def test_logits_are_never_held_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", 70)
    hidden, weight, targets = _inputs(33, 7, torch.float32)
    largest = 0
    plain = torch.log_softmax

    def watched(x: torch.Tensor, dim: int) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, x.numel())
        return plain(x, dim)

    monkeypatch.setattr(torch, "log_softmax", watched)
    loss.cross_entropy(hidden, weight, targets)
    assert largest == 70


def test_a_weight_that_is_also_the_embedding_gets_both_gradients() -> None:
    _, weight, targets = _inputs(9, 5, torch.float64)
    loss.cross_entropy(weight[targets], weight, targets.roll(1)).backward()
    found, weight.grad = weight.grad, None
    functional.cross_entropy((weight[targets] @ weight.T).flatten(0, 1), targets.roll(1).flatten()).backward()
    torch.testing.assert_close(found, weight.grad)


@pytest.mark.parametrize("trained", [True, False])
def test_the_operation_keeps_torchs_rules(trained: bool) -> None:
    hidden, weight, targets = _inputs(9, 5, torch.float64)
    torch.library.opcheck(loss.linear_cross_entropy, (hidden.detach()[0], weight.detach(), targets[0], trained))


def test_flops_are_those_of_three_products() -> None:
    hidden, weight, targets = _inputs(9, 5, torch.float64)
    with FlopCounterMode(display=False) as counter:
        loss.cross_entropy(hidden, weight, targets).backward()
    assert counter.get_total_flops() == 3 * 2 * 18 * 16 * 5


def test_a_compiled_graph_has_the_same_gradients() -> None:
    hidden, weight, targets = _inputs(9, 5, torch.float64)
    loss.cross_entropy(hidden, weight, targets).backward()
    found, hidden.grad = hidden.grad, None
    torch.compile(loss.cross_entropy, fullgraph=True, backend="aot_eager")(hidden, weight, targets).backward()
    torch.testing.assert_close(hidden.grad, found)
