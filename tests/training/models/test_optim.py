import pytest
import torch
from torch import nn

from cegain.training.models import optim
from tests.reference_modules import ReferenceMuon


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (24, 8), (8, 24)])
def test_orthogonalise_brings_singular_values_near_one_and_keeps_directions(rows: int, columns: int) -> None:
    x = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = optim.orthogonalise(x)
    values = torch.linalg.svdvals(made)
    assert 0.5 < values.min() < values.max() < 1.3
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    # In the singular basis of x the result is diagonal and positive.
    inside = u.mT @ made @ vh.mT
    assert inside.diagonal(dim1=1, dim2=2).min() > 0.5
    assert (inside - torch.diag_embed(inside.diagonal(dim1=1, dim2=2))).abs().max() < 1e-6


def test_a_stack_of_matrices_is_trained_matrix_by_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(2, 4, 6, generator=generator) for _ in range(2))
    stack = nn.Parameter(start.clone())
    singles = [nn.Parameter(matrix.clone()) for matrix in start]
    together, apart = optim.Muon([stack], 0.01, 0.1), optim.Muon(singles, 0.01, 0.1)
    for _ in range(3):
        stack.grad = gradient
        for single, part in zip(singles, gradient, strict=True):
            single.grad = part
        together.step()
        apart.step()
    torch.testing.assert_close(stack.data, torch.stack([s.data for s in singles]))


def test_muon_is_the_one_that_flops_are_counted_on_but_for_the_scale() -> None:
    start = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, counted = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine, other = optim.Muon([ours], 0.01, 0.0), ReferenceMuon([counted])
    ours.grad = counted.grad = start.cos()
    mine.step()
    other.step()
    moved, expected = (ours - start).detach(), (counted - start).detach()
    torch.testing.assert_close(moved / moved.norm(), expected / expected.norm())
    rms = moved.square().mean().sqrt() / 0.01
    assert rms == pytest.approx(optim.RMS_OF_ADAMW * (4 / 6 * 6 / 4) ** 0.5, rel=0.3)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.blocks.expert_bias = nn.Parameter(torch.zeros(2, 4))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_trained_once_and_only_matrices_decay(name: str) -> None:
    model = Small()
    made = optim.optimizers(model, name, 0.1, 0.2)
    groups = [group for optimizer in made for group in optimizer.param_groups]
    trained = [p for group in groups for p in group["params"]]
    assert sorted(map(id, trained)) == sorted(map(id, model.parameters()))
    for group in groups:
        matrices = (model.embedding.weight, model.blocks[0].weight)
        assert all((id(p) in map(id, matrices)) == (group["weight_decay"] == 0.2) for p in group["params"])
    if name == "muon":
        assert [p.shape for p in made[0].param_groups[0]["params"]] == [(4, 4)]
