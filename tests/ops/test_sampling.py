"""Laws and draws against slow readings of what they should be."""

import pytest
import torch

from zaya_core.ops.sampling import HEAD, SHORT, Sampler, draw


def nucleus(row: torch.Tensor, top_p: float) -> set[int]:
    """Ids in order of probability, equal ones by id, until their mass reaches top_p."""
    law = row.double().softmax(-1).tolist()
    kept, mass = set(), 0.0
    for index in sorted(range(len(law)), key=lambda index: (-law[index], index)):
        if mass >= top_p:
            break
        kept.add(index)
        mass += law[index]
    return kept


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_a_nucleus_is_the_same_in_any_company(top_p):
    """Peaked rows need only their head, flat ones all ids; equal logits are common in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    peaked = torch.randn(6, 3 * HEAD, generator=generator).bfloat16().float() * 3
    flat = torch.randn(2, 3 * HEAD, generator=generator).bfloat16().float() * 0.1
    together = Sampler(top_p=top_p).law(torch.cat([peaked, flat]))
    for row, law in zip(torch.cat([peaked, flat]), together, strict=True):
        assert torch.equal(Sampler(top_p=top_p).law(row[None])[0] > 0, law > 0)
        assert len(nucleus(row, top_p) ^ set(torch.nonzero(law)[:, 0].tolist())) <= 1, "all but the border, where sums round"


def test_the_smallest_nucleus_is_the_likeliest_id():
    row = torch.tensor([[0.0, 3.0, 1.0]])
    assert Sampler(top_p=5e-324).law(row).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("num_ids", [3, 97, SHORT, SHORT + 1, SHORT + 64, SHORT + 128, 256 * 41])
def test_a_draw_inverts_the_distribution_function(num_ids):
    generator = torch.Generator().manual_seed(num_ids)
    laws = torch.rand(50, num_ids, generator=generator)
    laws[laws < 0.6] = 0  # blocks without mass among them
    laws[:, num_ids // 2] += 0.1
    laws[0] = 0
    laws[0, -1] = 1
    laws = laws / laws.sum(-1, keepdim=True)
    uniform = torch.rand(50, generator=generator, dtype=torch.float64)
    uniform[1], uniform[2], uniform[3] = 0, 1 - 1e-16, 1 - 1e-9
    for law, at, drawn in zip(laws, uniform.tolist(), draw(laws, uniform).tolist(), strict=True):
        ends = law.double().cumsum(0)
        below = float(ends[drawn - 1]) if drawn else 0.0
        assert law[drawn] > 0
        assert below - 1e-6 <= at * float(ends[-1]) <= float(ends[drawn]) + 1e-6
