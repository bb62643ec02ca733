"""What tripq is compared with on single layers: a plain convolution, and e3nn edge by edge."""

from __future__ import annotations

import math

import torch
from checks import TOLERANCES, refuse_if_wrong, relative_error
from domains import LayerWorkload, features, graph_of, layer_of, sizes_of
from e3nn import o3
from measure import Memory, repeated, timed
from rows import Row
from torch import Tensor, nn
from workloads import E3NN_EDGES

from tripq import PQTensorFieldLayer
from tripq.so3.paths import Path


def measure_conv3d(
    workload: LayerWorkload, method: str, device: str, dtype: str, repeats: int
) -> Row:
    """A dense convolution of the box around the voxels, with a filter that is given."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    number = getattr(torch, dtype)
    graph, layer = graph_of(workload), layer_of(workload, "edges")
    sizes = sizes_of(graph, layer)
    voxels = graph.scans[0].grid.voxels[:, 1:]
    shape = (voxels.amax(dim=0) - voxels.amin(dim=0) + 1).tolist()
    channels = int(sizes["directions"]) * layer.irreps_in.dim
    reach = math.floor(workload.radius)
    memory = Memory(device)
    layer_seconds, convolution = timed(
        lambda: nn.Conv3d(
            channels,
            channels,
            2 * reach + 1,
            padding=reach,
            bias=False,
            device=device,
            dtype=number,
        ),
        device,
    )
    volume = torch.randn(1, channels, *shape).to(device, number).requires_grad_()

    @torch.no_grad()
    def forward() -> Tensor:
        return convolution(volume)

    def both() -> None:
        convolution(volume).square().mean().backward()

    def changed() -> None:
        convolution.weight.grad = volume.grad = None

    first_call = timed(lambda: forward().sum(), device)[0]
    forward_seconds, y = repeated(forward, device, repeats)
    both_seconds = repeated(both, device, repeats, changed)[0]
    peak = memory.peak()
    error = relative_error(y[0, :, 0, 0, 0], _convolved_at_corner(convolution, volume))
    refuse_if_wrong(error, TOLERANCES[dtype])
    weight = convolution.weight
    # Of each axis all pairs of voxels that the filter joins; the padding is left out.
    pairs = math.prod(n * (2 * reach + 1) - reach * (reach + 1) for n in shape)
    return Row(
        workload.name,
        method,
        sizes=sizes,
        error=error,
        tolerance=TOLERANCES[dtype],
        layer=layer_seconds,
        first_call=first_call,
        forward=forward_seconds,
        forward_backward=both_seconds,
        peak_memory=peak,
        operations=pairs * channels**2,
        bytes=weight.element_size() * (weight.numel() + 2 * volume.numel()),
    )


@torch.no_grad()
def _convolved_at_corner(convolution: nn.Conv3d, volume: Tensor) -> Tensor:
    """The sum that a convolution is, at the first voxel, in float64."""
    reach = convolution.padding[0]
    weight = convolution.weight[:, :, reach:, reach:, reach:].double()
    x, y, z = (min(n, m) for n, m in zip(weight.shape[2:], volume.shape[2:], strict=True))
    patch = volume[0, :, :x, :y, :z].double()
    return torch.einsum("oixyz,ixyz->o", weight[:, :, :x, :y, :z], patch).cpu()


# -- e3nn ----------------------------------------------------------------------------------------


class EdgeByEdge(nn.Module):
    """The same layer from e3nn's tensor products: a message for every edge.

    The harmonics of both offsets are coupled to the orders of the filter, those to the input
    features, with weights that the radial functions of the edge give.

    Parameters
    ----------
    layer : PQTensorFieldLayer
        Whose ``"tp"`` filter, with its weights, this is.
    """

    def __init__(self, layer: PQTensorFieldLayer) -> None:
        super().__init__()
        (self.filter,) = layer.filters
        paths = self.filter.paths
        self.l_p = sorted({path.l_p for path in paths})
        self.l_q = sorted({path.l_q for path in paths})
        self.couplings = couplings = sorted({(p.l_p, p.l_q, p.l_filter) for p in paths})
        irreps_filter = o3.Irreps([(1, (l, 1)) for _, _, l in couplings])
        # Parities are ignored, as the paper does: all are even.
        irreps_in, irreps_out = (
            o3.Irreps([(c.mul, (c.l, 1)) for c in channels])
            for channels in (self.filter.channels_in, self.filter.channels_out)
        )
        plain = {
            "irrep_normalization": "none",
            "path_normalization": "none",
            "internal_weights": False,
            "shared_weights": False,
        }
        self.couple = o3.TensorProduct(
            [(1, (l, 1)) for l in self.l_p],
            [(1, (l, 1)) for l in self.l_q],
            irreps_filter,
            [
                (self.l_p.index(l_p), self.l_q.index(l_q), i, "uuu", False)
                for i, (l_p, l_q, _) in enumerate(couplings)
            ],
            **plain,
        )
        orders_in, orders_out = ([mul_ir.ir.l for mul_ir in i] for i in (irreps_in, irreps_out))

        def instruction(path: Path) -> tuple[int, int, int, str, bool]:
            number = couplings.index((path.l_p, path.l_q, path.l_filter))
            l_in, l_out = orders_in.index(path.l_in), orders_out.index(path.l_out)
            return number, l_in, l_out, "uvw", True

        self.apply_filter = o3.TensorProduct(
            irreps_filter, irreps_in, irreps_out, [instruction(path) for path in paths], **plain
        )

    def forward(self, p: Tensor, q_out: Tensor, q_in: Tensor, x: Tensor) -> Tensor:
        """Messages (E, dim_out) from offsets, q-vectors (E, 3) and features (E, dim_in)."""
        weights = self.radial(p, q_out, q_in) @ self.weights()
        return self.apply_filter(self.angular(p, q_out, q_in), x, weights)

    def angular(self, p: Tensor, q_out: Tensor, q_in: Tensor) -> Tensor:
        """Harmonics of both offsets, coupled to the orders of the filter."""
        outer, inner = self.filter.outer_harmonics(p), self.filter.inner_harmonics(p, q_out, q_in)
        coupled: Tensor = self.couple(
            torch.cat([outer[l] for l in self.l_p], dim=-1),
            torch.cat([inner[l] for l in self.l_q], dim=-1),
        )
        return coupled

    def radial(self, p: Tensor, q_out: Tensor, q_in: Tensor) -> Tensor:
        """Products of the radial functions (E, K)."""
        f = self.filter
        return torch.einsum(
            "ea,eb,ec->eabc",
            f.phi_p(p.norm(dim=-1)),
            f.phi_q_out(q_out.norm(dim=-1)),
            f.phi_q_in(q_in.norm(dim=-1)),
        ).flatten(1)

    def weights(self) -> Tensor:
        """From radial functions to the weights of the tensor product, (K, weights)."""
        columns = []
        for path, weight in self.filter.path_weights():
            # e3nn's coefficients are those of Wigner; Clebsch and Gordan's are larger.
            scale = math.sqrt((2 * path.l_filter + 1) * (2 * path.l_out + 1))
            columns.append(scale * weight.permute(2, 3, 4, 1, 0).flatten(3).flatten(0, 2))
        return torch.cat(columns, dim=1)


def made(layer: PQTensorFieldLayer) -> EdgeByEdge:
    """With coefficients in float64, which e3nn rounds to the default type as it is then."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return EdgeByEdge(layer)
    finally:
        torch.set_default_dtype(usual)


def measure_e3nn(
    workload: LayerWorkload, method: str, device: str, dtype: str, repeats: int
) -> Row:
    """The time of some edges, times the number of edges over theirs."""
    torch.backends.cuda.matmul.allow_tf32 = False
    number = getattr(torch, dtype)
    graph, layer = graph_of(workload), layer_of(workload, "edges")
    sizes = sizes_of(graph, layer)
    layer_seconds, messages = timed(lambda: made(layer).to(device, number), device)
    (scan,) = graph.scans
    generator = torch.Generator().manual_seed(3)

    def draw(n: int) -> Tensor:
        return torch.randint(n, (E3NN_EDGES,), generator=generator)

    edge, to, source = (draw(n) for n in (len(scan.edges.dst), *scan.q.weights.shape))
    all_features = features(graph, layer.irreps_in.dim)
    p = scan.edges.offsets[scan.edges.type[edge]].to(device, number)
    q_out, q_in = (q.to(device, number) for q in (scan.q.q_out[to], scan.q.q_in[source]))
    x = all_features[scan.edges.src[edge], source].to(device, number).requires_grad_()
    node = (scan.edges.dst[edge] * len(scan.q.q_out) + to).to(device)
    n_nodes = graph.n_voxels * len(scan.q.q_out)

    def call() -> Tensor:
        message = messages(p, q_out, q_in, x)
        return message.new_zeros(n_nodes, message.shape[1]).index_add(0, node, message)

    first_call = timed(torch.no_grad()(call), device)[0]
    forward_seconds = repeated(torch.no_grad()(call), device, repeats)[0]
    both_seconds = repeated(lambda: call().square().mean().backward(), device, repeats)[0]
    with torch.no_grad():
        few = slice(0, 64)
        found = messages(p[few], q_out[few], q_in[few], x[few])
        kernel = layer.double().kernel(*(v[few].cpu().double() for v in (p, q_out, q_in)))
        expected = torch.einsum("eoi,ei->eo", kernel, x[few].cpu().double())
    error = relative_error(found, expected)
    refuse_if_wrong(error, TOLERANCES[dtype])
    share = sizes["edges"] / E3NN_EDGES
    return Row(
        workload.name,
        method,
        sizes=sizes,
        error=error,
        tolerance=TOLERANCES[dtype],
        layer=layer_seconds,
        first_call=first_call * share,
        forward=forward_seconds * share,
        forward_backward=both_seconds * share,
    )
