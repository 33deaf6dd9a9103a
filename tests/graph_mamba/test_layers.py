"""The published mathematics: dense formulas, parameter counts, and every node gets its own row back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seqgraph.encode import BiMamba
from seqgraph_graph_mamba.gated_gcn import GatedGCN, RowNorm
from seqgraph_graph_mamba.graph import collate
from seqgraph_graph_mamba.layer import GraphMambaLayer, PermutedMixer
from seqgraph_graph_mamba.model import GraphMamba
from seqgraph_graph_mamba.ordering import node_names, permutations, rank_groups, resolve_order, seeded_noise


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_parameter_counts():
    layer = GraphMambaLayer(96, d_state=16, d_conv=4, expand=1, direction="forward")
    assert _count(layer.mixer) == 34_080
    assert _count(layer) == 118_752
    assert [_count(BiMamba(d, direction="forward", expand=1)) for d in (64, 52, 48)] == [16_320, 11_388, 9_840]


def test_published_size_of_the_peptides_model():
    model = GraphMamba(96, 3, 10, pe="laplacian", pe_size=10, pe_width=16, head_layers=1)
    # published: 373,018, of which the edge norm of the last layer (192) is never used
    assert _count(model) == 373_018 - 192


def _dense_gated_gcn(layer: GatedGCN, x, edge_index, edge):
    """The formula of the docstring, node by node and edge by edge, batch statistics written out."""
    V, M = len(x), edge_index.shape[1]
    gates = [layer.D(x[i]) + layer.E(x[j]) + layer.C(edge[m]) for m, (j, i) in enumerate(edge_index.T.tolist())]
    rows = []
    for i in range(V):
        incoming = [m for m in range(M) if int(edge_index[1, m]) == i]
        top = sum((torch.sigmoid(gates[m]) * layer.B(x[edge_index[0, m]]) for m in incoming), torch.zeros_like(x[i]))
        bottom = sum((torch.sigmoid(gates[m]) for m in incoming), torch.zeros_like(x[i]))
        rows.append(layer.A(x[i]) + top / (bottom + 1e-6))

    def normalised(values, norm):
        values = torch.stack(values)
        mean, variance = values.mean(0), values.var(0, unbiased=False)
        return (values - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias

    return (
        x + torch.relu(normalised(rows, layer.node_norm)),
        edge + torch.relu(normalised(gates, layer.edge_norm)),
    )


def test_gated_gcn_is_the_dense_formula():
    torch.manual_seed(1)
    layer = GatedGCN(5).double().train()
    for p in layer.parameters():
        nn.init.normal_(p)
    x, edge = torch.randn(7, 5).double(), torch.randn(11, 5).double()
    edge_index = torch.randint(0, 6, (2, 11))  # directed, self-loops, and node 6 without edges
    found = layer(x, edge_index, edge)
    for ours, dense in zip(found, _dense_gated_gcn(layer, x, edge_index, edge), strict=True):
        torch.testing.assert_close(ours, dense)


@pytest.mark.parametrize("order", ["degree", "random", "none", "rwse", "pagerank", "bfs", "rcm"])
@pytest.mark.parametrize("ties", ["canonical", "index"])
def test_identity_ssm_returns_each_node_its_own_row(graphs, order, ties):
    batch = collate(graphs)
    groups = rank_groups(
        resolve_order(order)(batch.edge_index, batch.num_nodes, batch.batch, generator=torch.Generator()), batch.batch
    )
    noise = seeded_noise(node_names(batch, ties), 0, 0, range(4))
    order_of_nodes = permutations(groups, noise)
    seen = []

    class Identity(nn.Module):
        def forward(self, u, cu_seqlens):
            seen.append((u, cu_seqlens))
            return u

    h = torch.randn(batch.num_nodes, 6)
    assert torch.equal(PermutedMixer(Identity())(h, batch.cu_seqlens, order_of_nodes), h.expand(4, -1, -1).mean(0))
    # the tokens of every segment are the nodes of one graph
    tokens, cu_seqlens = seen[0]
    assert len(tokens) == 4 * batch.num_nodes and len(cu_seqlens) == 4 * len(graphs) + 1
    for s in range(4 * len(graphs)):
        own = h[batch.batch == s % len(graphs)]
        part = tokens[cu_seqlens[s] : cu_seqlens[s + 1]]
        assert torch.equal(part.sort(0).values, own.sort(0).values)


def test_mixer_mixes_in_the_order_given():
    """A running sum shows the order: node of rank r holds the sum of ranks 0..r."""

    class RunningSum(nn.Module):
        def forward(self, u, cu_seqlens):
            parts = [u[a:b].cumsum(0) for a, b in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)]
            return torch.cat(parts)

    h = torch.tensor([[1.0], [10.0], [100.0], [5.0]])
    permutation = torch.tensor([[2, 0, 1, 3]])
    mixed = PermutedMixer(RunningSum())(h, torch.tensor([0, 3, 4], dtype=torch.int32), permutation)
    assert mixed[:, 0].tolist() == [101.0, 111.0, 100.0, 5.0]


def test_norm_of_one_or_no_row_leaves_the_statistics_alone():
    norm = RowNorm(3).train()
    norm(torch.randn(10, 3))
    held = norm.running_mean.clone()
    assert norm(torch.empty(0, 3)).shape == (0, 3)
    assert norm(torch.randn(1, 3)).isfinite().all()
    assert torch.equal(norm.running_mean, held)
