"""Adapters, generated cores and characteristics by themselves: sizes, starts, and which core acts on which caption."""

from __future__ import annotations

import pytest
import torch

from ccr_dist.methods.dasd.characteristics import Characteristics
from ccr_dist.models.adapters import AdapterBank, Bottleneck, Core, CoreGenerator
from tests.nearness import apart, close


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_sizes():
    """Width 512, 12 layers: methods of MLA and DASD."""
    assert size(AdapterBank(12, ["de"], lambda: Bottleneck(512, 256, "default"))) == 3_154_944
    assert size(AdapterBank(12, ["de"], lambda: Bottleneck(512, 32, "default"))) == 399_744
    assert size(AdapterBank(12, ["de"], lambda: Core(512, 32, "default", learned=False))) == 399_744
    assert size(AdapterBank(12, ["de", "fr"], lambda: Core(512, 32, "default", learned=True))) == 2 * (
        399_744 + 12 * 32 * 32
    )
    generator = CoreGenerator(1024, 512, 32, 12, "default")
    assert (size(generator.code), size(generator.cores)) == (524_800, 6_303_744)
    assert size(Characteristics(512, 512, variant="code", positions="tokens")) == 262_144
    assert size(Characteristics(512, 512, variant="figure", positions="tokens")) == 262_144 + 2 * 262_912


@pytest.mark.parametrize("make", [lambda: Bottleneck(8, 4, "identity"), lambda: Core(8, 4, "identity", learned=True)])
def test_identity_start_changes_nothing_and_can_learn(make):
    adapter, h = make(), torch.randn(2, 3, 8)
    assert torch.equal(adapter(h), h)
    adapter(h).square().sum().backward()
    assert adapter.up.weight.grad.abs().sum() > 0


def test_the_unit_core_is_the_static_adapter():
    static, dynamic, h = Bottleneck(8, 4, "default"), Core(8, 4, "default", learned=False), torch.randn(2, 3, 8)
    dynamic.load_state_dict(static.state_dict())
    close(dynamic(h, lambda down: down @ torch.eye(4)), static(h))
    assert apart(dynamic(h, lambda down: down @ (2 * torch.eye(4))), static(h))


def test_a_core_by_its_formula():
    """A(x) = x + u + ReLU((x D + d) G) U, caption by caption and position by position."""
    adapter, h, cores = Core(6, 3, "default", learned=False), torch.randn(2, 4, 6), torch.randn(2, 3, 3)
    down, up = adapter.down.weight.T, adapter.up.weight.T
    for caption in range(2):
        for position in range(4):
            x = h[caption, position]
            expected = x + adapter.up.bias + torch.clamp((x @ down + adapter.down.bias) @ cores[caption], min=0) @ up
            close(adapter(h, lambda down: down @ cores)[caption, position], expected)


def test_languages_and_layers_have_adapters_of_their_own():
    bank, h = AdapterBank(2, ["es", "to"], lambda: Bottleneck(6, 3, "default")), torch.randn(1, 2, 6)
    outputs = [bank(layer, h, lang) for layer in (0, 1) for lang in ("es", "to")]
    assert all(apart(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


def test_generator_by_its_formula():
    generator, first, second = CoreGenerator(5, 4, 3, 2, "default"), torch.randn(2, 2), torch.randn(2, 3)
    z = torch.stack(
        [generator.code.weight @ torch.cat([a, b]) + generator.code.bias for a, b in zip(first, second, strict=True)]
    )
    z = z / (1 + torch.exp(-1.702 * z))
    for core, layer in zip(generator([first, second]), generator.cores, strict=True):
        for row in range(2):
            close(core[row], (layer.weight @ z[row] + layer.bias).reshape(3, 3))
    assert torch.equal(CoreGenerator(5, 4, 3, 2, "identity")([first, second])[1], torch.eye(3).expand(2, 3, 3))


class _Sentence:
    """As much of a tower as characteristics ask for."""

    def sentence(self, h, mask, end):
        return h[torch.arange(len(h)), end]


@pytest.mark.parametrize("positions", ["tokens", "all"])
@pytest.mark.parametrize("variant", ["code", "figure"])
def test_characteristics_by_their_formula(variant, positions):
    described = Characteristics(6, 4, variant=variant, positions=positions)
    h, end = torch.randn(2, 5, 6), torch.tensor([2, 4])
    mask = torch.arange(5) <= end[:, None]
    found = described(_Sentence(), h, mask, end)
    for row in range(2):

        def state(position, branch, row=row):
            x = h[row, position]
            if variant == "figure":
                first, _, second = described.branches[branch].mlp
                x = x + second.weight @ torch.clamp(first.weight @ x + first.bias, min=0) + second.bias
            return (x - x.mean()) / torch.sqrt(x.var(correction=0) + 1e-5)

        close(found["sr"][row], state(end[row], "sr") @ described.to_semantic)
        counted = range(5) if positions == "all" else range(int(end[row]) + 1)
        close(found["sa"][row], torch.stack([state(p, "sa") for p in counted]).mean(0))


def test_padding_reaches_the_free_vector_only_where_it_is_asked_for():
    h, end = torch.randn(1, 4, 6), torch.tensor([1])
    padded, mask = h.clone(), torch.tensor([[True, True, False, False]])
    padded[:, 2:] += torch.randn(1, 2, 6)
    for positions, same in (("tokens", True), ("all", False)):
        described = Characteristics(6, 4, variant="code", positions=positions)
        a, b = (described(_Sentence(), x, mask, end)["sa"] for x in (h, padded))
        assert apart(a, b) != same
